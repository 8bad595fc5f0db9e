"""How the order and number of results change what ADR decides, on a synthetic policy.

    python benchmarks/adr_bias.py [--seeds 5] [--json]

Environments run side by side. In every control step an episode may earn a goal and may be lost;
the chance to lose it grows with the distance of the drawn values from the nominal and falls while
the policy learns, so episodes with few goals are also short. The mean score at a bound is known in
closed form, and every evaluation is held against it. Numpy only; takes less than a minute.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from widen.randomization.adr import ADR, AdrConfig
from widen.randomization.curriculum import NEVER, Range, Records

EPISODE = 100  # control steps at most
GOALS = 0.3  # per control step
ROLLOUT = 16  # control steps between decisions
WIDTHS = (0.6, 0.9, 1.2, 1.5)  # of each parameter, at which its risk has grown by e
RANGES = tuple(Range(f"p{i}", 0.0, 0.05, -4.0, 4.0) for i in range(len(WIDTHS)))
THRESHOLDS = {"narrow_at": 7.0, "widen_at": 14.0}

RULES: dict[str, dict[str, Any]] = {
    "finishing order": {},
    "finishing order since the move": {},
    "rolling": {"rule": "rolling"},
    "tickets": {},
    "tickets, sequential": {"decision": "sequential"},
}


def risk(values: np.ndarray, progress: float) -> np.ndarray:
    """Probability per step to lose an episode with these values (…, P)."""
    learnt = 0.002 + 0.018 * np.exp(-4.0 * progress)
    return np.minimum(learnt * np.exp(np.square(values / WIDTHS).sum(-1)), 0.5)


def mean_score(values: np.ndarray, progress: float) -> np.ndarray:
    """Expected goals: GOALS times the expected length, sum over k < EPISODE of (1 - risk)^k."""
    lost = risk(values, progress)
    return GOALS * (1 - (1 - lost) ** EPISODE) / lost


class World:
    """Environments, episodes and a curriculum; what they drew is numpy's own.

    Args:
        rule: of `RULES`.
        buffer: results that make an evaluation.
        num_envs: side by side.
        steps: control steps of the whole training.
        seed: of everything.
        learns: whether the policy gets better, or is at its best from the start.
    """

    def __init__(
        self, rule: str, buffer: int, num_envs: int, steps: int, seed: int, learns: bool
    ) -> None:
        self.curriculum = ADR(RANGES, AdrConfig(buffer=buffer, **THRESHOLDS, **RULES[rule]))
        self.in_finishing_order = rule.startswith("finishing order")
        self.forgets = rule == "finishing order since the move"
        self.learns = learns
        self._moved = np.zeros(2 * len(RANGES), dtype=np.int64)  # first ticket since
        self.steps, self.rng = steps, np.random.default_rng(seed)
        self.bound = np.full(num_envs, -1)
        self.ticket, self.ends, self.score = np.zeros((3, num_envs), dtype=np.int64)
        self.evaluations = 0
        """boundary episodes that ended"""
        self.errors: list[float] = []
        """of the mean that each evaluation found"""
        self._sample = np.random.default_rng(0).random((256, len(RANGES)))

    def run(self) -> World:
        self._begin(np.arange(len(self.bound)), 0)
        ended: list[np.ndarray] = []
        for step in range(1, self.steps + 1):
            which = np.flatnonzero(self.ends == step)
            if len(which):
                ended.append(np.stack((self.bound[which], self.ticket[which], self.score[which])))
                self._begin(which, step)
            if step % ROLLOUT == 0:
                self._decide(ended, step)
                ended = []
        return self

    def _progress(self, step: int) -> float:
        return step / self.steps if self.learns else 1.0

    def _begin(self, which: np.ndarray, step: int) -> None:
        low, high = self.curriculum.bounds.T
        values = self.rng.uniform(low, high, (len(which), len(low)))
        bound = self.rng.integers(0, 2 * len(low), len(which))
        bound[self.rng.random(len(which)) >= self.curriculum.evaluation_share] = -1
        at = np.flatnonzero(bound >= 0)
        values[at, bound[at] // 2] = self.curriculum.bounds.flat[bound[at]]
        length = self.rng.geometric(risk(values, self._progress(step)))
        length = np.minimum(length, EPISODE)
        self.bound[which], self.ends[which] = bound, step + length
        self.score[which] = self.rng.binomial(length, GOALS)
        self.ticket[which] = step * len(self.bound) + which

    def _decide(self, ended: list[np.ndarray], step: int) -> None:
        rows = np.concatenate(ended, 1) if ended else np.zeros((3, 0), dtype=np.int64)
        bounds, tickets, scores = rows[:, rows[0] >= 0]
        oldest, after = np.full(2 * len(RANGES), NEVER), (step + 1) * len(self.bound)
        if self.in_finishing_order:
            if self.forgets:
                fresh = tickets >= self._moved[bounds]
                bounds, scores = bounds[fresh], scores[fresh]
            tickets, after = self.evaluations + np.arange(len(bounds)), 0
        else:
            running = (self.bound >= 0) & (self.ticket >= self.curriculum.since[self.bound])
            np.minimum.at(oldest, self.bound[running], self.ticket[running])
        self.evaluations += rows.shape[1]
        self.curriculum.scores[:] = np.nan
        truth = self._truth(self._progress(step))
        before = self.curriculum.bounds.copy()
        self.curriculum.decide([Records(bounds, tickets, scores.astype(float), oldest, after)])
        self._moved[(self.curriculum.bounds != before).ravel()] = (step + 1) * len(self.bound)
        errors = (self.curriculum.scores - truth).ravel()
        self.errors += errors[np.isfinite(errors)].tolist()

    def _truth(self, progress: float) -> np.ndarray:
        """(P, 2) mean score at each bound, the other parameters drawn from their ranges."""
        low, high = self.curriculum.bounds.T
        values = np.broadcast_to(
            low + (high - low) * self._sample, (2 * len(low), *self._sample.shape)
        ).copy()
        for bound, at in enumerate(self.curriculum.bounds.flat):
            values[bound, :, bound // 2] = at
        return mean_score(values, progress).mean(1).reshape(-1, 2)


@dataclass(frozen=True)
class Outcome:
    """Of one training."""

    bias: float
    """mean over evaluations of the mean score found less the true one"""
    spread: float
    """standard deviation of the same"""
    width: float
    """mean width of the ranges at the end"""
    true_score: float
    """true mean score at the bounds at the end"""
    episodes: int | None
    """boundary episodes spent until the mean width was `until`"""


def outcome(
    rule: str, buffer: int, seed: int, num_envs: int = 256, steps: int = 4000, until: float = 0.0, learns: bool=True,
) -> Outcome:
    world = World(rule, buffer, num_envs, steps, seed, learns)
    reached: list[int] = []
    decide = world._decide

    def watch(ended: list[np.ndarray], step: int) -> None:
        decide(ended, step)
        if not reached and _width(world) >= until:
            reached.append(world.evaluations)

    world._decide = watch  # type: ignore[method-assign]
    world.run()
    errors = np.array(world.errors)
    score = float(world._truth(1.0).mean())
    episodes = reached[0] if reached else None
    return Outcome(float(errors.mean()), float(errors.std()), _width(world), score, episodes)


def _width(world: World) -> float:
    return float(np.ptp(world.curriculum.bounds, axis=1).mean())

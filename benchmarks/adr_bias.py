"""How the order and number of results change what ADR decides, on a synthetic policy.

    python benchmarks/adr_bias.py [--seeds 2] [--json]

Environments run side by side. In every control step an episode may earn a goal and may be lost;
the chance to lose it grows with the distance of the drawn values from the nominal and falls while
the policy learns, so episodes with few goals are also short. The mean score at a bound is known in
closed form, and every evaluation is held against it. Numpy only; takes about a minute.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
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

    @property
    def width(self) -> float:
        """Mean width of the ranges."""
        return float(np.ptp(self.curriculum.bounds, axis=1).mean())

    def decisions(self) -> Iterator[int]:
        """Train to the end; yields the step of each decision after it was taken."""
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
                yield step

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
        truth = self.true_scores(step)
        before = self.curriculum.bounds.copy()
        self.curriculum.decide([Records(bounds, tickets, scores.astype(float), oldest, after)])
        self._moved[(self.curriculum.bounds != before).ravel()] = (step + 1) * len(self.bound)
        errors = (self.curriculum.scores - truth).ravel()
        self.errors += errors[np.isfinite(errors)].tolist()

    def true_scores(self, step: int) -> np.ndarray:
        """(P, 2) mean score at each bound, the other parameters drawn from their ranges."""
        low, high = self.curriculum.bounds.T
        values = np.broadcast_to(
            low + (high - low) * self._sample, (2 * len(low), *self._sample.shape)
        ).copy()
        for bound, at in enumerate(self.curriculum.bounds.flat):
            values[bound, :, bound // 2] = at
        return mean_score(values, self._progress(step)).mean(1).reshape(-1, 2)


@dataclass(frozen=True)
class Outcome:
    """Of one training."""

    bias: float
    """mean over evaluations of the mean score found less the true one"""
    width: float
    """mean width of the ranges at the end"""
    true_score: float
    """true mean score at the bounds at the end"""
    episodes: int | None
    """boundary episodes spent until the mean width was `until`"""


@dataclass(frozen=True)
class Case:
    """One training; see `World`."""

    num_envs: int
    buffer: int
    learns: bool
    steps: int = 2500


CASES = (Case(256, 20, False), Case(1024, 20, False), Case(256, 60, False))


def outcome(rule: str, case: Case, seed: int, until: float = 0.8) -> Outcome:
    """Train once under a rule."""
    world = World(rule, case.buffer, case.num_envs, case.steps, seed, case.learns)
    episodes = None
    for _ in world.decisions():
        if episodes is None and world.width >= until:
            episodes = world.evaluations
    score = float(world.true_scores(case.steps).mean())
    return Outcome(float(np.mean(world.errors)), world.width, score, episodes)


def results(seeds: int) -> list[dict[str, Any]]:
    """One row per case and rule; of each figure the mean and the standard deviation over seeds."""
    rows = []
    for case in CASES:
        for rule in RULES:
            outcomes = [asdict(outcome(rule, case, seed)) for seed in range(seeds)]
            row: dict[str, Any] = {**asdict(case), "rule": rule}
            for key in outcomes[0]:
                values = [one[key] for one in outcomes]
                known = None not in values
                row[key] = [float(np.mean(values)), float(np.std(values))] if known else None
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown."""
    keys = ("bias", "width", "true_score", "episodes")
    lines = [
        "| environments | m | policy | rule | bias | width | true score at the bounds | episodes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = " | ".join(_text(row[key], 0 if key == "episodes" else 2) for key in keys)
        policy = "learns" if row["learns"] else "fixed"
        lines.append(
            f"| {row['num_envs']} | {row['buffer']} | {policy} | {row['rule']} | {figures} |"
        )
    return "\n".join(lines)


def _text(value: list[float] | None, digits: int) -> str:
    return "not reached" if value is None else f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="bias and cost of ADR's rules")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = results(given.seeds)
    print(json.dumps(rows) if given.json else table(rows))


if __name__ == "__main__":
    main()

"""Automatic domain randomization, Algorithms 1 and 2 of arXiv 1910.07113. Knows no simulator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .curriculum import Move, Range, Records, Uniform

SIDES = ("low", "high")


class AdrConfig(BaseModel):
    """The published constants (arXiv 1910.07113, table 15)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    evaluation_share: float = Field(default=0.5, ge=0, le=1)
    """probability that an episode evaluates a bound"""
    buffer: int = Field(default=240, ge=1)
    """results at a bound that make one evaluation"""
    widen_at: float = 20.0
    """mean score at or above which the bound moves away from the nominal"""
    narrow_at: float = 10.0
    """mean score at or below which the bound moves toward the nominal"""

    @model_validator(mode="after")
    def _ordered(self) -> AdrConfig:
        if self.narrow_at >= self.widen_at:
            raise ValueError(
                f"adr.narrow_at: {self.narrow_at:g} must be below adr.widen_at {self.widen_at:g}"
            )
        return self


class ADR(Uniform):
    """Ranges that widen where the policy copes and narrow where it does not.

    A run begins with every range at zero width on its nominal. Each episode draws every parameter
    U(low, high); with probability `evaluation_share` one bound is picked at random and its
    parameter set to it. The score of such an episode is a result of that bound. Whenever a bound
    has `buffer` results their mean decides: at least `widen_at` moves the bound a step outwards
    (to its limit at most), at most `narrow_at` a step inwards (to the nominal at most), and in
    every case those results are spent. A bound whose limit is the nominal cannot move and is never
    picked. An episode whose bound has moved meanwhile counts all the same, as published. Which
    episode evaluates what is drawn by `Draws`, on the simulation's device.

    The published loop is sequential. Here environments run side by side and episodes that fail
    early also finish early, so that a buffer filled in finishing order would first see failures
    only. Results therefore enter a buffer in the order in which their episodes *began*: a result
    waits until the bound's earlier episodes have ended.
    """

    def __init__(self, ranges: Sequence[Range], config: AdrConfig) -> None:
        super().__init__(ranges, np.array([[r.nominal, r.nominal] for r in ranges]))
        self.config = config
        self.evaluation_share = config.evaluation_share
        movable = [
            [r.step > 0 and r.limit_low < r.nominal, r.step > 0 and r.limit_high > r.nominal]
            for r in self.ranges
        ]
        self.movable = np.flatnonzero(np.array(movable, dtype=bool))
        self._results: list[list[tuple[int, float]]] = [[] for _ in range(2 * len(self.ranges))]

    @property
    def counts(self) -> np.ndarray:
        return np.array([len(held) for held in self._results], dtype=np.int64).reshape(-1, 2)

    def decide(self, records: Sequence[Records]) -> list[Move]:
        for one in records:
            for bound, ticket, score in zip(one.bounds, one.tickets, one.scores, strict=True):
                self._results[bound].append((int(ticket), float(score)))
        oldest = np.min([one.oldest for one in records], axis=0)
        # an episode that does not count may still have held up later ones
        return [
            move for bound in self.movable.tolist() for move in self._settle(bound, oldest[bound])
        ]

    def abandon(self, oldest: np.ndarray) -> None:
        for bound, first in enumerate(oldest):
            held = self._results[bound]
            self._results[bound] = [result for result in held if result[0] < first]

    def _settle(self, bound: int, oldest: int) -> list[Move]:
        """Evaluate a bound as often as its results in order of their beginning allow.

        `oldest` is the first ticket of the bound that still runs.
        """
        size = self.config.buffer
        if len(self._results[bound]) < size:
            return []
        results, moves = sorted(self._results[bound]), []
        while len(results) >= size and results[size - 1][0] < oldest:
            mean = math.fsum(score for _, score in results[:size]) / size
            del results[:size]
            moves += self._evaluate(bound, mean)
        self._results[bound] = results
        return moves

    def _evaluate(self, bound: int, mean: float) -> list[Move]:
        index, side = divmod(int(bound), 2)
        what = self.ranges[index]
        self.scores[index, side] = mean
        if mean >= self.config.widen_at:
            outwards = 1
        elif mean <= self.config.narrow_at:
            outwards = -1
        else:
            return []
        old = float(self.bounds[index, side])
        least, most = (
            (what.limit_low, what.nominal) if side == 0 else (what.nominal, what.limit_high)
        )
        away = -1 if side == 0 else 1
        new = min(max(old + away * outwards * what.step, least), most)
        # sums of steps miss the ends by rounding, and would leave a step of nothing to take
        new = next((end for end in (least, most) if abs(new - end) < 1e-9 * what.step), new)
        if new == old:
            return []
        self.bounds[index, side] = new
        self.num_moves += 1
        return [Move(what.name, SIDES[side], old, new, mean, self.config.buffer)]

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "bounds": self.bounds.tolist(),
            "scores": self.scores.tolist(),
            "num_moves": self.num_moves,
            "results": [[list(one) for one in held] for held in self._results],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            ValueError: the state is of other parameters, or has a bound beyond its limit.
        """
        super().load_state_dict(state)
        for what, (low, high) in zip(self.ranges, state["bounds"], strict=True):
            if low < what.limit_low or high > what.limit_high:
                raise ValueError(
                    f"randomization.parameters.{what.name}: saved range [{low:g}, {high:g}] goes"
                    f" beyond the limits [{what.limit_low:g}, {what.limit_high:g}]"
                )
        shape = self.bounds.shape
        self.bounds[:] = np.array(state["bounds"], dtype=np.float64).reshape(shape)
        self.scores[:] = np.array(state["scores"], dtype=np.float64).reshape(shape)
        self.num_moves = int(state["num_moves"])
        self._results = [[(int(t), float(s)) for t, s in held] for held in state["results"]]

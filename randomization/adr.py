"""Automatic domain randomization, Algorithms 1 and 2 of arXiv 1910.07113. Knows no simulator."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .curriculum import Move, Range, Records, Uniform
from .decision import Verdict
from .rolling import Rolling
from .tickets import Tickets

SIDES = ("low", "high")
_RECENT = 10  # evaluations of each bound that are called recent


class AdrConfig(BaseModel):
    """The published constants (arXiv 1910.07113, table 15), and how results are judged."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    evaluation_share: float = Field(default=0.5, ge=0, le=1)
    """probability that an episode evaluates a bound"""
    buffer: int = Field(default=240, ge=1)
    """results at a bound that make one evaluation"""
    widen_at: float = 20.0
    """mean score at or above which the bound moves away from the nominal"""
    narrow_at: float = 10.0
    """mean score at or below which the bound moves toward the nominal"""
    rule: Literal["tickets", "rolling"] = "tickets"
    """tickets: results in the order in which episodes began, those since the bound last moved;
    rolling: the last `buffer` results in finishing order, at each new one (arXiv 2210.13702)"""
    decision: Literal["published", "sequential"] = "published"
    """published: `buffer` results always; sequential: as soon as a test is sure, `buffer` at most"""
    error: float = Field(default=0.05, gt=0, lt=0.5)
    """probability that a sequential test misjudges a mean that is clear of both thresholds"""
    indifference: float | None = Field(default=None, gt=0)
    """by how much a mean must clear a threshold for `error` to hold; a quarter of the distance
    between the thresholds if not set"""

    @property
    def half_width(self) -> float:
        """Of the zone around each threshold in which either answer will do."""
        return self.indifference or (self.widen_at - self.narrow_at) / 4

    def with_thresholds(self, narrow_at: float | None, widen_at: float | None) -> AdrConfig:
        """These constants with other thresholds, where given.

        Raises:
            ValueError: they do not fit together.
        """
        other = {"narrow_at": narrow_at, "widen_at": widen_at}
        given = {name: value for name, value in other.items() if value is not None}
        return AdrConfig.model_validate({**self.model_dump(), **given}) if given else self

    @model_validator(mode="after")
    def _fit(self) -> AdrConfig:
        if self.narrow_at >= self.widen_at:
            raise ValueError(
                f"adr.narrow_at: {self.narrow_at:g} must be below adr.widen_at {self.widen_at:g}"
            )
        if self.rule == "rolling" and self.decision == "sequential":
            raise ValueError(
                "adr.decision: a sequential test needs results in the order of their beginning;"
                " expected adr.rule tickets, got rolling"
            )
        most = (self.widen_at - self.narrow_at) / 2
        if self.half_width > most:
            raise ValueError(
                f"adr.indifference: expected at most {most:g}, half the distance between"
                f" adr.narrow_at and adr.widen_at, got {self.indifference:g}"
            )
        return self


class ADR(Uniform):
    """Ranges that widen where the policy copes and narrow where it does not.

    A run begins with every range at zero width on its nominal. Each episode draws every parameter
    U(low, high); with probability `evaluation_share` one bound is picked at random and its
    parameter set to it. The score of such an episode is a result of that bound. Whenever a bound
    has results enough their mean decides: at least `widen_at` moves the bound a step outwards
    (to its limit at most), at most `narrow_at` a step inwards (to the nominal at most), and in
    every case those results are spent. A bound whose limit is the nominal cannot move and is never
    picked. Which episode evaluates what is drawn by `Draws`, on the simulation's device. Which
    results are judged, and when they are enough, is the matter of `Tickets` or `Rolling`.
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
        kind = Rolling if config.rule == "rolling" else Tickets
        own = {
            bound: config.with_thresholds(what.narrow_at, what.widen_at)
            for i, what in enumerate(self.ranges)
            for bound in (2 * i, 2 * i + 1)
        }
        self._results: Rolling | Tickets = kind(2 * len(self.ranges), config, own)
        self._evaluations = np.zeros((2 * len(self.ranges), 2), dtype=np.int64)
        self._recent: list[deque[bool]] = [deque(maxlen=_RECENT) for _ in self._evaluations]

    @property
    def counts(self) -> np.ndarray:
        return self._results.counts.reshape(-1, 2)

    @property
    def since(self) -> np.ndarray:
        return self._results.since

    @property
    def passes_above(self) -> float:
        """Mean score at or below which a bound fails."""
        return self.config.narrow_at

    def tallies(self) -> tuple[np.ndarray, np.ndarray]:
        recent = [(len(failed), sum(failed)) for failed in self._recent]
        return self._evaluations.copy(), np.array(recent, dtype=np.int64).reshape(-1, 2)

    def decide(self, records: Sequence[Records]) -> list[Move]:
        self._results.take(records)
        return [move for bound in self.movable.tolist() for move in self._settle(bound)]

    def abandon(self, bounds: np.ndarray, next_ticket: int) -> None:
        self._results.abandon(bounds, next_ticket)

    def _settle(self, bound: int) -> list[Move]:
        """Evaluate a bound as often as its results allow."""
        moves = []
        while (verdict := self._results.verdict(bound)) is not None:
            if (move := self._judge(bound, verdict)) is not None:
                self._results.moved(bound)
                moves.append(move)
        return moves

    def _judge(self, bound: int, verdict: Verdict) -> Move | None:
        index, side = divmod(int(bound), 2)
        what = self.ranges[index]
        self.scores[index, side] = verdict.mean
        failed = verdict.outwards <= 0
        self._evaluations[bound] += 1, failed
        self._recent[bound].append(failed)
        if verdict.outwards == 0:
            return None
        old = float(self.bounds[index, side])
        least, most = (
            (what.limit_low, what.nominal) if side == 0 else (what.nominal, what.limit_high)
        )
        away = -1 if side == 0 else 1
        new = min(max(old + away * verdict.outwards * what.step, least), most)
        # sums of steps miss the ends by rounding, and would leave a step of nothing to take
        new = next((end for end in (least, most) if abs(new - end) < 1e-9 * what.step), new)
        if new == old:
            return None
        self.bounds[index, side] = new
        self.num_moves += 1
        return Move(what.name, SIDES[side], old, new, verdict.mean, verdict.count)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "bounds": self.bounds.tolist(),
            "scores": self.scores.tolist(),
            "num_moves": self.num_moves,
            "results": self._results.state_dict(),
            "evaluations": self._evaluations.tolist(),
            "recent": [list(failed) for failed in self._recent],
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
        self._results.load_state_dict(state["results"])
        self._evaluations[:] = np.array(state["evaluations"], dtype=np.int64).reshape(-1, 2)
        self._recent = [deque(map(bool, failed), _RECENT) for failed in state["recent"]]

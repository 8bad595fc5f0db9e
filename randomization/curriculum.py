"""What every curriculum knows: the range of each parameter, and how it moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

NARROWEST = 1e-3
"""Normalised width that stands for anything narrower when npd takes a logarithm."""

NEVER = np.iinfo(np.int64).max
"""A ticket later than every episode's."""


@dataclass(frozen=True)
class Range:
    """One parameter as a curriculum sees it.

    Attributes:
        name: the parameter.
        nominal: its calibrated value, at which adr begins and beyond which no bound narrows.
        step: by how much a bound moves; 0 holds the parameter at its nominal.
        limit_low, limit_high: how far the bounds may go; the nominal lies between them.
        scale: the width that counts as 1 in npd.
        at_top: every episode takes the upper bound, none a draw from below it.
        widen_at, narrow_at: mean scores that move its bounds; None for those of all parameters.
    """

    name: str
    nominal: float
    step: float
    limit_low: float
    limit_high: float
    scale: float = 1.0
    at_top: bool = False
    widen_at: float | None = None
    narrow_at: float | None = None

    @property
    def active(self) -> bool:
        """Whether the parameter can vary at all."""
        return self.step > 0 and self.limit_high > self.limit_low


@dataclass(frozen=True)
class Move:
    """One bound that moved: `side` is "low" or "high", `mean` the score of `count` episodes."""

    name: str
    side: str
    old: float
    new: float
    mean: float
    count: int


class Records(NamedTuple):
    """Evaluations of bounds that ended, from one process.

    A bound is numbered 2 * parameter + side. Tickets order episodes by their beginning.
    """

    bounds: np.ndarray
    """(K,) int64"""
    tickets: np.ndarray
    """(K,) int64"""
    scores: np.ndarray
    """(K,) goals reached"""
    oldest: np.ndarray
    """(2P,) int64: of every bound the smallest ticket that still runs and counts, NEVER if none"""
    next: int
    """first ticket that may be issued from here on"""
    episodes: np.ndarray = np.zeros((0, 1), dtype=np.float32)
    """(E, P + 1) values and score of all episodes that ended, evaluations or not"""


class Uniform:
    """Every parameter is drawn U(low, high) from fixed bounds, independently.

    Attributes:
        ranges: the parameters, P of them.
        bounds: (P, 2) low and high.
        scores: (P, 2) mean score at the last evaluation of each bound; nan if there was none.
        counts: (P, 2) results that wait for the next evaluation of each bound.
        num_moves: bounds moved so far.
        evaluation_share: probability that an episode evaluates a bound.
        movable: (M,) int64, the bounds that can move, numbered 2 * parameter + side.
        since: (2P,) int64, first ticket of each bound that counts.
    """

    def __init__(self, ranges: Sequence[Range], bounds: np.ndarray) -> None:
        self.ranges = tuple(ranges)
        self.bounds = np.array(bounds, dtype=np.float64).reshape(len(self.ranges), 2)
        self.scores = np.full((len(self.ranges), 2), np.nan)
        self.num_moves = 0
        self.evaluation_share = 0.0
        self.movable = np.zeros(0, dtype=np.int64)
        self._scales = np.array([r.scale for r in self.ranges])
        self._active = np.array([r.active for r in self.ranges], dtype=bool)

    @property
    def counts(self) -> np.ndarray:
        return np.zeros((len(self.ranges), 2), dtype=np.int64)

    @property
    def since(self) -> np.ndarray:
        return np.zeros(2 * len(self.ranges), dtype=np.int64)

    def tallies(self) -> tuple[np.ndarray, np.ndarray]:
        """(2P, 2) evaluations of each bound, and how many did not pass: of the run, and of late."""
        none = np.zeros((2 * len(self.ranges), 2), dtype=np.int64)
        return none, none

    def decide(self, records: Sequence[Records]) -> list[Move]:
        """Take ended evaluations, one `Records` per process; returns the bounds that moved."""
        return []

    def abandon(self, bounds: np.ndarray, next_ticket: int) -> None:
        """Running episodes at these bounds are given up; their evaluations start over.

        Args:
            bounds: (K,) numbered 2 * parameter + side.
            next_ticket: first that may be issued from here on.
        """

    def npd(self) -> float:
        """Entropy of the drawn values in nats per dimension.

            H = 1/d sum_i log((high_i - low_i) / scale_i)

        (arXiv 1910.07113, section 5.2) over the d active parameters only. A range at zero width
        would make this minus infinity; a normalised width below `NARROWEST` counts as `NARROWEST`,
        so a run starts at log(1e-3) = -6.9.
        """
        if not self._active.any():
            return float(np.log(NARROWEST))
        widths = (self.bounds[:, 1] - self.bounds[:, 0]) / self._scales
        return float(np.log(np.maximum(widths[self._active], NARROWEST)).mean())

    def state_dict(self) -> dict[str, Any]:
        """Plain values from which `load_state_dict` continues exactly."""
        return {"names": [r.name for r in self.ranges]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            ValueError: the state is of other parameters.
        """
        names, saved = [r.name for r in self.ranges], list(state["names"])
        if names != saved:
            lacks = ", ".join(n for n in names if n not in saved) or "nothing"
            more = ", ".join(n for n in saved if n not in names) or "nothing"
            raise ValueError(
                "randomization.parameters: saved state is of other parameters:"
                f" it lacks {lacks} and has {more} besides"
            )

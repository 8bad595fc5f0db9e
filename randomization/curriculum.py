"""What every curriculum does: draw one value per parameter for every episode."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NARROWEST = 1e-3
"""Normalised width that stands for anything narrower when npd takes a logarithm."""


@dataclass(frozen=True)
class Range:
    """One parameter as a curriculum sees it.

    Attributes:
        name: the parameter.
        nominal: its calibrated value.
        step: by how much a bound moves; 0 holds the parameter at its nominal.
        limit_low, limit_high: how far the bounds may go; the nominal lies between them.
        scale: the width that counts as 1 in npd.
    """

    name: str
    nominal: float
    step: float
    limit_low: float
    limit_high: float
    scale: float = 1.0

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


class Uniform:
    """Every parameter is drawn U(low, high) from fixed bounds, independently.

    Attributes:
        ranges: the parameters, P of them.
        bounds: (P, 2) low and high.
        scores: (P, 2) mean score at the last evaluation of each bound; nan if there was none.
        counts: (P, 2) results that wait for the next evaluation of each bound.
        num_moves: bounds moved so far.
    """

    def __init__(self, ranges: Sequence[Range], bounds: np.ndarray, seed: int) -> None:
        self.ranges = tuple(ranges)
        self.bounds = np.array(bounds, dtype=np.float64).reshape(len(self.ranges), 2)
        self.scores = np.full((len(self.ranges), 2), np.nan)
        self.num_moves = 0
        self._rng = np.random.default_rng(seed)
        self._scales = np.array([r.scale for r in self.ranges])
        self._active = np.array([r.active for r in self.ranges], dtype=bool)

    @property
    def counts(self) -> np.ndarray:
        return np.zeros((len(self.ranges), 2), dtype=np.int64)

    def draw(self, env_ids: np.ndarray) -> np.ndarray:
        """Values (K, P) of the episodes that environments (K,) begin."""
        low, high = self.bounds[:, 0], self.bounds[:, 1]
        # rounding may put low + (high - low) u beyond high
        share = self._rng.random((len(env_ids), len(self.ranges)))
        return np.clip(low + (high - low) * share, low, high)

    def result(self, env_ids: np.ndarray, scores: np.ndarray, counted: np.ndarray) -> list[Move]:
        """Take the scores (K,) of ended episodes; returns the bounds that moved because of them.

        Episodes whose `counted` (K,) is False are forgotten.
        """
        return []

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
        return {
            "names": [r.name for r in self.ranges],
            # the generator's 128-bit integers are not every serialiser's
            "rng": json.dumps(self._rng.bit_generator.state),
        }

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
        self._rng.bit_generator.state = json.loads(state["rng"])

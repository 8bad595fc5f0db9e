"""How many results at a bound are enough, and what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEAST = 4
"""results of a bound before a sequential test may decide"""
LEAST_FREEDOM = 16
"""degrees of freedom that the estimated variance needs before a sequential test may decide"""
FLOOR = 0.5
"""least standard deviation that a sequential test believes in, in half-widths of indifference"""
MEMORY = 100
"""results after which earlier ones weigh 1/e in the estimated variance"""


class Verdict(NamedTuple):
    """What a bound's results say: `outwards` is 1 to widen, -1 to narrow, 0 to stay."""

    outwards: int
    mean: float
    count: int


def published(
    scores: Sequence[float], size: int, narrow_at: float, widen_at: float
) -> Verdict | None:
    """The mean of the first `size` results against two thresholds (arXiv 1910.07113, algorithm 1).

    None where there are fewer.
    """
    if len(scores) < size:
        return None
    mean = math.fsum(scores[:size]) / size
    outwards = 1 if mean >= widen_at else -1 if mean <= narrow_at else 0
    return Verdict(outwards, mean, size)


def sequential(
    scores: Sequence[float],
    narrow_at: float,
    widen_at: float,
    half_width: float,
    error: float,
    before: Spread,
) -> Verdict | None:
    """Sobel and Wald's test of three hypotheses on a mean; None where more results are needed.

    Two sequential probability ratio tests run side by side, one of `narrow_at - half_width`
    against `narrow_at + half_width` and one around `widen_at`. On the sum S of n results

        S - n threshold >= h says "above", <= -h says "below",
        h = variance / (2 half_width) log((1 - error) / error)

    and each test keeps its first answer. Above `widen_at` widens, below `narrow_at` narrows, and
    between them the bound stays. A mean at least `half_width` from both thresholds is misjudged
    with probability `error` at most (twice that between the thresholds, where both tests must be
    right), as far as results are normal and the variance is right.
    (M. Sobel and A. Wald, "A sequential decision procedure for choosing one of three hypotheses
    concerning the unknown mean of a normal distribution", Annals of Mathematical Statistics 20,
    1949, 502-522.)

    The variance is estimated from the n results and those `before`; until both together have
    `LEAST_FREEDOM` degrees of freedom nothing is decided.
    """
    if len(scores) < LEAST:
        return None
    counts = np.arange(1, len(scores) + 1)
    away = np.asarray(scores, dtype=np.float64) - narrow_at  # keeps the squares small
    sums = np.cumsum(away)
    squares = before.squares + np.cumsum(away**2) - sums**2 / counts
    freedom = before.freedom + counts - 1
    variance = np.maximum(squares / np.maximum(freedom, 1), (FLOOR * half_width) ** 2)
    reach = variance / (2 * half_width) * math.log((1 - error) / error)
    reach[(counts < LEAST) | (freedom < LEAST_FREEDOM)] = np.inf
    narrow = _first_answer(sums, reach)
    wide = _first_answer(sums - counts * (widen_at - narrow_at), reach)
    # a sum below the lower threshold is below the upper one too, and so on: they cannot disagree
    if narrow is not None and narrow[1] < 0:
        outwards, at = -1, narrow[0]
    elif wide is not None and wide[1] > 0:
        outwards, at = 1, wide[0]
    elif narrow is not None and wide is not None:
        outwards, at = 0, max(narrow[0], wide[0])
    else:
        return None
    count = at + 1
    return Verdict(outwards, math.fsum(scores[:count]) / count, count)


def _first_answer(excess: np.ndarray, reach: np.ndarray) -> tuple[int, int] | None:
    """Index and sign of the first excess beyond ±reach."""
    beyond = np.flatnonzero(np.abs(excess) >= reach)
    return (int(beyond[0]), int(np.sign(excess[beyond[0]]))) if len(beyond) else None


class Spread(NamedTuple):
    """Squares about their means of the results of a bound's earlier evaluations."""

    squares: float = 0.0
    freedom: float = 0.0
    """degrees of freedom"""

    def after(self, scores: Sequence[float]) -> Spread:
        """With those of one more evaluation; older ones fade, since the policy changes."""
        values = np.asarray(scores, dtype=np.float64)
        keep = math.exp(-len(values) / MEMORY)
        squares = float(np.square(values - values.mean()).sum())
        return Spread(self.squares * keep + squares, self.freedom * keep + len(values) - 1)

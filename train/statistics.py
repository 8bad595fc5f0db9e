"""Confidence intervals of what a number of episodes showed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""

RESAMPLES = 10_000
SEED = 0
_CHUNK = 1_000_000  # numbers drawn at once: 8 MB


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Score interval of a rate.

        (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)

    (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927.) Unlike p -+ z sqrt(p (1 - p)/n) it stays within
    0 and 1 and has a width where nothing, or everything, succeeded.

    Args:
        successes: of `trials`.
        trials: 1 or more.
        z: quantile of the standard normal distribution; 95 % by default.

    Raises:
        ValueError: no trials, or successes that are none of them.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"wilson: expected 0 <= successes <= trials, got {successes} of {trials}")
    p, share = successes / trials, z * z / trials
    centre = p + share / 2.0
    half = z * math.sqrt(p * (1.0 - p) / trials + share / (4.0 * trials))
    low, high = (centre - half) / (1.0 + share), (centre + half) / (1.0 + share)
    # exact at the ends, where rounding would leave 1e-17
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean.

    The quantiles of the means of samples drawn with replacement from the values (B. Efron, Ann.
    Stat. 7, 1979); it asks nothing of their distribution, which for goals per episode has two
    humps: the episodes that drop, and the others.

    Args:
        values: one or more.
        level: of confidence.
        resamples: samples drawn.
        seed: of the draws; the same values give the same interval.

    Raises:
        ValueError: no values.
    """
    data = np.asarray(values, np.float64)
    if not data.size:
        raise ValueError("bootstrap_mean: expected one value or more, got none")
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // data.size)
    means = [
        data[rng.integers(data.size, size=(min(rows, resamples - start), data.size))].mean(1)
        for start in range(0, resamples, rows)
    ]
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(np.concatenate(means), (tail, 1.0 - tail))
    return float(low), float(high)

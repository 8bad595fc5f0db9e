"""Intervals against arithmetic by hand, published tables and the whole bootstrap distribution."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from widen.train.statistics import Z95, bootstrap_mean, wilson


def test_wilson_is_the_published_interval() -> None:
    # R. G. Newcombe, Stat. Med. 17 (1998), table I, method 3
    for successes, trials, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_solves_the_score_equation() -> None:
    """Its ends are the rates from which the observed one is exactly z standard errors away."""
    successes, trials = 37, 512
    p = successes / trials
    for end in wilson(successes, trials):
        assert abs(p - end) == pytest.approx(Z95 * math.sqrt(end * (1 - end) / trials), rel=1e-9)


def test_wilson_has_a_width_where_nothing_and_everything_succeeded() -> None:
    share = Z95**2 / 500
    low, high = wilson(0, 500)
    assert low == 0.0
    assert high == pytest.approx(share / (1 + share))
    assert wilson(500, 500) == pytest.approx((1 - high, 1.0))


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (3, 2), (-1, 5), (0, 0)])
def test_wilson_refuses_what_is_no_rate(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, trials)


def test_bootstrap_is_the_quantile_of_all_resamples() -> None:
    """Of six values all 6^6 resamples can be listed: no drawing, no library."""
    values = [0.0, 1.0, 2.5, 4.0, 7.0, 19.0]
    means = sorted(sum(sample) / 6 for sample in itertools.product(values, repeat=6))
    expected = [means[round(q * (len(means) - 1))] for q in (0.025, 0.975)]
    assert bootstrap_mean(values, resamples=200_000) == pytest.approx(expected, abs=0.1)


def test_bootstrap_covers_like_the_normal_interval_when_there_are_many() -> None:
    values = np.random.default_rng(3).normal(10.0, 4.0, 2000)
    low, high = bootstrap_mean(values)
    error = values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - Z95 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + Z95 * error, abs=0.1 * error)


def test_bootstrap_repeats_itself() -> None:
    values = [3.1, 1.4, 4.1, 1.5, 5.9, 9.2, 2.6, 6.5]
    assert bootstrap_mean(values) == bootstrap_mean(np.array(values))
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)


def test_bootstrap_of_one_and_of_none() -> None:
    assert bootstrap_mean([7.0]) == (7.0, 7.0)
    with pytest.raises(ValueError, match="got none"):
        bootstrap_mean([])

"""The sequential test against the error rates that it states, and against hand arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from curriculum_loop import LATENCY, adr, play

from widen.randomization.adr import AdrConfig
from widen.randomization.decision import LEAST, LEAST_FREEDOM, Spread, published, sequential

NARROW, WIDEN, HALF = 10.0, 20.0, 2.5
KNOWN = Spread(squares=100.0 * 1e9, freedom=1e9)  # a standard deviation of 10, as good as known
REACH = 100.0 / (2 * HALF) * math.log(0.95 / 0.05)  # 58.9

Scores = Callable[[np.random.Generator, int], np.ndarray]


def judge(scores: Any, before: Spread = KNOWN) -> Any:
    return sequential(scores, NARROW, WIDEN, HALF, 0.05, before)


def test_the_test_by_hand() -> None:
    # each result is 40: the sum of n exceeds 20 n by the reach of 58.9 at n = 3, but 4 is least
    assert judge([40.0] * 3) is None
    assert judge([40.0] * 4) == (1, 40.0, LEAST)
    # 34: 14 n > 58.9 at n = 5
    assert judge([34.0] * 4) is None
    assert judge([34.0] * 9) == (1, 34.0, 5)
    # 0: 10 n > 58.9 at n = 6
    assert judge([0.0] * 5) is None
    assert judge([0.0] * 9) == (-1, 0.0, 6)
    # 14: above 10 at n = 15, below 20 at n = 10; both answers are needed
    assert judge([14.0] * 14) is None
    assert judge([14.0] * 20) == (0, 14.0, 15)
    # a first answer stays: above 10 by n = 4, and the zeros that follow say below 20
    assert judge([30.0] * 4 + [0.0] * 4) is None
    assert judge([30.0] * 4 + [0.0] * 6) == (0, 120 / 9, 9)


def test_nothing_is_decided_before_the_variance_is_known() -> None:
    few = Spread(10.0, LEAST_FREEDOM - 6.0)
    assert judge([50.0] * 6, few) is None
    assert judge([50.0] * 7, few) == (1, 50.0, 7)
    assert judge([50.0] * LEAST_FREEDOM, Spread()) is None
    assert judge([50.0] * (LEAST_FREEDOM + 1), Spread()) is not None


def test_the_variance_is_that_within_evaluations() -> None:
    spread = Spread().after([0.0, 2.0, 4.0])
    assert spread == (8.0, 2.0)
    spread = spread.after([100.0, 102.0])
    keep = math.exp(-2 / 100)
    assert spread == pytest.approx((8.0 * keep + 2.0, 2.0 * keep + 1.0))


def test_a_prefix_decides_and_what_follows_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.geometric(1 / 13, 240) - 1.0
        verdict = judge(scores, Spread(3000.0, 20.0))
        if verdict is None:
            continue
        assert judge(scores[: verdict.count - 1], Spread(3000.0, 20.0)) is None
        assert judge(scores[: verdict.count], Spread(3000.0, 20.0)) == verdict
        assert verdict.mean == pytest.approx(scores[: verdict.count].mean())


def two_humps(mean: float, top: float = 35.0) -> Scores:
    """Dropped at once, or about `top` goals."""
    return lambda rng, n: np.where(rng.random(n) < mean / top, rng.poisson(top, n), 0)


def until_dropped(mean: float) -> Scores:
    """Each goal is followed by another with the same probability."""
    return lambda rng, n: rng.geometric(1 / (mean + 1), n) - 1


def bell(mean: float) -> Scores:
    return lambda rng, n: rng.normal(mean, 12.0, n)


def evaluations(draw: Scores, count: int = 300, size: int = 240) -> tuple[np.ndarray, float]:
    """How often one bound narrows, stays and widens in successive evaluations; mean episodes."""
    rng, spread = np.random.default_rng(1), Spread()
    outcomes, used = np.zeros(3), 0
    for _ in range(count):
        scores = draw(rng, size)
        verdict = judge(scores, spread) or published(scores.tolist(), size, NARROW, WIDEN)
        assert verdict is not None
        spread = spread.after(scores[: verdict.count].tolist())
        outcomes[verdict.outwards + 1] += 1
        used += verdict.count
    return outcomes / count, used / count


@pytest.mark.parametrize("shape", [two_humps, until_dropped, bell])
def test_error_rates_hold_at_the_edges_of_indifference(shape: Callable[[float], Scores]) -> None:
    """5 % are stated; 9 % are 3 standard errors more, and the tail of few distinct scores."""
    stays = [0, 1, 0]
    for mean, right in (
        (NARROW - HALF, [1, 0, 0]),
        (NARROW + HALF, stays),
        (15.0, stays),
        (WIDEN - HALF, stays),
        (WIDEN + HALF, [0, 0, 1]),
    ):
        shares, used = evaluations(shape(mean))
        assert shares @ right >= 0.91, (mean, shares)
        assert used < 120, (mean, used)


@pytest.mark.parametrize("shape", [two_humps, until_dropped, bell])
def test_clear_cases_take_few_episodes(shape: Callable[[float], Scores]) -> None:
    for mean, right in ((2.0, 0), (32.0, 2)):
        shares, used = evaluations(shape(mean))
        assert shares[right] >= 0.97
        assert used < 80


def test_the_curriculum_decides_early_and_by_the_buffer_at_the_latest() -> None:
    config: dict[str, Any] = {"buffer": 40, "decision": "sequential"}
    (move,) = play(adr(LATENCY, **config), [30.0, 32.0] * 10)[:1]
    assert move.count == LEAST_FREEDOM + 1
    late = adr(LATENCY, **config)
    # a mean at the threshold, with a wide spread, decides nothing before the buffer is full
    moves = play(late, [0.0, 40.0] * 20)
    assert [(one.count, one.mean) for one in moves] == [(40, 20.0)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"rule": "rolling", "decision": "sequential"},
            "adr.decision: a sequential test needs results in the order of their beginning",
        ),
        ({"indifference": 5.5}, "adr.indifference: expected at most 5"),
        ({"error": 0.5}, "error"),
        ({"indifference": 0.0}, "indifference"),
        ({"decision": "bayes"}, "published"),
        ({"rule": "fifo"}, "rolling"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdrConfig.model_validate(wrong)

"""The claims of docs/adr.md on a synthetic policy, in small; benchmarks/adr_bias.py has the table."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "adr_bias.py"


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("adr_bias", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["adr_bias"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_true_score_is_what_episodes_earn(bench: Any) -> None:
    rng, values = np.random.default_rng(0), np.array([0.5, -0.4, 0.0, 1.0])
    lost = bench.risk(values, 0.5)
    length = np.minimum(rng.geometric(lost, 40_000), bench.EPISODE)
    earned = rng.binomial(length, bench.GOALS)
    assert bench.mean_score(values, 0.5) == pytest.approx(earned.mean(), abs=0.15)


def test_finishing_order_is_biased_and_tickets_are_not(bench: Any) -> None:
    case = bench.Case(num_envs=1024, buffer=20, learns=False, steps=600)
    bias = {
        rule: bench.outcome(rule, case, 0).bias
        for rule in ("tickets", "finishing order since the move")
    }
    assert bias["finishing order since the move"] < -3
    assert abs(bias["tickets"]) < 1


def test_old_results_widen_past_the_threshold(bench: Any) -> None:
    """Queues that count results from before the move go on where the policy fails already."""
    case = bench.Case(num_envs=512, buffer=20, learns=False, steps=1500)
    assert bench.outcome("rolling", case, 0).true_score < bench.THRESHOLDS["widen_at"]
    assert bench.outcome("tickets", case, 0).true_score > bench.THRESHOLDS["widen_at"]


def test_a_sequential_test_needs_fewer_episodes(bench: Any) -> None:
    case = bench.Case(num_envs=128, buffer=60, learns=False, steps=1200)
    always, early = (
        bench.outcome(rule, case, 0, until=0.2) for rule in ("tickets", "tickets, sequential")
    )
    assert early.episodes is not None
    assert always.episodes is None or early.episodes < 0.8 * always.episodes
    assert early.width > always.width

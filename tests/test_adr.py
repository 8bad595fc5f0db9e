"""Automatic domain randomization against hand arithmetic and its published rules."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from curriculum_loop import FIXED, LATENCY, MASS, POINT, Loop, adr, play
from hypothesis import given, settings
from hypothesis import strategies as st

from widen.randomization.adr import AdrConfig
from widen.randomization.config import RandomizationConfig
from widen.randomization.curriculum import Move, Range, Uniform


def uniform(config: RandomizationConfig, num_envs: int) -> Any:
    return Loop(config.make_curriculum(), num_envs)


@pytest.mark.parametrize("masked", [False, True])
def test_a_bound_follows_the_mean_of_its_buffer(masked: bool) -> None:
    curriculum = adr(LATENCY, masked=masked)  # only its high side can move
    assert play(curriculum, [19.0]) == []
    assert curriculum.counts.tolist() == [[0, 1]]
    assert play(curriculum, [21.0]) == [Move("latency", "high", 0.0, 0.2, 20.0, 2)]
    assert curriculum.counts.tolist() == [[0, 0]]
    assert play(curriculum, [19.0, 10.0]) == []
    assert curriculum.bounds.tolist() == [[0.0, 0.2]]
    assert curriculum.scores[0, 1] == 14.5


def test_thresholds_are_inclusive_and_what_lies_between_moves_nothing() -> None:
    curriculum = adr(LATENCY)
    sides = [
        ([20.0, 20.0], 0.2),
        ([19.0, 20.9], 0.2),
        ([10.0, 10.2], 0.2),
        ([21.0, 22.0], 0.4),
        ([10.0, 10.0], 0.2),
        ([0.0, 0.0], 0.0),
        ([0.0, 0.0], 0.0),
    ]
    for scores, high in sides:
        play(curriculum, scores)
        assert curriculum.bounds[0].tolist() == pytest.approx([0.0, high])
        assert curriculum.scores[0, 1] == pytest.approx(sum(scores) / 2)
    assert math.isnan(curriculum.scores[0, 0])
    assert curriculum.num_moves == 4


def test_bounds_stop_at_limits_and_at_the_nominal() -> None:
    curriculum = adr(MASS, buffer=1)
    moves = play(curriculum, [50.0] * 100)
    assert curriculum.bounds.tolist() == [[0.5, 1.25]]
    highs = [move.new for move in moves if move.side == "high"]
    assert highs == pytest.approx([1.1, 1.2, 1.25])
    lows = [move.new for move in moves if move.side == "low"]
    assert lows == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])
    assert curriculum.num_moves == len(moves) == 8
    moves = play(curriculum, [0.0] * 100)
    assert curriculum.bounds.tolist() == [[1.0, 1.0]]
    highs = [move.new for move in moves if move.side == "high"]
    assert highs == pytest.approx([1.15, 1.05, 1.0])


def test_half_of_the_episodes_evaluate_a_bound() -> None:
    curriculum = adr(MASS, evaluation_share=0.4, num_envs=20000)
    curriculum.bounds[:] = [[0.5, 1.25]]
    values = curriculum.draw(np.arange(20000))[:, 0]
    at_bound = np.isin(values, [0.5, 1.25])
    assert at_bound.mean() == pytest.approx(0.4, abs=0.015)  # and not 0.6
    assert (values == 0.5).sum() == pytest.approx((values == 1.25).sum(), rel=0.06)
    inside = values[~at_bound]
    assert inside.mean() == pytest.approx(0.875, abs=0.01)
    assert inside.std() == pytest.approx(0.75 / math.sqrt(12), abs=0.01)
    assert AdrConfig().evaluation_share == 0.5


def test_published_constants_are_the_defaults() -> None:
    assert AdrConfig().model_dump() == {
        "evaluation_share": 0.5,
        "buffer": 240,
        "widen_at": 20.0,
        "narrow_at": 10.0,
        "rule": "tickets",
        "decision": "published",
        "error": 0.05,
        "indifference": None,
    }


def test_bounds_that_cannot_move_are_never_picked() -> None:
    curriculum = adr(LATENCY, FIXED, POINT, num_envs=500)
    curriculum.draw(np.arange(500))
    curriculum.result(np.arange(500), np.zeros(500), np.ones(500, bool))
    assert curriculum.counts.sum() == curriculum.counts[0, 1] == 0  # all spent, two by two
    assert not np.isnan(curriculum.scores[0, 1])
    assert np.isnan(np.delete(curriculum.scores.reshape(-1), 1)).all()


def test_nothing_that_can_move_is_no_error() -> None:
    curriculum = adr(FIXED, POINT)
    assert curriculum.draw(np.array([0])).tolist() == [[3.0, 2.0]]
    assert curriculum.result(np.array([0]), np.array([50.0]), np.array([True])) == []


@pytest.mark.parametrize("masked", [False, True])
def test_results_that_do_not_count_are_forgotten(masked: bool) -> None:
    curriculum = adr(LATENCY, masked=masked)
    assert play(curriculum, [50.0] * 5, counted=False) == []
    assert curriculum.counts.sum() == 0
    # and one episode gives one result
    play(curriculum, [50.0])
    curriculum.result(np.array([0]), np.array([50.0]), np.array([True]))
    assert curriculum.counts.sum() == 1


def test_npd_by_hand() -> None:
    curriculum = adr(MASS, LATENCY, FIXED, POINT)
    assert curriculum.npd() == pytest.approx(math.log(1e-3))
    curriculum.bounds[0] = [0.9, 1.2]
    curriculum.bounds[1] = [0.0, 0.8]
    # two active parameters; latency's unit is 2 wide
    assert curriculum.npd() == pytest.approx((math.log(0.3) + math.log(0.4)) / 2)
    curriculum.bounds[1] = [0.0, 0.0]
    assert curriculum.npd() == pytest.approx((math.log(0.3) + math.log(1e-3)) / 2)


def test_a_configured_step_does_not_change_npds_unit() -> None:
    for step in (0.01, 0.3):
        config = RandomizationConfig(
            curriculum="uniform",
            parameters={"object_mass": {"step": step, "range": [0.5, 2.0]}},  # type: ignore[dict-item]
        )
        assert config.make_curriculum().npd() == pytest.approx(math.log(1.5))


def reload(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def random_run(curriculum: Any, steps: int, seed: int) -> list[Any]:
    """Everything a curriculum says while random environments of 16 begin and end."""
    rng, said = np.random.default_rng(seed), []
    for _ in range(steps):
        ids = np.flatnonzero(rng.random(16) < 0.4)
        scores, counted = rng.uniform(0, 40, len(ids)), rng.random(len(ids)) < 0.9
        said.append(curriculum.result(ids, scores, counted))
        said.append(curriculum.draw(ids).tolist())
    return said


@pytest.mark.parametrize("masked", [False, True])
def test_a_saved_state_continues_to_the_last_bit(masked: bool) -> None:
    ranges = (MASS, LATENCY, FIXED)
    first = adr(*ranges, num_envs=16, buffer=3, evaluation_share=0.5, seed=1, masked=masked)
    random_run(first, 57, seed=2)
    assert first.counts.sum() > 0
    second = adr(*ranges, num_envs=16, buffer=3, evaluation_share=0.5, seed=99, masked=masked)
    second.load_state_dict(reload(first.state_dict()))
    np.testing.assert_array_equal(first.scores, second.scores)
    continued = random_run(first, 60, seed=3)
    assert sum(map(len, continued[::2])) > 4  # moves happen, and they are the same
    assert continued == random_run(second, 60, seed=3)
    assert torch.equal(first.state_dict()["rng"], second.state_dict()["rng"])
    assert first.num_moves == second.num_moves


def test_a_foreign_state_is_refused() -> None:
    state = adr(MASS, LATENCY).state_dict()
    with pytest.raises(ValueError, match="it lacks fixed and has latency besides"):
        adr(MASS, FIXED).load_state_dict(state)
    with pytest.raises(ValueError, match="of 1 environments, expected 4"):
        adr(MASS, LATENCY, num_envs=4).load_state_dict(state)
    wide = adr(MASS)
    play(wide, [50.0] * 60)
    narrow = Range("mass", 1.0, 0.1, 0.8, 1.1)
    with pytest.raises(ValueError, match=r"mass: saved range .* beyond the limits \[0.8, 1.1\]"):
        adr(narrow).load_state_dict(wide.state_dict())


def test_uniform_draws_from_its_bounds_and_learns_nothing() -> None:
    ranges = np.array([[0.7, 0.8], [0.0, 1.0]])
    curriculum: Any = Loop(Uniform([MASS, LATENCY], ranges), 4000)
    values = curriculum.draw(np.arange(4000))
    assert values.min(0) == pytest.approx([0.7, 0.0], abs=1e-3)
    assert values.max(0) == pytest.approx([0.8, 1.0], abs=1e-3)
    assert curriculum.result(np.arange(4), np.full(4, 50.0), np.ones(4, bool)) == []
    again: Any = Loop(Uniform([MASS, LATENCY], curriculum.bounds), 4000, seed=5)
    again.load_state_dict(reload(curriculum.state_dict()))
    assert (again.draw(np.arange(9)) == curriculum.draw(np.arange(9))).all()


def test_step_0_holds_a_parameter_under_fixed_ranges_too() -> None:
    entries = {"object_mass": {"step": 0}, "gravity": {"range": [0.9, 1.1]}}
    config = RandomizationConfig.model_validate({"curriculum": "uniform", "parameters": entries})
    mass, gravity = uniform(config, 50).draw(np.arange(50)).T
    assert (mass == 1.0).all()
    assert gravity.std() > 0.03
    entries["object_mass"]["range"] = [0.5, 2.0]  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"object_mass\.range.*at odds with step 0"):
        RandomizationConfig.model_validate({"curriculum": "uniform", "parameters": entries})


@settings(max_examples=60, deadline=None)
@given(
    nominal=st.floats(-5, 5),
    below=st.floats(0, 3),
    above=st.floats(0, 3),
    step=st.floats(0, 1),
    share=st.floats(0, 1),
    buffer=st.integers(1, 4),
    scores=st.lists(st.floats(0, 50), min_size=1, max_size=60),
    how=st.sampled_from(
        [("tickets", "published"), ("tickets", "sequential"), ("rolling", "published")]
    ),
    seed=st.integers(0, 2**32),
)
def test_ranges_stay_in_order(
    nominal: float,
    below: float,
    above: float,
    step: float,
    share: float,
    buffer: int,
    scores: list[float],
    how: tuple[str, str],
    seed: int,
) -> None:
    what = Range("x", nominal, step, nominal - below, nominal + above)
    rule, decision = how
    curriculum = adr(
        what, buffer=buffer, evaluation_share=share, seed=seed, rule=rule, decision=decision
    )
    for score in scores:
        (value,) = curriculum.draw(np.array([0]))[0]
        low, high = curriculum.bounds[0]
        assert low <= value <= high
        moves = curriculum.result(np.array([0]), np.array([score]), np.array([True]))
        low, high = curriculum.bounds[0]
        assert what.limit_low <= low <= nominal <= high <= what.limit_high
        for move in moves:
            assert move.new != move.old
            assert abs(move.new - move.old) <= step * (1 + 1e-9) + 1e-12
        plain = curriculum.curriculum.state_dict()
        assert json.dumps(json.loads(json.dumps(plain))) == json.dumps(plain)
    assert (curriculum.counts < buffer + (rule == "rolling")).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 2), st.floats(0, 2), st.sampled_from([0.0, 0.1]), st.sampled_from([1, 3])
        ),
        min_size=1,
        max_size=6,
    )
)
def test_npd_is_the_mean_log_width_of_active_parameters(
    parts: list[tuple[float, float, float, int]],
) -> None:
    ranges = [
        Range(f"p{i}", 0.0, step, -2.0, 2.0, scale=scale)
        for i, (*_, step, scale) in enumerate(parts)
    ]
    curriculum = adr(*ranges).curriculum
    curriculum.bounds[:] = [[-below, above] for below, above, *_ in parts]
    logs = [
        math.log(max((below + above) / scale, 1e-3)) for below, above, step, scale in parts if step
    ]
    expected = sum(logs) / len(logs) if logs else math.log(1e-3)
    assert curriculum.npd() == pytest.approx(expected)


@pytest.mark.parametrize("rule", ["tickets", "rolling"])
def test_a_parameter_may_have_thresholds_of_its_own(rule: str) -> None:
    easy = Range("easy", 0.0, 0.2, 0.0, 1.0, widen_at=6.0, narrow_at=3.0)
    for score, expected in ((7.0, 0.2), (4.0, 0.0), (12.0, 0.2)):
        assert play(adr(easy, rule=rule), [score, score])[-1:] == (
            [Move("easy", "high", 0.0, 0.2, score, 2)] if expected else []
        )
    curriculum = adr(easy, rule=rule)
    play(curriculum, [7.0, 7.0, 2.9, 2.9])
    assert curriculum.bounds[0, 1] == 0.0
    assert play(adr(LATENCY, rule=rule), [7.0, 7.0]) == []


def test_thresholds_of_a_parameter_must_fit_together() -> None:
    with pytest.raises(ValueError, match=r"object_mass: narrow_at 10 must be below widen_at 4"):
        RandomizationConfig.model_validate({"parameters": {"object_mass": {"widen_at": 4}}})
    own = {"object_mass": {"widen_at": 4, "narrow_at": 2}, "object_size": None}
    config = RandomizationConfig.model_validate({"parameters": own})
    thresholds = {one.name: (one.narrow_at, one.widen_at) for one in config.ranges()}
    assert thresholds == {"object_mass": (2.0, 4.0), "object_size": (None, None)}

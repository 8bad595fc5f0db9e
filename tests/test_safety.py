"""Limits of commands, the judgement of readings, the state machine, and all of them together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from fake_hand import LOWER, NAMES, PERIOD, UPPER, check_commands
from hypothesis import given, settings
from hypothesis import strategies as st

from widen.deploy.contract import MaxAge
from widen.deploy.robot import Measurement
from widen.deploy.safety import (
    LIMIT_MARGIN,
    Limiter,
    MotorGuard,
    Problem,
    ReadingGuard,
    State,
    Supervisor,
)
from widen.envs.layout import OBJECT_POS, OBJECT_QUAT, joint_pos

TARGETS = st.lists(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=3, max_size=3),
    min_size=1,
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(
    TARGETS,
    st.floats(0.05, 20.0),
    st.floats(0.1, 800.0),
    st.lists(st.booleans(), max_size=40),
    st.lists(st.floats(-1.2, 1.2), min_size=3, max_size=3),
)
def test_no_target_gets_a_command_past_its_limits(
    targets: list[list[float]],
    speed: float,
    acceleration: float,
    rests: list[bool],
    start: list[float],
) -> None:
    limiter = Limiter(LOWER, UPPER, speed, acceleration, PERIOD)
    limiter.start(np.array(start))
    commands = []
    for t, target in enumerate(targets):
        resting = t < len(rests) and rests[t]
        commands.append(limiter.rest() if resting else limiter.step(np.array(target))[0])
    check_commands(np.array(commands), speed, acceleration, start)


def test_a_slow_joint_brakes_in_time_and_arrives() -> None:
    """u = 4 rad/s^2 x 50 ms = .2 rad/s: to .1 rad in moves of .01 rad more or less each."""
    limiter = Limiter(-np.ones(1), np.ones(1), 10.0, 4.0, PERIOD)
    limiter.start(np.zeros(1))
    moves = np.diff([0.0, *(float(limiter.step(np.array([0.1]))[0][0]) for _ in range(8))])
    np.testing.assert_allclose(
        moves[:6], [0.01, 0.02, 0.03, 0.07 / 3, 0.04 / 3, 0.01 / 3], atol=1e-9
    )
    assert limiter.position == pytest.approx(0.1)
    # and at the most speed from which one can still stop: v + (v - u) + ... = room
    room = np.array([0.5, 0.2, 0.05, 0.61])
    for r, v in zip(room, limiter._stoppable(room), strict=True):  # pyright: ignore
        travelled = sum(v - n * 0.2 for n in range(int(v / 0.2 + 1e-9) + 1))
        assert travelled == pytest.approx(r)


def test_a_healthy_command_passes_untouched() -> None:
    limiter = Limiter(LOWER, UPPER, 4.0, 160.0, PERIOD)
    limiter.start(np.zeros(3))
    for target in ([0.2, -0.2, 0.0], [0.0, 0.0, 0.2], [0.2, -0.2, 0.0]):
        command, names = limiter.step(np.array(target))
        np.testing.assert_array_equal(command, target)
        assert names == []


def guard(ages: tuple[float, float] = (0.1, 0.25)) -> ReadingGuard:
    readings = (joint_pos(3), OBJECT_POS, OBJECT_QUAT)
    allowed = {r.name: MaxAge(*ages) for r in readings}
    return ReadingGuard(readings, allowed, (LOWER, UPPER), PERIOD)


def good(time: float) -> dict[str, Any]:
    return {
        "joint_pos": Measurement(np.zeros(3), time),
        "object_pos": Measurement(np.zeros(3), time),
        "object_quat": Measurement(np.array([1.0, 0, 0, 0]), time),
    }


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("joint_pos", None, "missing_reading"),
        ("joint_pos", np.zeros(4), "bad_reading"),
        ("joint_pos", np.array(["a", "b", "c"]), "bad_reading"),
        ("joint_pos", np.array([0.0, math.inf, 0.0]), "bad_reading"),
        ("joint_pos", UPPER + LIMIT_MARGIN + 0.01, "out_of_range"),
        ("joint_pos", np.array([-1.14, 0.0, 0.0]), None),
        ("object_pos", np.array([0.0, 0.0, 1.1]), "out_of_range"),
        ("object_quat", np.zeros(4), "out_of_range"),
        ("object_quat", np.array([0.0, 0.0, 0.0, 1.04]), None),
    ],
)
def test_a_value_that_no_hand_can_have_holds(name: str, value: Any, problem: str | None) -> None:
    measured = good(10.0)
    measured.pop(name)
    if value is not None:
        measured[name] = Measurement(value, 10.0)
    expected = [Problem(f"{problem}:{name}", False)] if problem else []
    assert guard().check(measured, 10.0) == expected


def test_ages_are_of_the_last_good_value() -> None:
    judge = guard()
    assert judge.check(good(10.0), 10.1) == []  # exactly two periods old
    old = judge.check(good(10.0), 10.11)
    assert [p.name for p in old] == [f"stale_reading:{r}" for r in good(0.0)]
    assert not any(p.fault for p in old)
    # values that are new but useless age like none at all
    for now, fault in ((10.2, False), (10.25, False), (10.26, True)):
        broken = good(now) | {"object_quat": Measurement(np.zeros(4), now)}
        assert [p.fault for p in judge.check(broken, now)] == [fault]
    # a clock of its own
    assert not guard().check(good(1e9), 10.0)[0].fault
    # before anything was good nothing can be too old
    assert not any(p.fault for p in guard().check({}, 1e9))


def test_a_joint_cannot_jump_but_may_be_put_back() -> None:
    judge = guard()
    assert judge.check(good(10.0), 10.0) == []
    moved = good(10.05) | {"joint_pos": Measurement(np.array([-1.01, 0.0, 0.0]), 10.05)}
    assert judge.check(moved, 10.05) == [Problem("jump:joint_pos", False)]
    judge.forget()
    assert judge.check(moved, 10.05) == []


def test_motors() -> None:
    def measured(current: Any, heat: Any = (30.0, 30, 30)) -> dict[str, Measurement]:
        return {
            "joint_current": Measurement(np.array(current, np.float32), 0.0),
            "joint_temperature": Measurement(np.array(heat), 0.0),
        }

    motors = MotorGuard(NAMES, np.array([0.5, 0.5, 0.3]))
    assert motors.check(measured([0.5, 0.5, 0.3]), 0.0) == []
    assert motors.check(measured([0.5, 0.5, 0.3]), 1.9) == []  # 0.3 as float32 is more than 0.3
    assert motors.check(measured([0.4, -0.6, 0.0]), 0.0) == []
    assert motors.check(measured([0.4, -0.6, 0.0]), 0.5) == []
    assert motors.check(measured([0.4, -0.6, 0.0]), 0.51) == [Problem("overcurrent:b", True)]
    assert motors.check(measured([0.4, -0.5, 0.0]), 0.6) == []
    assert motors.check(measured([0.4, -0.6, 0.0]), 0.7) == []
    assert motors.check(measured([0.0] * 3, [69.9, math.nan, 20.0]), 1.0) == []
    assert motors.check(measured([0.0] * 3, [69.9, math.nan, 70.0]), 1.0)[0].name == "hot:c"
    assert motors.check({"joint_current": Measurement(np.zeros(2), 0.0)}, 1.0) == []
    old = [
        Problem(f"stale_reading:{name}", False) for name in ("joint_current", "joint_temperature")
    ]
    assert motors.check(measured([0.0] * 3), 2.1) == old


def test_states() -> None:
    one, times = Supervisor(), []
    hold, fault = Problem("late", False), Problem("hot", True)

    def step(*problems: Problem, home: bool = False, go: bool = False) -> State:
        times.append(len(times) + 1.0)
        return one.step(problems, times[-1], at_home=home, go_home=go)

    late = Problem("stale_reading:joint_pos", True)
    assert step(hold) is step(late) is State.DISARMED  # nothing to turn off yet
    assert step(go=True) is State.HOMING
    assert step(home=True, go=True) is State.HOMING
    assert step(home=True) is State.ACTIVE
    assert step(hold) is step(hold) is State.HOLD
    assert step() is State.ACTIVE
    assert step(go=True) is State.HOMING
    assert step(hold) is State.HOLD
    assert step() is State.HOMING
    assert step(hold, fault) is State.FAULT
    assert step() is step(home=True) is step(go=True) is State.FAULT
    one.rearm(15.0)
    assert one.state is State.DISARMED
    assert [(t, s.value, r) for t, s, r in one.history][-3:] == [
        (11, "homing", ""),
        (12, "fault", "hot"),
        (15, "disarmed", ""),
    ]

"""Limits of commands, the judgement of readings, the state machine, and all of them together."""

from __future__ import annotations

import io
import itertools
import math
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_hand import HOME, NAMES, PERIOD, FakePolicy, FakeRobot
from hypothesis import given, settings
from hypothesis import strategies as st

from widen.deploy.contract import MaxAge, Reach
from widen.deploy.controller import Controller, run
from widen.deploy.estop import EmergencyStop
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

LOWER, UPPER = np.array([-1.0, -0.5, 0.0]), np.array([1.0, 0.5, 0.2])
TARGETS = st.lists(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=3, max_size=3),
    min_size=1,
    max_size=40,
)


def check_commands(commands: np.ndarray, speed: float, acceleration: float, start: Any) -> None:
    """Plain differences of what was sent, the first from rest at `start`."""
    assert np.isfinite(commands).all()
    assert ((commands >= LOWER) & (commands <= UPPER)).all()
    moves = np.diff(np.concatenate([[start], commands]), axis=0) / PERIOD
    assert np.abs(moves).max() <= speed * (1 + 1e-9)
    changes = np.diff(np.concatenate([[np.zeros(3)], moves]), axis=0) / PERIOD
    assert np.abs(changes).max() <= acceleration * (1 + 1e-9)


@settings(max_examples=300, deadline=None)
@given(TARGETS, st.floats(0.05, 20.0), st.floats(0.1, 800.0), st.lists(st.booleans(), max_size=40))
def test_no_target_gets_a_command_past_its_limits(
    targets: list[list[float]], speed: float, acceleration: float, rests: list[bool]
) -> None:
    limiter = Limiter(LOWER, UPPER, speed, acceleration, PERIOD)
    limiter.start(np.array([0.9, -0.5, 0.1]))
    commands = []
    for t, target in enumerate(targets):
        resting = t < len(rests) and rests[t]
        commands.append(limiter.rest() if resting else limiter.step(np.array(target))[0])
    check_commands(np.array(commands), speed, acceleration, [0.9, -0.5, 0.1])


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
            "joint_current": Measurement(np.array(current), 0.0),
            "joint_temperature": Measurement(np.array(heat), 0.0),
        }

    motors = MotorGuard(NAMES, 0.5)
    assert motors.check(measured([0.4, -0.6, 0.0]), 0.0) == []
    assert motors.check(measured([0.4, -0.6, 0.0]), 0.5) == []
    assert motors.check(measured([0.4, -0.6, 0.0]), 0.51) == [Problem("overcurrent:b", True)]
    assert motors.check(measured([0.4, -0.5, 0.0]), 0.6) == []
    assert motors.check(measured([0.4, -0.6, 0.0]), 0.7) == []
    assert motors.check(measured([0.0] * 3, [69.9, math.nan, 20.0]), 1.0) == []
    assert motors.check(measured([0.0] * 3, [69.9, math.nan, 70.0]), 1.0)[0].name == "hot:c"
    assert motors.check({"joint_current": Measurement(np.zeros(2), 0.0)}, 1.0) == []


def test_states() -> None:
    one, times = Supervisor(), []
    hold, fault = Problem("late", False), Problem("hot", True)

    def step(*problems: Problem, home: bool = False, go: bool = False) -> State:
        times.append(len(times) + 1.0)
        return one.step(problems, times[-1], at_home=home, go_home=go)

    assert step(hold) is step(fault) is State.DISARMED  # nothing to turn off yet
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


VALUES = st.sampled_from(["good", "good", "good", "nan", "short", "far", "none", "jump", "raises"])
EVENTS = st.lists(
    st.tuples(
        VALUES,
        st.sampled_from([0.0, 0.0, 0.0, 0.06, 0.11, 0.2, 0.3, -50.0]),  # age [s]
        st.sampled_from([0.0, 0.0, 0.0, 0.06, 0.16, 0.6]),  # work [s]
        st.lists(st.floats(width=32), min_size=3, max_size=3),  # the policy's answer
        st.sampled_from(["", "", "", "", "", "", "press", "rearm", "drop", "broken"]),
    ),
    min_size=5,
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(EVENTS, st.floats(0.2, 8.0), st.floats(1.0, 400.0))
def test_whatever_comes_no_command_leaves_the_limits_and_a_fault_stays(
    events: list[Any], speed: float, acceleration: float
) -> None:
    estop = EmergencyStop()
    rearmed: list[int] = []

    def script(robot: FakeRobot, count: int) -> None:
        kind, age, work, _, event = events[min(count, len(events) - 1)]
        robot.kind, robot.age = kind, age
        robot.clock.time += work
        robot.drops += event == "drop"
        if event == "press":
            estop.press()
        if event == "rearm":
            rearmed.append(count)
            controller.rearm()
        robot.fault = "a motor burns" if event == "broken" else ""

    policy = FakePolicy(lambda count: events[count % len(events)][3], limits=(LOWER, UPPER))
    robot = FakeRobot(script, start=np.array([0.4, -0.3, 0.15]))
    controller = Controller(
        policy, robot, max_speed=speed, max_acceleration=acceleration, estop=estop
    )
    controller.loop(len(events) * PERIOD, on_fault="wait")
    # between two times with the motors off
    for run_of_commands, start in robot.stretches:
        check_commands(np.array(run_of_commands), speed, acceleration, start)
    # states: a fault is left for DISARMED only, and only by an explicit re-arming
    states = [State.DISARMED, *(state for _, state, _ in controller.history)]
    left = [after for before, after in itertools.pairwise(states) if before is State.FAULT]
    assert set(left) <= {State.DISARMED}
    assert len(left) <= len(rearmed)
    assert robot.disarmed == states.count(State.FAULT)
    if controller.state is State.FAULT:
        assert not robot.armed


def test_five_useless_answers_are_a_fault() -> None:
    robot = FakeRobot()
    report = run(FakePolicy(lambda count: [math.nan] * 3), robot, 10 * PERIOD)
    assert (report.state, report.reason) == ("fault", "bad_output")
    assert report.interventions_by_name == {"bad_output": 6}
    np.testing.assert_allclose(robot.commands, [HOME] * 6)
    assert not robot.armed


def test_misses_in_a_row_hold_and_then_fault() -> None:
    def script(robot: FakeRobot, count: int) -> None:
        robot.clock.time += {4: 0.16, 8: 1.01}.get(count, 0.01)

    report = run(FakePolicy(), FakeRobot(script), 60 * PERIOD)
    assert (report.state, report.reason) == ("fault", "deadline_missed")
    assert report.interventions_by_name == {"deadline_missed": 2}
    assert report.deadline_misses == 3 + 20


def test_the_object_falls_and_comes_back() -> None:
    reach = Reach("object_pos", (0.0, 0.0, 0.05), 0.1)
    heights = {**dict.fromkeys(range(4, 8), 0.16), 8: 0.14, 9: 0.12}

    def script(robot: FakeRobot, count: int) -> None:
        robot.extra = {"object_pos": np.array([0.0, 0.0, heights.get(count, 0.05)])}

    policy = FakePolicy(lambda count: HOME + 0.1, readings=(OBJECT_POS,), reach=reach)
    robot = FakeRobot(script)
    report = run(policy, robot, 14 * PERIOD)  # pyright: ignore
    assert report.drops == 1
    assert report.interventions_by_name == {"object_out_of_reach": 5}
    # home while it is away: .11 + .08 = .09 above the center is not yet back, .07 is
    moved = np.array(robot.commands)[:, 0] - HOME[0]
    expected = [0, 0.1, 0.1, 0.1, 0.1, 0.05, 0, 0, 0, 0.1, 0.1, 0.1, 0.1, 0.1]
    np.testing.assert_allclose(moved, expected, atol=1e-6)


@pytest.mark.parametrize("where", ["read", "command"])
def test_a_robot_that_raises_is_passive_and_the_report_says_why(where: str) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("cable out")

    robot = FakeRobot(lambda robot, count: setattr(robot, where, broken) if count == 3 else None)
    report = run(FakePolicy(), robot, 10 * PERIOD)
    assert (report.state, report.reason) == ("fault", "robot_error: OSError: cable out")
    assert report.cycles == 5
    assert (robot.disarmed, robot.stopped) == (1, 1)


@pytest.mark.parametrize("cause", ["file", "callback", "signal"])
def test_emergency_stop(cause: str, tmp_path: Path) -> None:
    file, flags = tmp_path / "stop", []
    press = {
        "file": file.touch,
        "callback": lambda: flags.append(True),
        "signal": lambda: signal.raise_signal(signal.SIGUSR1),
    }
    estop = EmergencyStop(file=file, callbacks=(lambda: bool(flags),))
    robot = FakeRobot(lambda robot, count: press[cause]() if count == 3 else None)
    before = signal.getsignal(signal.SIGUSR1)
    with estop.listen():
        report = run(FakePolicy(), robot, 20 * PERIOD, estop=estop)
    assert signal.getsignal(signal.SIGUSR1) is before
    assert (report.state, report.reason, estop.reason) == ("fault", "emergency_stop", cause)
    assert (report.cycles, len(robot.commands), robot.armed) == (4, 3, False)


def test_a_stop_file_from_before_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    with pytest.raises(ValueError, match="stop exists: expected none before"):
        EmergencyStop(file=tmp_path / "stop")


def test_a_key_stops() -> None:
    keys, estop = io.StringIO("\n"), EmergencyStop()
    with estop.listen(keys):
        for _ in range(100):
            if estop.pressed():
                break
            time.sleep(0.01)
    assert estop.reason == "key"


def test_a_broken_callback_stops() -> None:
    estop = EmergencyStop(callbacks=(lambda: 1 / 0 > 0,))
    assert estop.pressed()
    assert estop.reason == "callback: ZeroDivisionError"
    estop.reset()
    assert estop.pressed()


def test_rearming_goes_home_from_where_the_hand_then_is() -> None:
    estop = EmergencyStop()

    def script(robot: FakeRobot, count: int) -> None:
        if count == 3:
            estop.press()
        if count == 6:
            robot.pose = dict(zip(NAMES, HOME - 0.1, strict=True))  # it sank while passive
            controller.rearm()

    robot = FakeRobot(script)
    controller = Controller(FakePolicy(), robot, estop=estop)  # pyright: ignore
    controller.loop(12 * PERIOD, on_fault="wait")
    (first, _), (second, _) = robot.stretches
    assert len(first) == 3
    np.testing.assert_allclose(second[:3], [HOME - 0.1, HOME - 0.05, HOME], atol=1e-9)
    assert controller.state is State.ACTIVE

"""Whole runs on hands that fail: no command leaves its limits, and useless readings end in FAULT."""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_hand import HOME, LOWER, NAMES, PERIOD, UPPER, FakePolicy, FakeRobot, check_commands
from hypothesis import given, settings
from hypothesis import strategies as st

from widen.deploy.contract import Reach
from widen.deploy.controller import Controller, run
from widen.deploy.estop import EmergencyStop
from widen.deploy.safety import (
    State,
)
from widen.envs.layout import OBJECT_POS

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
        robot.fault = "a motor burns" if event == "broken" else robot.fault

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
        assert not robot.active


def test_five_useless_answers_are_a_fault() -> None:
    robot = FakeRobot()
    report = run(FakePolicy(lambda count: [math.nan] * 3), robot, 10 * PERIOD)
    assert (report.state, report.reason) == ("fault", "bad_output")
    assert report.interventions_by_name == {"bad_output": 6}
    np.testing.assert_allclose(robot.commands, [HOME] * 6)
    assert not robot.active


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
    assert (report.cycles, len(robot.commands), robot.active) == (4, 3, False)


def test_a_stop_file_from_before_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    with pytest.raises(ValueError, match="stop exists: expected none before"):
        EmergencyStop(file=tmp_path / "stop")


def test_a_stop_is_a_fault_also_before_anything_moves() -> None:
    estop = EmergencyStop()
    robot = FakeRobot(lambda robot, count: estop.press() if count == 3 else None)
    robot.kind = "none"
    report = run(FakePolicy(), robot, 400 * PERIOD, estop=estop)
    assert (report.state, report.reason, report.cycles) == ("fault", "emergency_stop", 4)
    assert (robot.commands, robot.disarmed) == ([], 1)


@settings(max_examples=100, deadline=None)
@given(EVENTS, st.lists(st.sampled_from(["nan", "short", "far", "none", "raises"]), min_size=1))
def test_useless_readings_end_in_fault_whatever_came_before(
    events: list[Any], bad: list[str]
) -> None:
    """Two periods to notice after the five that a reading may be old."""

    def script(robot: FakeRobot, count: int) -> None:
        if count < len(events):
            robot.kind, robot.age, work, _, event = events[count]
            robot.clock.time += work
            robot.drops += event == "drop"
        else:
            robot.kind, robot.age = bad[count % len(bad)], 0.0

    robot = FakeRobot(script)
    policy = FakePolicy(lambda count: events[count % len(events)][3])
    controller = Controller(policy, robot)
    while robot.reads < len(events) + 7:
        controller.cycle()
        robot.clock.time += PERIOD
    assert not robot.active
    assert controller.state in (State.FAULT, State.DISARMED)
    assert (controller.state is State.DISARMED) <= (robot.commands == [])


def test_a_policy_that_is_always_too_slow_is_a_fault() -> None:
    robot = FakeRobot()

    def answer(count: int) -> np.ndarray:
        robot.clock.time += 0.12
        return HOME

    report = run(FakePolicy(answer), robot, 400 * PERIOD)
    assert (report.state, report.reason) == ("fault", "deadline_missed")
    assert report.seconds < 3.0


def test_one_late_cycle_in_six_is_endured() -> None:
    robot = FakeRobot(
        lambda robot, count: setattr(
            robot.clock, "time", robot.clock.time + (0.06 if count % 6 == 0 else 0.0)
        )
    )
    assert run(FakePolicy(), robot, 600 * PERIOD).state == "active"


def test_the_way_home_waits_for_motors_that_are_being_armed() -> None:
    start = HOME + 0.3

    def script(robot: FakeRobot, count: int) -> None:
        robot.armed = count > 6  # type: ignore[attr-defined]
        if count <= 6:
            robot.pose = dict(zip(NAMES, start - 0.01 * count, strict=True))

    robot = FakeRobot(script, start=start)
    run(FakePolicy(), robot, 20 * PERIOD)
    sent = np.array(robot.commands)[:, 0] - start[0]
    expected = [*(-0.01 * np.arange(7)), -0.06, -0.108, -0.156]  # 5 moves of .048 rad
    np.testing.assert_allclose(sent[:10], expected, atol=1e-9)


def test_a_hand_found_beyond_its_limit_begins_there() -> None:
    robot = FakeRobot(start=HOME + np.array([1.0, 0.0, 0.0]))  # .1 rad beyond
    run(FakePolicy(), robot, 30 * PERIOD)
    np.testing.assert_allclose(robot.commands[0], HOME + np.array([1.0, 0.0, 0.0]))
    assert np.abs(np.diff(robot.commands, axis=0)).max() <= 0.05 + 1e-9
    np.testing.assert_allclose(robot.commands[-1], HOME)


def test_a_key_stops() -> None:
    end, keys = os.pipe()
    estop = EmergencyStop()
    with os.fdopen(end) as typed, estop.listen(typed):
        for _ in range(2):  # again after a reset
            os.write(keys, b"\n")
            for _ in range(200):
                if estop.pressed():
                    break
                time.sleep(0.01)
            assert estop.reason == "key"
            estop.reset()
        os.close(keys)


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

"""The control loop on a scripted clock, and its restraints."""

from __future__ import annotations

import math
import signal
from typing import Any

import numpy as np
import pytest
from fake_hand import HOME, PERIOD, FakePolicy, FakeRobot

from widen.deploy.controller import run
from widen.deploy.homing import HOMING_SPEED, ramp
from widen.deploy.robot import Measurement


def go(policy: Any, robot: Any, cycles: int, **options: Any) -> Any:
    return run(policy, robot, cycles * PERIOD, **options)


def test_deadlines_are_counted_and_nothing_drifts() -> None:
    work = {2: 0.12, 5: 0.06}

    def script(robot: FakeRobot, count: int) -> None:
        robot.clock.time += work.get(count, 0.01)

    robot = FakeRobot(script)
    report = go(FakePolicy(), robot, 10)
    # Cycle 2 runs from .10 to .22 and misses the ends of periods 2 and 3, so period 3 has no
    # command; the next begins at once in period 4. The sixth read, in period 6, misses its end.
    expected = [0.01, 0.06, 0.22, 0.23, 0.26, 0.36, 0.37, 0.41, 0.46]
    np.testing.assert_allclose(robot.times, expected, atol=1e-9)
    assert (report.cycles, report.deadline_misses) == (9, 3)
    assert (report.seconds, report.interventions) == (0.5, 0)
    assert report.cycle_ms_p50 == pytest.approx(10.0)
    assert report.cycle_ms_p99 == pytest.approx(np.percentile([10] * 7 + [60, 120], 99), abs=1e-3)


def test_starts_at_the_measured_pose_and_goes_home_slowly() -> None:
    start = np.array([0.4, -0.3, 0.32])
    policy, robot = FakePolicy(), FakeRobot(start=start)
    go(policy, robot, 15)
    commands = np.array(robot.commands)
    np.testing.assert_allclose(commands[0], start)
    moves = np.abs(np.diff(commands, axis=0))
    assert moves.max() <= HOMING_SPEED * PERIOD + 1e-5
    # half a radian at 1 rad/s: ten moves, and then the policy
    np.testing.assert_allclose(commands[10], HOME)
    assert policy.calls == 15 - 11
    np.testing.assert_allclose(policy.seen[0], HOME, atol=1e-6)
    np.testing.assert_allclose(policy.overruled, [HOME])


def test_a_bad_reading_holds_and_is_counted() -> None:
    def script(robot: FakeRobot, count: int) -> None:
        robot.kind = "nan" if count in (4, 5) else "good"
        robot.age = 1.0 if count == 7 else 0.0

    policy = FakePolicy(lambda count: HOME + 0.01 * (count + 1))
    robot = FakeRobot(script)
    report = go(policy, robot, 9)
    assert report.interventions_by_name == {
        "bad_reading:joint_pos": 2,
        "stale_reading:joint_pos": 1,
    }
    moved = np.array(robot.commands)[:, 0] - HOME[0]
    np.testing.assert_allclose(moved, 0.01 * np.array([0, 1, 2, 3, 3, 3, 4, 4, 5]), atol=1e-6)
    assert policy.calls == 5


def test_nothing_is_sent_before_the_first_good_reading() -> None:
    def script(robot: FakeRobot, count: int) -> None:
        robot.kind = "nan" if count < 3 else "good"

    robot = FakeRobot(script)
    assert go(FakePolicy(), robot, 5).interventions_by_name == {"bad_reading:joint_pos": 3}
    assert len(robot.commands) == 2


def test_readings_of_another_clock_or_kind() -> None:
    """Seconds since 1970 beside a monotonic clock would never be old."""
    ahead, missing, plain = FakeRobot(), FakeRobot(), FakeRobot()
    ahead.age = -1e9
    assert go(FakePolicy(), ahead, 3).interventions_by_name == {"stale_reading:joint_pos": 3}
    missing.read = dict  # type: ignore[method-assign]
    assert go(FakePolicy(), missing, 2).interventions_by_name == {"missing_reading:joint_pos": 2}
    plain.read = lambda: {"joint_pos": HOME}  # type: ignore[method-assign,return-value]
    with pytest.raises(ValueError, match="reading 'joint_pos': expected a Measurement, got nd"):
        go(FakePolicy(), plain, 2)
    assert ahead.commands == missing.commands == plain.commands == []
    assert plain.stopped == 1
    listed = FakeRobot()
    listed.read = lambda: {  # type: ignore[method-assign]
        "joint_pos": Measurement(list(HOME), listed.clock.now())  # pyright: ignore
    }
    go(FakePolicy(), listed, 2)
    # the commands are in the policy's order, what was read is in the robot's
    np.testing.assert_allclose(listed.commands[0], HOME[[1, 2, 0]], rtol=1e-6)


def test_limits_speed_and_bad_answers() -> None:
    answers = [HOME + 0.5, [0.9, 0.9, 1.3], [math.nan, 0.0, 0.0], HOME + 0.3]
    policy = FakePolicy(lambda count: answers[count])
    robot = FakeRobot()
    report = go(policy, robot, 5)
    first = HOME + 0.2  # 4 rad/s for 50 ms
    second = first + 0.2
    np.testing.assert_allclose(robot.commands[1:4], [first, second, second], atol=1e-6)
    np.testing.assert_allclose(robot.commands[4], HOME + 0.3, atol=1e-6)
    assert report.interventions_by_name == {"joint_speed": 2, "joint_limit": 1, "bad_output": 1}
    # the policy goes on from what was really sent, and forgets what was not a number
    np.testing.assert_allclose(policy.overruled[1:], [first, second, second], atol=1e-6)
    assert policy.resets == 2
    slow = FakeRobot()
    go(FakePolicy(lambda count: HOME + 0.5), slow, 3, max_speed=0.1)
    np.testing.assert_allclose(np.diff(slow.commands, axis=0), 0.005, atol=1e-6)


def test_dry_run_sends_nothing() -> None:
    start = np.array([0.9, 0.9, 0.9])
    policy, robot = FakePolicy(lambda count: start), FakeRobot(start=start)
    report = go(policy, robot, 6, dry_run=True)
    assert robot.commands == []
    assert policy.calls == 5
    np.testing.assert_allclose(policy.overruled, [start])
    assert (report.cycles, report.interventions) == (6, 0)


def test_after_a_drop_the_hand_goes_home_and_the_policy_begins_anew() -> None:
    def script(robot: FakeRobot, count: int) -> None:
        robot.drops = int(count >= 3)

    policy, robot = FakePolicy(lambda count: HOME + 0.1), FakeRobot(script)
    report = go(policy, robot, 8)
    moved = np.array(robot.commands)[:, 0] - HOME[0]
    np.testing.assert_allclose(moved, [0, 0.1, 0.1, 0.1, 0.05, 0, 0.1, 0.1], atol=1e-6)
    assert report.drops == 1
    assert policy.resets == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_robot_is_stopped_whatever_happens(error: type[BaseException]) -> None:
    def script(robot: FakeRobot, count: int) -> None:
        if count == 3:
            raise error

    robot = FakeRobot(script)
    if error is KeyboardInterrupt:
        assert go(FakePolicy(), robot, 100).cycles == 3
    else:
        assert go(FakePolicy(), robot, 100).reason == "robot_error: RuntimeError:"
    assert robot.stopped == 1


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_run_and_a_second_does_not_end_the_stopping(name: str) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)

    def script(robot: FakeRobot, count: int) -> None:
        if count == 3:
            signal.raise_signal(number)

    robot = FakeRobot(script)
    done: list[str] = []

    def stop() -> None:
        signal.raise_signal(number)
        done.append("passive")

    robot.stop = stop  # type: ignore[method-assign]
    assert go(FakePolicy(), robot, 100).cycles == 4  # the one in which it came is finished
    assert done == ["passive"]
    assert signal.getsignal(number) is before


def test_an_ignored_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        robot = FakeRobot(lambda robot, count: signal.raise_signal(signal.SIGHUP))
        assert go(FakePolicy(), robot, 4).cycles == 4
    finally:
        signal.signal(signal.SIGHUP, before)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"fake.onnx: differs from its golden vectors by 0.01"):
        go(FakePolicy(error=0.01), FakeRobot(), 3)
    robot = FakeRobot()
    robot.joint_names = ("a", "b", "thumb")
    with pytest.raises(ValueError, match="robot lacks c; the policy does not know thumb"):
        go(FakePolicy(), robot, 3)
    narrow = FakeRobot()
    narrow.joint_limits = (-np.ones(3), np.array([1.0, 0.9, 1.0]))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"narrower than the policy's: a -1\.\.\.0.9, needed"):
        go(FakePolicy(), narrow, 3)
    with pytest.raises(ValueError, match="max_speed: expected more than 0"):
        go(FakePolicy(), FakeRobot(), 3, max_speed=0.0)
    assert robot.commands == []


def test_ramp_ends_exactly() -> None:
    np.testing.assert_array_equal(ramp(HOME, HOME, 0.05), [HOME])
    poses = ramp(HOME, HOME + np.array([0.0, 0.0, 0.12]), 0.05)
    np.testing.assert_allclose(poses[:, 2] - HOME[2], [0.0, 0.04, 0.08, 0.12])

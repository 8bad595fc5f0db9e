"""The LEAP driver after a fault, in an unexpected error, while it arms, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leap_bench import PERIOD, age, arm, command_until, pose, torques, wait_for

from widen.deploy import leap as driver
from widen.deploy.contract import Contract
from widen.deploy.controller import Controller
from widen.deploy.leap import LeapRobot
from widen.deploy.leap_emulator import LeapEmulator
from widen.deploy.leap_motor import MotorHand
from widen.deploy.leap_registers import MOTOR_JOINTS, RAD_PER_TICK
from widen.deploy.runtime import OnnxPolicy
from widen.deploy.safety import State

pytest.importorskip("dynamixel_sdk")
POLICIES = Path(str(resources.files("widen.policies")))


@pytest.fixture(scope="module")
def contract() -> Contract:
    return OnnxPolicy(POLICIES / "cube_rotate.onnx").contract


@pytest.fixture
def emulator() -> Iterator[LeapEmulator]:
    with LeapEmulator(MotorHand(np.linspace(0.1, 0.4, 16))) as emulator:
        yield emulator


@pytest.fixture
def robot(emulator: LeapEmulator, contract: Contract) -> Iterator[LeapRobot]:
    robot = LeapRobot(emulator.port, contract)
    robot.start()
    yield robot
    robot.stop()


def test_a_controller_goes_on_after_a_fault_of_the_hand(emulator: LeapEmulator) -> None:
    policy = OnnxPolicy(POLICIES / "fingertip_reach.onnx")
    robot = LeapRobot(emulator.port, policy.contract)
    controller = Controller(policy, robot)

    def cycle_until(state: State) -> bool:
        until = time.monotonic() + 5.0
        while controller.state is not state and time.monotonic() < until:
            controller.cycle()
            time.sleep(policy.contract.control_period)
        return controller.state is state

    robot.start()
    try:
        assert cycle_until(State.ACTIVE)
        emulator.inject("overload")
        assert cycle_until(State.FAULT)
        assert "if_pip (motor 2) reports overload" in controller.report().reason
        assert robot.fault is None
        assert wait_for(lambda: not any(torques(emulator)))
        # rearmed with the error still there it faults again, for the same reason
        controller.rearm()
        controller.cycle()
        assert controller.state is not State.FAULT
        assert cycle_until(State.FAULT)
        assert "if_pip (motor 2) reports overload" in controller.report().reason
        emulator.clear()
        controller.rearm()
        controller.cycle()
        assert cycle_until(State.ACTIVE)
        assert all(torques(emulator))
    finally:
        robot.stop()


def test_a_hand_that_starts_again_has_no_old_fault(
    emulator: LeapEmulator, robot: LeapRobot
) -> None:
    arm(robot, emulator)
    assert wait_for(lambda: robot.fault is not None)  # nobody commands
    robot.stop()
    robot.start()
    assert robot.fault is None


def test_torque_that_a_killed_run_left_on_is_taken_away(
    emulator: LeapEmulator, contract: Contract, capsys: pytest.CaptureFixture[str]
) -> None:
    emulator.motors[5].put("torque_enable", 1)
    emulator.motors[5].put("bus_watchdog", 0xFF)
    robot = LeapRobot(emulator.port, contract)
    robot.start()
    told = capsys.readouterr().err
    assert "mf_mcp (motor 5) still has torque" in told
    assert told.count("\n") == 1
    robot.stop()
    assert not any(torques(emulator))
    assert emulator.motors[5].get("bus_watchdog") == 0
    robot.start()
    robot.stop()
    assert capsys.readouterr().err == ""


def test_an_unexpected_error_lets_go(
    emulator: LeapEmulator,
    robot: LeapRobot,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    held = arm(robot, emulator)

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a mistake in the driver")

    with monkeypatch.context() as patch:
        patch.setattr(robot, "_publish", broken)
        assert command_until(robot, held, lambda: robot.fault is not None)
        assert robot.fault == "ZeroDivisionError: a mistake in the driver"
        assert wait_for(lambda: not any(torques(emulator)))
        patch.setattr(robot, "_observe", broken)
        time.sleep(0.1)
    assert capsys.readouterr().err.count("a mistake") == 1
    assert robot._thread is not None
    assert robot._thread.is_alive()
    robot.disarm()
    assert wait_for(lambda: age(robot) < PERIOD)
    assert command_until(robot, held, lambda: all(torques(emulator)))


def test_stop_tries_again_after_an_error_of_the_port(
    emulator: LeapEmulator, robot: LeapRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm(robot, emulator)
    attempts: list[float] = []
    let_go = driver.let_go

    def fails_thrice(bus: Any) -> bool:
        attempts.append(time.monotonic())
        if len(attempts) <= 3:
            raise OSError(5, "Input/output error")
        return let_go(bus)

    monkeypatch.setattr(driver, "let_go", fails_thrice)
    robot.stop()
    assert len(attempts) == 4
    assert attempts[3] - attempts[0] > 0.03 - 0.002
    assert not any(torques(emulator))
    assert {motor.get("bus_watchdog") for motor in emulator.motors} == {0}


def test_stop_says_what_did_not_work(
    emulator: LeapEmulator,
    robot: LeapRobot,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arm(robot, emulator)
    monkeypatch.setattr(driver, "STOP", 0.1)
    emulator.inject("hung_bus")
    robot._ending = True
    thread = robot._thread
    assert thread is not None
    robot.stop()
    assert "the bus thread has not ended; the port is closed all the same" in (
        capsys.readouterr().err
    )
    thread.join(3.0)
    assert "the motors do not confirm that their torque is off" in capsys.readouterr().err


def passed_on(robot: LeapRobot) -> None:
    """Give a bus thread that this computer held up time, so that it skips no command."""
    if robot._armed:
        assert wait_for(lambda: robot._goal is None, 0.2)


def test_goals_do_not_jump_when_the_hand_takes_long_to_arm(
    emulator: LeapEmulator, robot: LeapRobot
) -> None:
    step = 0.05  # of a ramp at 1 rad/s [rad]
    emulator.inject("slow_bus", 0.015)
    target = pose(robot)
    home = target + np.linspace(0.3, 0.5, 16)
    states: list[bool] = []
    for k in range(80):
        states.append(getattr(robot, "armed", k > 0))
        if states[-1]:
            target = target + np.clip(home - target, -step, step)
        else:
            target = pose(robot)
        robot.command(target)
        time.sleep(PERIOD)
        passed_on(robot)
    assert states == sorted(states)  # False, then True
    assert states.index(True) > 3  # it did take long
    for motor in emulator.motors:
        _, goals = motor.goal_history()
        assert len(goals) > 4
        assert np.abs(np.diff(goals)).max() <= step + RAD_PER_TICK
        assert goals[-1] == pytest.approx(home[MOTOR_JOINTS.index(motor.joint)], abs=RAD_PER_TICK)


def test_the_controllers_way_home_begins_with_torque(emulator: LeapEmulator) -> None:
    policy = OnnxPolicy(POLICIES / "fingertip_reach.onnx")
    robot = LeapRobot(emulator.port, policy.contract)
    controller = Controller(policy, robot)
    robot.start()
    emulator.inject("slow_bus", 0.015)
    try:
        for _ in range(60):
            if controller.state is State.ACTIVE:
                break
            controller.cycle()
            time.sleep(policy.contract.control_period)
            passed_on(robot)
    finally:
        robot.stop()
    home = [policy.contract.home[policy.contract.joints.index(j)] for j in MOTOR_JOINTS]
    for motor, angle in zip(emulator.motors, home, strict=True):
        _, goals = motor.goal_history()
        way = goals[: np.flatnonzero(np.abs(goals - angle) < RAD_PER_TICK)[0] + 1]
        # homing is at 1 rad/s
        assert np.abs(np.diff(way)).max() <= policy.contract.control_period + RAD_PER_TICK


def test_armed_is_whether_commands_are_passed_on(emulator: LeapEmulator, robot: LeapRobot) -> None:
    assert not robot.armed
    held = arm(robot, emulator)
    assert robot.armed
    robot.disarm()
    assert not robot.armed
    assert command_until(robot, held, lambda: robot.armed)
    assert all(torques(emulator))
    assert wait_for(lambda: robot.fault is not None)  # nobody commands
    assert not robot.armed

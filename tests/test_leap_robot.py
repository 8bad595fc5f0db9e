"""The LEAP hand's driver against emulated motors, whose own registers are the truth."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from leap_bench import PERIOD, age, arm, command_until, pose, torques, wait_for

from widen.deploy import leap_bus
from widen.deploy.contract import Contract
from widen.deploy.leap import LeapRobot
from widen.deploy.leap_emulator import LeapEmulator
from widen.deploy.leap_motor import MotorHand
from widen.deploy.leap_registers import MOTOR_JOINTS
from widen.deploy.runtime import OnnxPolicy

pytest.importorskip("dynamixel_sdk")
POLICY = Path(str(resources.files("widen.policies") / "cube_rotate.onnx"))


@pytest.fixture(scope="module")
def contract() -> Contract:
    return OnnxPolicy(POLICY).contract


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


def test_angles_are_the_motors_ticks(emulator: LeapEmulator, robot: LeapRobot) -> None:
    # pi is zero: tick 2048; a tick is 2 pi / 4096
    ticks = np.array([motor.get("present_position") for motor in emulator.motors])
    np.testing.assert_allclose(pose(robot), (ticks - 2048) * 2 * np.pi / 4096, atol=1e-6)
    np.testing.assert_allclose(pose(robot), np.linspace(0.1, 0.4, 16), atol=np.pi / 4096 + 1e-6)
    assert robot.joint_names == MOTOR_JOINTS
    assert wait_for(lambda: "joint_temperature" in robot.read())
    assert set(robot.read()["joint_temperature"].value) == {25.0}
    assert wait_for(lambda: age(robot) < PERIOD)


def test_nothing_is_written_before_the_first_command(
    emulator: LeapEmulator, robot: LeapRobot
) -> None:
    before = [bytes(motor.table[:120]) for motor in emulator.motors]
    time.sleep(0.2)
    assert [bytes(motor.table[:120]) for motor in emulator.motors] == before
    robot.stop()
    assert [bytes(motor.table[:120]) for motor in emulator.motors] == before


def test_the_first_command_arms_where_the_hand_is(emulator: LeapEmulator, robot: LeapRobot) -> None:
    held = arm(robot, emulator)
    for motor in emulator.motors:
        side = motor.joint in ("if_rot", "mf_rot", "rf_rot")
        assert motor.get("operating_mode") == 5
        assert motor.get("position_p_gain") == (450 if side else 600)
        assert (motor.get("position_i_gain"), motor.get("position_d_gain")) == (0, 200)
        assert motor.get("goal_current") == 550
        assert motor.get("bus_watchdog") == 13  # 5 periods of 50 ms in units of 20 ms
        _, goals = motor.goal_history()
        np.testing.assert_allclose(goals, held[motor.id], atol=np.pi / 4096 + 1e-6)
    robot.stop()
    assert not any(torques(emulator))
    assert {motor.get("bus_watchdog") for motor in emulator.motors} == {0}
    robot.stop()


def test_targets_go_to_their_joints_within_the_limits(
    emulator: LeapEmulator, robot: LeapRobot, contract: Contract
) -> None:
    arm(robot, emulator)
    target = np.full(16, 9.0)
    target[MOTOR_JOINTS.index("if_mcp")] = 0.25
    ticks = {
        "if_mcp": round(2048 + 0.25 * 4096 / (2 * np.pi)),
        "if_rot": round(2048 + 1.047 * 4096 / (2 * np.pi)),
        "th_ipl": round(2048 + 1.88 * 4096 / (2 * np.pi)),
    }
    assert command_until(
        robot,
        target,
        lambda: all(emulator.motor(j).get("goal_position") == t for j, t in ticks.items()),
    )
    assert emulator.motors[1].joint == "if_mcp"
    robot.command(np.full(16, np.nan))
    robot.command(np.zeros(15))
    time.sleep(0.1)
    assert emulator.motor("if_rot").get("goal_position") == ticks["if_rot"]


def test_disarm_and_arm_again(emulator: LeapEmulator, robot: LeapRobot) -> None:
    held = arm(robot, emulator)
    robot.disarm()
    assert wait_for(lambda: not any(torques(emulator)))
    assert wait_for(lambda: age(robot) < PERIOD)
    time.sleep(0.1)
    assert not any(torques(emulator))
    assert command_until(robot, held, lambda: all(torques(emulator)))


def test_silence_of_the_controller_lets_go(emulator: LeapEmulator, robot: LeapRobot) -> None:
    held = arm(robot, emulator)
    robot.command(held)
    last = time.monotonic()
    assert wait_for(lambda: not any(torques(emulator)))
    assert time.monotonic() - last >= 5 * PERIOD - 0.01
    assert "no command for 5 control periods" in str(robot.fault)
    # latched: commands do nothing and readings age until somebody disarms
    assert command_until(robot, held, lambda: age(robot) > 0.3)
    assert not any(torques(emulator))
    robot.disarm()
    assert wait_for(lambda: age(robot) < PERIOD)
    assert command_until(robot, held, lambda: all(torques(emulator)) and robot.fault is None)


@pytest.mark.parametrize("name", ["hung_bus", "silent_motor", "slow_bus", "unplug", "wrong_crc"])
def test_a_bus_that_fails_makes_readings_old(
    emulator: LeapEmulator, robot: LeapRobot, name: str
) -> None:
    held = arm(robot, emulator)
    emulator.inject(name, 1.0 if name == "wrong_crc" else None)
    assert command_until(robot, held, lambda: age(robot) > 5 * PERIOD)
    begun = time.monotonic()
    robot.disarm()
    assert time.monotonic() - begun < 1.0
    if name != "unplug":  # a port that comes back is another one
        emulator.clear()
        assert wait_for(lambda: age(robot) < PERIOD)
        assert wait_for(lambda: not any(torques(emulator)))
    begun = time.monotonic()
    robot.stop()
    assert time.monotonic() - begun < 2.5


@pytest.mark.parametrize(("name", "amount"), [("lost_bytes", 0.01), ("noise", 0.05)])
def test_a_bus_with_a_few_errors_goes_on(
    emulator: LeapEmulator, robot: LeapRobot, name: str, amount: float
) -> None:
    held = arm(robot, emulator)
    emulator.inject(name, amount)
    ages: list[float] = []

    def look() -> bool:
        ages.append(age(robot))
        return len(ages) > 60

    assert command_until(robot, held, look, 6.0)
    assert robot.fault is None
    assert np.median(ages) < 2 * PERIOD
    robot.disarm()
    emulator.clear()
    assert wait_for(lambda: not any(torques(emulator)))


@pytest.mark.parametrize(
    ("name", "message"), [("overload", "if_pip.*overload"), ("hot_motor", "if_pip.*overheating")]
)
def test_a_motor_in_error_lets_all_go(
    emulator: LeapEmulator,
    robot: LeapRobot,
    name: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("widen.deploy.leap_motor.Heat.FAULT_RATE", 200.0)
    held = arm(robot, emulator)
    emulator.inject(name)
    assert command_until(robot, held, lambda: robot.fault is not None)
    assert wait_for(lambda: not any(torques(emulator)))
    assert re.search(message, str(robot.fault))
    robot.disarm()
    # still in error: no torque
    command_until(robot, held, lambda: robot.fault is not None and robot._latched, 1.0)
    assert not any(torques(emulator))


def test_a_motor_that_restarted_is_noticed(emulator: LeapEmulator, robot: LeapRobot) -> None:
    held = arm(robot, emulator)
    emulator.motor("mf_dip").reboot()
    assert command_until(robot, held, lambda: robot.fault is not None)
    assert "mf_dip (motor 7) lost its torque" in str(robot.fault)


def test_a_late_answer_is_not_the_next_reading(emulator: LeapEmulator, contract: Contract) -> None:
    bus = leap_bus.LeapBus(emulator.port)
    try:
        assert wait_for(lambda: bus.read_state() is not None)
        emulator.inject("slow_bus", 0.06)  # later than the 34 ms that the driver waits
        assert [bus.read_state() for _ in range(8)] == [None] * 8
        names = ("present_temperature", "hardware_error", "torque_enable") * 3
        assert [bus.read(name) for name in names] == [None] * 9
        emulator.clear()
        assert wait_for(lambda: bus.read_state() is not None)
        assert [int(bus.read_surely(name).max()) for name in names] == [25, 0, 0] * 3
    finally:
        bus.close()


CONTROLLER = """
import dataclasses, sys, time, numpy as np
from widen.deploy.leap import LeapRobot
from widen.deploy.runtime import OnnxPolicy
contract = dataclasses.replace(OnnxPolicy(sys.argv[2]).contract, control_period=0.1)
robot = LeapRobot(sys.argv[1], contract)
robot.start()
target = robot.read()["joint_pos"].value.astype(float)
while True:
    target = target + 0.01
    robot.command(target)
    print("sent", flush=True)
    time.sleep(0.05)
"""


def test_a_killed_controller_leaves_motors_that_stop(emulator: LeapEmulator) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, emulator.port, str(POLICY)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert wait_for(lambda: all(torques(emulator)), 20.0)
        for _ in range(10):
            process.stdout.readline()
        assert emulator.trips == 0
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    killed = time.monotonic()
    assert wait_for(lambda: emulator.trips == 16, 2.0)
    # 25 units of 20 ms after the last packet; the rest is this machine's
    assert 0.4 < time.monotonic() - killed < 0.5 + 0.3
    stopped = [motor.get("goal_position") for motor in emulator.motors]
    time.sleep(0.3)
    now = [motor.get("present_position") for motor in emulator.motors]
    assert np.abs(np.array(now) - stopped).max() < 30  # it brakes: 0.05 rad

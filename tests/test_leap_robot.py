"""The LEAP hand's driver against emulated motors, whose own registers are the truth."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from widen.deploy import leap_bus, leap_checks
from widen.deploy.contract import Contract
from widen.deploy.leap import LeapRobot
from widen.deploy.leap_arming import goal_currents, watchdog_ticks
from widen.deploy.leap_calibration import load_calibration, save_calibration
from widen.deploy.leap_emulator import LeapEmulator
from widen.deploy.leap_motor import MotorHand
from widen.deploy.leap_registers import MOTOR_JOINTS
from widen.deploy.runtime import OnnxPolicy

pytest.importorskip("dynamixel_sdk")
POLICY = Path(str(resources.files("widen.policies") / "cube_rotate.onnx"))
PERIOD = 0.05


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


def wait_for(condition: Callable[[], bool], seconds: float = 3.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    return condition()


def age(robot: LeapRobot) -> float:
    return time.monotonic() - robot.read()["joint_pos"].time


def pose(robot: LeapRobot) -> np.ndarray:
    return robot.read()["joint_pos"].value.astype(float)


def command_until(
    robot: LeapRobot, target: np.ndarray, condition: Callable[[], bool], seconds: float = 3.0
) -> bool:
    """Command at the control rate, as a controller does."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        robot.command(target)
        time.sleep(0.5 * PERIOD)
    return condition()


def torques(emulator: LeapEmulator) -> list[bool]:
    return [motor.torque_enabled for motor in emulator.motors]


def arm(robot: LeapRobot, emulator: LeapEmulator) -> np.ndarray:
    held = pose(robot)
    assert command_until(robot, held, lambda: all(torques(emulator)) and robot._armed)
    return held


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
    finally:
        bus.close()


CONTROLLER = """
import sys, time, numpy as np
from widen.deploy.leap import LeapRobot
from widen.deploy.runtime import OnnxPolicy
robot = LeapRobot(sys.argv[1], OnnxPolicy(sys.argv[2]).contract)
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
    # 13 units of 20 ms after the last packet; the rest is this machine's
    assert time.monotonic() - killed < 0.26 + 0.3
    stopped = [motor.get("goal_position") for motor in emulator.motors]
    time.sleep(0.3)
    now = [motor.get("present_position") for motor in emulator.motors]
    assert np.abs(np.array(now) - stopped).max() < 30  # it brakes: 0.05 rad


def silent(emulator: LeapEmulator, *joints: str) -> None:
    for joint in joints:
        emulator.inject("silent_motor", joint)


def test_what_start_refuses(emulator: LeapEmulator, contract: Contract) -> None:
    cases: list[tuple[str, int, int, str]] = [
        ("model_number", 1060, 1240, r"if_pip \(motor 2\) is of model 1060; expected XC330-M288"),
        ("hardware_error", 0b100100, 0, r"if_pip \(motor 2\) reports overheating and overload"),
        ("drive_mode", 1, 0, r"if_pip .*drive mode 1"),
        ("homing_offset", -7, 0, r"if_pip .*homing offset -7"),
        ("min_position_limit", 1800, 0, r"if_pip .*-0.506 to 1.885 rad.*-0.380 to"),
        ("max_position_limit", 3000, 4095, r"if_pip .*from -3.142 to 1.460"),
    ]
    for name, value, good, message in cases:
        emulator.motors[2].put(name, value)
        with pytest.raises(ValueError, match=message) as error:
            LeapRobot(emulator.port, contract).start()
        assert "\n" not in str(error.value)
        emulator.motors[2].put(name, good)
    silent(emulator, "mf_pip", "th_axl")
    with pytest.raises(
        ValueError, match=r"no answer from mf_pip \(motor 6\), th_axl \(motor 13\)$"
    ):
        LeapRobot(emulator.port, contract).start()
    emulator.clear()
    assert isinstance(emulator.hand, MotorHand)
    emulator.hand.angle[3] += 2 * np.pi  # counted a turn too much
    with pytest.raises(ValueError, match=r"if_dip \(motor 3\) is at 6\.\d+ rad, outside"):
        LeapRobot(emulator.port, contract).start()


def test_the_baud_rate_that_answers_is_told(emulator: LeapEmulator, contract: Contract) -> None:
    with pytest.raises(ValueError, match="no motor answers at 1000000 baud; one does at 4000000"):
        LeapRobot(emulator.port, contract, baud=1_000_000).start()
    with pytest.raises(ValueError, match="baud rate 1234"):
        LeapRobot(emulator.port, contract, baud=1234).start()


def test_a_bus_without_motors(emulator: LeapEmulator, contract: Contract) -> None:
    emulator.inject("hung_bus")
    with pytest.raises(ValueError, match=r"no motor answers .*is the hand's power on"):
        LeapRobot(emulator.port, contract).start()


def test_ports_that_cannot_be_opened(
    tmp_path: Path, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leap_bus, "_ports", lambda kind: [])
    with pytest.raises(ValueError, match=r"--port /dev/ttyNO: no such port; no /dev/ttyUSB\*"):
        LeapRobot("/dev/ttyNO", contract).start()
    monkeypatch.setattr(leap_bus, "_ports", lambda kind: [Path(f"/dev/tty{kind}0")])
    with pytest.raises(ValueError, match="found /dev/ttyACM0, /dev/ttyUSB0"):
        LeapRobot("/dev/ttyNO", contract).start()
    (tmp_path / "file").write_text("no port")
    with pytest.raises(ValueError, match="cannot be opened"):
        LeapRobot(str(tmp_path / "file"), contract).start()

    def forbidden(port: str, baud: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(leap_bus, "_open", forbidden)
    with pytest.raises(ValueError, match="no permission; add yourself to the group dialout"):
        LeapRobot(str(tmp_path / "file"), contract).start()


def test_without_the_sdk(tmp_path: Path, contract: Contract) -> None:
    code = (
        "import sys; sys.modules['dynamixel_sdk'] = None\n"
        "from widen.deploy.leap_bus import LeapBus\n"
        "try: LeapBus('/dev/null')\n"
        "except ValueError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "the LEAP hand needs dynamixel-sdk: pip install 'widen[leap]'\n"


def test_a_robot_computer_needs_neither_torch_nor_mujoco() -> None:
    code = "import sys, widen.deploy.leap, widen.deploy.leap_emulator; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "mujoco", "dynamixel_sdk", "serial"} & set(loaded)


def test_a_slow_usb_port_is_hinted_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leap_bus, "_LATENCY", tmp_path)
    (tmp_path / "ttyUSB7").mkdir()
    timer = tmp_path / "ttyUSB7" / "latency_timer"
    timer.write_text("1\n")
    leap_checks.hint_latency("/dev/ttyUSB7")
    leap_checks.hint_latency("/dev/ttyUSB8")
    assert capsys.readouterr().err == ""
    timer.write_text("16\n")
    leap_checks.hint_latency("/dev/ttyUSB7")
    assert "latency timer 16 ms" in capsys.readouterr().err


def test_currents_and_watchdogs_by_hand() -> None:
    # 0.27 N m is 550 mA, so 0.135 N m is 275 mA
    force = np.array([0.27, 0.135, np.inf])
    assert goal_currents(force, None).tolist() == [550, 275, 550]
    assert goal_currents(force, 0.35).tolist() == [350, 275, 350]
    assert [watchdog_ticks(s) for s in (0.25, 0.1, 0.05, 0.001, 9.0)] == [13, 5, 3, 1, 127]


def test_a_contract_for_another_hand(contract: Contract) -> None:
    other = dataclasses.replace(contract, joints=("a", *contract.joints[1:]))
    with pytest.raises(ValueError, match="expected 'leap'"):
        LeapRobot("/dev/null", other)
    with pytest.raises(ValueError, match="current limit 3 A"):
        LeapRobot("/dev/null", contract, current_limit=3.0)
    with pytest.raises(ValueError, match="bus rate"):
        LeapRobot("/dev/null", contract, bus_hz=0.0)


def test_a_motors_own_limit_comes_first(emulator: LeapEmulator, contract: Contract) -> None:
    emulator.motors[4].put("current_limit", 300)
    robot = LeapRobot(emulator.port, contract, current_limit=0.4)
    robot.start()
    try:
        arm(robot, emulator)
        assert [emulator.motors[id].get("goal_current") for id in (3, 4, 5)] == [400, 300, 400]
    finally:
        robot.stop()


def test_calibration_moves_readings_and_goals(
    emulator: LeapEmulator, contract: Contract, tmp_path: Path
) -> None:
    file = tmp_path / "offsets.json"
    offsets = dict.fromkeys(MOTOR_JOINTS, 0.0) | {"if_pip": 0.1}
    save_calibration(file, offsets, "zero")
    robot = LeapRobot(emulator.port, contract, calibration=file)
    robot.start()
    try:
        # the motor stands at 0.14, of which 0.1 is its offset
        assert pose(robot)[2] == pytest.approx(0.14 - 0.1, abs=0.001)
        held = arm(robot, emulator)
        held[2] = 0.3
        tick = round(2048 + 0.4 * 4096 / (2 * np.pi))
        assert command_until(robot, held, lambda: emulator.motors[2].get("goal_position") == tick)
    finally:
        robot.stop()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a file that widen leap calibrate wrote"),
        ('{"schema": "other/1"}', "expected a file that widen leap calibrate wrote"),
        ('{"schema": "widen.leap_calibration/1", "offsets": {"if_pip": 0}}', "expected offsets of"),
    ],
)
def test_files_that_are_no_calibration(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "offsets.json"
    with pytest.raises(ValueError, match="No such file"):
        load_calibration(file)
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_calibration(file)


def test_offsets_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "offsets.json"
    save_calibration(file, dict.fromkeys(MOTOR_JOINTS, 0.01), "zero")
    assert load_calibration(file).tolist() == [0.01] * 16
    data = json.loads(file.read_text())
    for wrong in (1.5, "a", True, None, float("nan")):
        data["offsets"]["if_dip"] = wrong
        file.write_text(json.dumps(data))
        with pytest.raises(ValueError, match=r"if_dip: expected at most 0\.8 rad"):
            load_calibration(file)

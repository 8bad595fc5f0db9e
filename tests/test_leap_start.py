"""What a LEAP hand must have right before it starts, and its calibration."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import termios
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from leap_bench import arm, command_until, pose

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


def silent(emulator: LeapEmulator, *joints: str) -> None:
    for joint in joints:
        emulator.inject("silent_motor", joint)


def test_what_start_refuses(emulator: LeapEmulator, contract: Contract) -> None:
    cases: list[tuple[str, int, int, str]] = [
        ("model_number", 1060, 1240, r"if_pip \(motor 2\) is of model 1060; expected XC330-M288"),
        ("hardware_error", 0b100100, 0, r"if_pip \(motor 2\) reports overheating and overload"),
        ("drive_mode", 1, 0, r"if_pip .*drive mode 1.*; expected 0"),
        ("drive_mode", 4, 0, r"if_pip .*drive mode 4.*; expected 0"),
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
    # a turn too much, or further outside than the controller ever takes for a reading
    upper = contract.upper[contract.joints.index("if_dip")]
    for angle in (0.16 + 2 * np.pi, upper + 0.16):
        emulator.hand.angle[3] = angle
        with pytest.raises(ValueError, match=r"if_dip \(motor 3\) is at \d\.\d+ rad, outside"):
            LeapRobot(emulator.port, contract).start()
    emulator.hand.angle[3] = upper + 0.14
    robot = LeapRobot(emulator.port, contract)
    robot.start()
    robot.stop()


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
    assert told.stdout == "the LEAP hand needs dynamixel-sdk: pip install dynamixel-sdk\n"


def test_a_robot_computer_needs_neither_torch_nor_mujoco() -> None:
    code = "import sys, widen.deploy.leap, widen.deploy.leap_emulator; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "mujoco", "dynamixel_sdk", "serial"} & set(loaded)


def test_the_emulator_needs_no_sdk() -> None:
    code = (
        "import sys; sys.modules['dynamixel_sdk'] = sys.modules['serial'] = None\n"
        "from widen.train.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["leap", "emulate", "--hand", "motors", "--seconds", "0.2"]
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_port_is_used_by_one_program(emulator: LeapEmulator, contract: Contract) -> None:
    robot = LeapRobot(emulator.port, contract)
    robot.start()
    try:
        speed = termios.tcgetattr(emulator._ends[1])[4:6] if emulator._ends else None
        # neither another bus here nor another program, and the rate stays as it is
        code = "import sys; from widen.train.cli import main; sys.exit(main(sys.argv[1:]))"
        check = [sys.executable, "-c", code, "leap", "check", "--baud", "57600", "--port"]
        message = f"--port {emulator.port}: in use by another program"
        with pytest.raises(ValueError, match=message):
            leap_bus.LeapBus(emulator.port, 57600)
        told = subprocess.run([*check, emulator.port], capture_output=True, text=True)
        assert told.returncode == 2
        assert message in told.stderr
        assert emulator._ends is not None
        assert termios.tcgetattr(emulator._ends[1])[4:6] == speed
        arm(robot, emulator)
    finally:
        robot.stop()
    leap_bus.LeapBus(emulator.port).close()
    with pytest.raises(ValueError, match="baud rate"):
        leap_bus.LeapBus(emulator.port, 1234)
    leap_bus.LeapBus(emulator.port).close()


def test_an_earlier_session_leaves_nothing_that_slows_the_hand(
    emulator: LeapEmulator, contract: Contract
) -> None:
    left = {
        "profile_velocity": 20,
        "profile_acceleration": 5,
        "goal_pwm": 100,
        "feedforward_1st_gain": 50,
        "feedforward_2nd_gain": 60,
    }
    for motor in emulator.motors:
        motor.put("operating_mode", 5)  # changing it would reset some of them
        for name, value in left.items():
            motor.put(name, value)
    emulator.motors[4].put("pwm_limit", 700)
    robot = LeapRobot(emulator.port, contract)
    robot.start()
    try:
        arm(robot, emulator)
        for motor in emulator.motors:
            now = [motor.get(name) for name in left]
            assert now == [0, 0, 700 if motor.id == 4 else 885, 0, 0]
    finally:
        robot.stop()


def test_what_a_motor_may_draw(contract: Contract) -> None:
    robot = LeapRobot("/dev/null", contract)
    np.testing.assert_allclose(robot.max_currents, 1.2 * 0.55 + 0.03)
    robot = LeapRobot("/dev/null", contract, current_limit=0.3)
    np.testing.assert_allclose(robot.max_currents, np.full(16, 0.39))
    force = np.array(contract.force_limit)
    force[contract.joints.index("th_ipl")] = 0.135  # 275 mA
    weak = dataclasses.replace(contract, force_limit=tuple(force.tolist()))
    most = LeapRobot("/dev/null", weak).max_currents
    np.testing.assert_allclose(most, [*[0.69] * 15, 0.36])


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

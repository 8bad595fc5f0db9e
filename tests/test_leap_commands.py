"""widen leap check, calibrate and emulate, and the MuJoCo hand on the emulated bus."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from widen.deploy.contract import Contract
from widen.deploy.leap import LeapRobot
from widen.deploy.leap_calibration import load_calibration
from widen.deploy.leap_emulator import LeapEmulator
from widen.deploy.leap_motor import COUNT, Drive, MotorHand
from widen.deploy.leap_registers import MOTOR_JOINTS
from widen.deploy.leap_sim_hand import PoseSender
from widen.deploy.runtime import OnnxPolicy
from widen.train.cli import main
from widen.train.cli_leap import make_emulator, make_sim_hand

pytest.importorskip("dynamixel_sdk")
POLICY = Path(str(resources.files("widen.policies") / "cube_rotate.onnx"))


@pytest.fixture(scope="module")
def contract() -> Contract:
    return OnnxPolicy(POLICY).contract


@pytest.fixture
def emulator() -> Iterator[LeapEmulator]:
    with LeapEmulator(MotorHand(np.full(COUNT, 0.05))) as emulator:
        yield emulator


def wait_for(condition: Callable[[], bool], seconds: float = 3.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    return condition()


def test_check_lists_the_motors(emulator: LeapEmulator, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leap", "check", "--port", emulator.port, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert [motor["joint"] for motor in report["motors"]] == list(MOTOR_JOINTS)
    assert report["motors"][5]["position"] == pytest.approx(0.05, abs=0.001)
    assert {motor["voltage"] for motor in report["motors"]} == {5.0}
    assert main(["leap", "check", "--port", emulator.port]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["if_mcp", "1", "+0.051", "0", "25", "5.0", "+0.0000", "ok"]
    assert lines[-1] == "ok"


def test_check_says_what_is_wrong(
    emulator: LeapEmulator, capsys: pytest.CaptureFixture[str]
) -> None:
    emulator.inject("overload", "mf_mcp")
    emulator.inject("silent_motor", "th_ipl")
    emulator.motors[0].put("present_input_voltage", 30)
    emulator.motors[1].put("return_delay_time", 250)
    assert main(["leap", "check", "--port", emulator.port, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    wrong = {m["joint"]: m["problems"] for m in report["motors"] if m["problems"]}
    assert wrong == {
        "mf_mcp": ["overload"],
        "th_ipl": ["no answer"],
        "if_rot": ["supply not within 3.5 to 7.0 V"],
    }
    assert report["hints"] == ["motors wait up to 500 us to answer; return delay 0 is faster"]
    assert main(["leap", "check", "--port", emulator.port]) == 1
    assert capsys.readouterr().out.endswith("not ok\n")


def test_calibrate_writes_offsets_that_check_uses(
    emulator: LeapEmulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "offsets.json"
    emulator.motors[3].put("torque_enable", 1)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert main(["leap", "calibrate", "--port", emulator.port, "-o", str(file)]) == 0
    assert not emulator.motors[3].torque_enabled
    np.testing.assert_allclose(load_calibration(file), 0.05, atol=0.001)
    capsys.readouterr()
    arguments = ["leap", "check", "--port", emulator.port, "--calibration", str(file), "--json"]
    assert main(arguments) == 0
    assert abs(json.loads(capsys.readouterr().out)["motors"][9]["position"]) < 0.001


def test_calibrate_in_the_home_pose(
    contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = np.array([contract.home[contract.joints.index(joint)] for joint in MOTOR_JOINTS])
    file = tmp_path / "offsets.json"
    with LeapEmulator(MotorHand(home + 0.02)) as emulator:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
        arguments = ["leap", "calibrate", "--port", emulator.port, "-o", str(file)]
        assert main([*arguments, "--pose", "home"]) == 0
    np.testing.assert_allclose(load_calibration(file), 0.02, atol=0.001)


def test_calibrate_refuses(
    emulator: LeapEmulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text("{}")
    arguments = ["leap", "calibrate", "--port", emulator.port, "-o"]
    assert main([*arguments, str(mine)]) == 2
    assert "exists and is no calibration" in capsys.readouterr().err
    assert mine.read_text() == "{}"
    new = tmp_path / "new.json"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert main([*arguments, str(new)]) == 2
    assert "nobody pressed Enter" in capsys.readouterr().err
    assert isinstance(emulator.hand, MotorHand)
    emulator.hand.angle[6] = 1.2
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert main([*arguments, str(new)]) == 2
    assert "mf_pip (motor 6) is +1.20 rad from the pose" in capsys.readouterr().err
    assert not new.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["emulate", "--hand", "glove"], "--hand glove: expected mujoco or motors"),
        (["emulate", "--fault", "fire"], "fault fire: unknown; expected lost_bytes"),
        (["emulate", "--pose", "here"], "--pose here: expected HOST:PORT"),
        (["emulate", "--seconds", "0"], "--seconds 0"),
        (["emulate", "nothing"], "nothing"),
        (["check", "--port", "/dev/ttyNO"], "--port /dev/ttyNO: no such port"),
        (["calibrate", "--port", "x", "-o", "y", "--pose", "fist"], "--pose fist: expected zero"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["leap", *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_emulate_as_a_program(tmp_path: Path) -> None:
    link = tmp_path / "hand"
    code = "import sys; from widen.train.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "leap"]
    process = subprocess.Popen(
        [
            *command,
            "emulate",
            "--hand",
            "motors",
            "--link",
            str(link),
            "--fault",
            "overload:rf_pip",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert str(link.readlink()) == port
        checked = subprocess.run(
            [*command, "check", "--port", str(link), "--json"], capture_output=True, text=True
        )
        wrong = [m["joint"] for m in json.loads(checked.stdout)["motors"] if m["problems"]]
        assert (checked.returncode, wrong) == (1, ["rf_pip"])
        process.send_signal(signal.SIGTERM)
        summary, _ = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert "packets (0 damaged), 0 watchdog trips" in summary
    assert not link.is_symlink()


def test_the_simulated_hand_holds_its_object_until_it_is_ready(contract: Contract) -> None:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    receiver.setblocking(False)
    hand = make_sim_hand(contract, PoseSender("127.0.0.1", receiver.getsockname()[1]))
    home = hand.angle.copy()
    order = [contract.joints.index(joint) for joint in MOTOR_JOINTS]
    np.testing.assert_allclose(home, np.array(contract.home)[order])
    drive = Drive(goal=home.copy(), current=np.full(COUNT, 0.55))
    hand.start(100.0)
    for k in range(1, 101):  # one second without torque: fingers hang, the object is held
        hand.advance(100.0 + 0.01 * k, drive)
    assert np.abs(hand.angle - home).max() > 0.2
    assert np.abs(hand.current).max() == 0.0
    assert hand.drops == 0
    datagrams = [json.loads(receiver.recv(2048)) for _ in range(60)]
    with pytest.raises(BlockingIOError):
        receiver.recv(2048)
    receiver.close()
    first, last = datagrams[0], datagrams[-1]
    assert set(first) == {"schema", "frame", "seq", "time", "position", "quaternion"}
    assert (first["schema"], first["frame"]) == ("widen.pose/1", "hand_base")
    assert [d["seq"] for d in datagrams] == list(range(60))
    assert last["time"] == pytest.approx(101.0, abs=0.02)
    assert first["position"] == last["position"]
    drive.torque[:] = True
    for k in range(101, 301):
        hand.advance(100.0 + 0.01 * k, drive)
    # the motors are at home, and the object has been let go and lies there
    assert np.abs(hand.angle - home).max() < 0.15
    assert hand.drops == 0
    assert 0.0 < np.abs(hand.current).max() <= 0.55 + 1e-6
    drive.current[:] = 0.1
    hand.advance(103.2, drive)
    assert np.abs(hand.current).max() <= 0.1 + 1e-6


def test_the_driver_moves_the_simulated_hand(contract: Contract) -> None:
    with make_emulator(contract, "mujoco") as emulator:
        robot = LeapRobot(emulator.port, contract)
        robot.start()
        try:
            home = np.array(contract.home)[[contract.joints.index(j) for j in MOTOR_JOINTS]]
            target = robot.read()["joint_pos"].value.astype(float)
            for _ in range(60):
                target += np.clip(home - target, -0.1, 0.1)
                robot.command(target)
                time.sleep(0.03)
            assert robot.fault is None
            np.testing.assert_allclose(robot.read()["joint_pos"].value, home, atol=0.15)
        finally:
            robot.stop()
        assert wait_for(lambda: not any(motor.torque_enabled for motor in emulator.motors))

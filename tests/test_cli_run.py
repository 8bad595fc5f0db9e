"""widen run: its options, a fault's exit code, a log, a tracker."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from widen.deploy.log_file import read_log
from widen.train.cli import main
from widen.train.cli_run import RunOptions

SIM = ["run", "fingertip_reach", "--robot", "sim", "--json"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--seconds -1", ("--seconds", "-1")),
        ("--port /dev/ttyUSB0", ("--port", "--robot leap")),
        ("--current-limit 0.5", ("--current-limit", "--robot leap")),
        ("--max-speed 0", ("--max-speed", "more than 0")),
        ("--max-acceleration nan", ("--max-acceleration", "more than 0")),
        ("--pose-latency 2", ("--pose-latency", "0 to 1")),
        ("--pose-frame camera.json", ("--pose-frame", "--pose")),
        ("--pose usb", ("--pose", "usb", "udp")),
        ("--pose udp:99999", ("--pose", "99999")),
        ("--pose udp --pose-frame none.json", ("none.json",)),
        ("--log {folder}", ("{folder}",)),
        ("--log {notes}", ("{notes}",)),
        ("--stop-file {notes}", ("stop file", "{notes}", "exists")),
    ],
)
def test_mistakes_are_one_line(
    options: str, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    places = {"folder": str(tmp_path), "notes": str(notes)}
    assert main([*SIM, *options.format(**places).split()]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    for word in words:
        assert word.format(**places) in said.err
    assert notes.read_text() == "mine"


@pytest.mark.realtime
def test_a_fault_has_exit_code_1_and_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torn_hand_robot.py").write_text(
        "from widen.deploy.runtime import OnnxPolicy\n"
        "from widen.train.cli_policy import make_sim_robot\n"
        "from widen.train.cli_subject import policies_folder\n"
        "class Hand:\n"
        "    def __init__(self):\n"
        "        policy = OnnxPolicy(policies_folder() / 'fingertip_reach.onnx')\n"
        "        self.__dict__['sim'], self.__dict__['reads'] = make_sim_robot(policy.contract), 0\n"
        "    def __getattr__(self, name): return getattr(self.__dict__['sim'], name)\n"
        "    def read(self):\n"
        "        self.__dict__['reads'] += 1\n"
        "        if self.__dict__['reads'] > 5: raise OSError('cable out')\n"
        "        return self.sim.read()\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ["--robot", "torn_hand_robot:Hand", "--seconds", "3", "--json"]
    assert main(["run", "fingertip_reach", *options]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["state"], report["reason"]) == ("fault", "robot_error: OSError: cable out")
    assert report["seconds"] < 2.0


@pytest.mark.realtime
def test_a_run_is_logged_and_can_be_played_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for attempt in range(6):
        file = tmp_path / f"run{attempt}.log"
        code = main([*SIM, "--seconds", "2", "--log", str(file)])
        report = json.loads(capsys.readouterr().out)
        if code == 0:
            break
        # a very busy computer stops the hand, as it should
        assert (code, report["reason"]) == (1, "deadline_missed")
    assert code == 0
    assert report["log"] == {"path": str(file), "cycles": report["cycles"], "lost": 0}
    log = read_log(file)
    assert len(log.times) == report["cycles"]
    assert log.header["timestep"] == pytest.approx(0.05 / 3)
    assert main(["play", str(file)]) == 0
    assert "fingertip_reach" in capsys.readouterr().out


@pytest.mark.realtime
def test_without_poses_nothing_moves(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--robot", "sim", "--pose", f"udp:{port}", "--seconds", "1", "--json"]
    assert main(["run", "cube_rotate", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["state"], report["reason"]) == ("disarmed", "missing_reading:object_pos")


def test_options_know_what_belongs_together() -> None:
    RunOptions("leap", 10.0, port="/dev/ttyUSB0", current_limit=0.4, baud=1_000_000)
    RunOptions("my_hand:Hand", 10.0, pose="udp", max_speed=2.0)
    with pytest.raises(ValueError, match="widen leap emulate prints"):
        RunOptions("leap", 10.0)

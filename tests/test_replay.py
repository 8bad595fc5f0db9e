"""A log of widen run, done again in simulation by widen play."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import answer_of, widen
from scripted_clock import ScriptedClock

from widen.deploy.control_log import ControlLog
from widen.deploy.log_file import read_log
from widen.deploy.robot import Measurement
from widen.deploy.runtime import OnnxPolicy
from widen.deploy.sim_robot import SimRobot
from widen.train import play
from widen.train.cli_policy import contract_scene
from widen.train.cli_subject import policies_folder

STATES = ("disarmed", "homing", "active")
STEP = 0.002


def make_robot(policy: str) -> tuple[SimRobot, Any]:
    contract = OnnxPolicy(policies_folder() / f"{policy}.onnx").contract
    return SimRobot.from_scene(contract_scene(contract, STEP), ScriptedClock()), contract


def open_log(path: Path, robot: SimRobot, contract: Any, **more: Any) -> ControlLog:
    return ControlLog.of_policy(
        path,
        "walk",
        contract,
        states=STATES,
        interventions=(),
        robot_joints=robot.joint_names[::-1],
        clock=robot.clock,
        more={"timestep": STEP, **more},
    )


def reversed_joints(measured: dict[str, Measurement]) -> dict[str, Measurement]:
    """As a robot gives them whose own order of joints is the other way round."""
    joints = measured["joint_pos"]
    return {**measured, "joint_pos": Measurement(joints.value[::-1], joints.time)}


def walk(path: Path, policy: str, cycles: int, **change: Any) -> None:
    """Targets that wander about the home pose, at irregular times.

    Args:
        path: of the log.
        policy: whose hand and object.
        cycles: how many.
        change: "gain", a factor; "offset" [rad] of what is measured of joint 3, but at first;
            "off", cycles without motors; "jump", the cycle in which the hand is put back.
    """
    robot, contract = make_robot(policy)
    robot._model.actuator_gainprm[:, 0] *= change.get("gain", 1.0)
    robot._model.actuator_biasprm[:, 1] *= change.get("gain", 1.0)
    rng, clock = np.random.default_rng(0), robot.clock
    assert isinstance(clock, ScriptedClock)
    robot.start()
    target = np.array(contract.home)
    with open_log(path, robot, contract) as log:
        for cycle in range(cycles):
            if cycle == change.get("jump"):
                robot.read()
                robot._place()  # as it does itself when the object fell
                target = np.array(contract.home)
            measured = dict(robot.read())
            if cycle and "offset" in change:
                joints = measured["joint_pos"]
                moved = joints.value + change["offset"] * (np.arange(16) == 3)
                measured["joint_pos"] = Measurement(moved, joints.time)
            now = clock.now()
            clock.time += float(rng.uniform(0.0, 0.01))  # the policy thinks
            off = cycle in change.get("off", ())
            target = np.clip(target + rng.normal(0, 0.05, 16), contract.lower, contract.upper)
            target = target.astype(np.float32).astype(np.float64)  # as the file has it
            if off:
                robot.disarm()
            else:
                robot.command(target)
            log.write(
                cycle=cycle,
                time=now,
                state=1 if cycle in (0, change.get("jump")) else 2,
                readings=reversed_joints(measured),
                asked=None,
                sent=None if off else target,
                cycle_ms=1.0,
            )
            clock.time += float(rng.uniform(0.03, 0.05))


def test_the_same_simulation_does_the_same(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    walk(path, "fingertip_reach", 120)
    result = answer_of("play", path)
    assert (result["cycles"], result["compared"]) == (120, 119)
    assert result["policy"] == "walk"
    assert result["timestep"] == STEP
    # the first pose is rounded to float32; the times fall on whole steps
    assert max(result["joint_rms"].values()) < 1e-5
    moved = np.ptp(read_log(path).arrays["joint_pos"], axis=0)
    assert moved.min() > 0.1  # a hand that stands still would prove nothing
    assert answer_of("play", path, "--seconds", "1")["cycles"] < 30


def test_with_a_cube_in_the_hand(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    walk(path, "cube_rotate", 40)
    result = answer_of("play", path)
    assert result["joint_rms_mean"] < 1e-3  # contacts make much of a rounded pose
    shown = widen("play", path).out
    assert "if_mcp" in shown
    assert "39 of 40 cycles compared" in shown


def test_another_hand_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    walk(path, "fingertip_reach", 60, gain=0.5)
    assert answer_of("play", path)["joint_rms_mean"] > 0.005


def test_the_figure_is_the_root_of_the_mean_square(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    walk(path, "fingertip_reach", 60, offset=0.02)
    rms = answer_of("play", path)["joint_rms"]
    joint = read_log(path).header["joints"][3]
    assert rms.pop(joint) == pytest.approx(0.02, rel=1e-3)
    assert max(rms.values()) < 1e-5


def test_motors_that_were_off_and_a_hand_that_was_put_back(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    walk(path, "fingertip_reach", 80, jump=40)
    result = answer_of("play", path)
    assert result["compared"] == 78  # each piece begins with a cycle that is not compared
    assert max(result["joint_rms"].values()) < 1e-5
    walk(path, "fingertip_reach", 80, off=range(30, 50))
    result = answer_of("play", path)
    assert result["compared"] == 29 + 29
    # the hand sags without torque, and is still a little on its way when the motors come back
    assert result["joint_rms_mean"] < 0.01


def test_identification_from_a_log(tmp_path: Path) -> None:
    """The documented use: a position servo's time constant, found again by least squares."""
    path = tmp_path / "run.log"
    walk(path, "fingertip_reach", 200)
    data = read_log(path).identification()
    assert data.joint_pos.shape == data.controls.shape == (200, 16)
    assert (np.diff(data.times) > 0).all()
    assert (data.control_times >= data.times).all()
    # each cycle the joint goes most of the way to its target: the controls explain the motion
    step = data.joint_pos[1:] - data.joint_pos[:-1]
    gap = data.controls[:-1] - data.joint_pos[:-1]
    share = (step * gap).sum(0) / (gap * gap).sum(0)
    assert (share > 0.3).all()
    assert (share < 1.1).all()


def test_a_film_of_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    iio = pytest.importorskip("imageio.v3")
    monkeypatch.setenv("MUJOCO_GL", "")
    try:
        play.choose_gl()
    except ValueError as error:
        pytest.skip(str(error))
    path, film = tmp_path / "run.log", tmp_path / "run.mp4"
    walk(path, "cube_rotate", 12)
    # in a process of its own: mujoco chose its OpenGL here when it was imported
    command = [sys.executable, "-m", "widen.train.cli", "play", str(path), "--video", str(film)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert f"wrote {film}" in answer.stdout
    frames = np.stack(list(iio.imiter(film)))
    assert len(frames) == pytest.approx(read_log(path).times[-1] / 0.05 + 1, abs=1.01)
    assert frames[0].std() > 10
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50


def test_logs_that_cannot_be_played(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    _, contract = make_robot("fingertip_reach")
    for more, message in (
        ({"dry_run": True}, "of a dry run, in which the hand was told nothing"),
        ({}, "no joint target was sent that a measurement follows"),
        ({"timestep": "2 ms"}, "damaged header: timestep '2 ms'"),
        ({"contract": {"schema": "widen.policy/99"}}, "widen.policy/99"),
        ({"joints": [f"j{i}" for i in range(16)]}, "its joints are not those of hand"),
    ):
        joints = more.get("joints", list(contract.joints))
        header = {
            "policy": "p", "contract": contract.as_dict(), "joints": joints,
            "control_period": 0.05, "timestep": STEP, **more,
        }  # fmt: skip
        with ControlLog(path, header, [("joint_pos", (16,))], states=STATES, interventions=()):
            pass
        answer = widen("play", path)
        assert answer.code == 2
        assert str(path) in answer.err
        assert message in answer.err
        assert answer.err.count("\n") == 1
    for option in (["--viewer"], ["--backend", "cpu"]):
        answer = widen("play", path, *option)
        assert (answer.code, option[0] in answer.err) == (2, True)

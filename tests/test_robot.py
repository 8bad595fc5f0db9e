"""What a controller deals with: a user's own robot, goals, and the simulated hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import mujoco
import numpy as np
import pytest
import torch
from scripted_clock import ScriptedClock
from torch import nn

from widen.deploy.controller import run
from widen.deploy.export import PolicyGraph, describe, export_policy
from widen.deploy.goals import RandomRotations, make_goals
from widen.deploy.robot import Robot, load_robot
from widen.deploy.runtime import OnnxPolicy
from widen.deploy.sim_robot import SimRobot
from widen.envs.cube_rotate import TURN, CubeRotate
from widen.envs.encoder import ObservationEncoder
from widen.envs.hand import load_hand
from widen.envs.scene import Scene, build_scene
from widen.envs.sim_cpu import CpuSim
from widen.envs.task import task_class

PERIOD = 0.05


def test_load_robot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab_hand.py").write_text(
        "class Half:\n    joint_names = ()\n    def read(self): ...\n"
        "class Broken:\n    def __init__(self): raise OSError('no cable')\n"
        "class Whole(Half):\n    clock = drops = None\n"
        "    def start(self): ...\n    def command(self, q): ...\n    def stop(self): ...\n"
    )
    (tmp_path / "torn_hand.py").write_text("class Torn(:")
    (tmp_path / "port_hand.py").write_text("open_port = {}['ttyUSB0']")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert type(load_robot("lab_hand:Whole")).__name__ == "Whole"
    for name, message in (
        ("lab_hand", "expected sim or MODULE:CLASS"),
        ("lab_foot:Whole", "cannot import lab_foot"),
        ("torn_hand:Torn", "cannot import torn_hand: SyntaxError: "),
        ("port_hand:Port", "cannot import port_hand: KeyError: 'ttyUSB0'"),
        ("lab_hand:Hole", "no class Hole in lab_hand; expected Whole"),
        ("lab_hand:Broken", "cannot be made: OSError: no cable"),
        ("lab_hand:Half", "Half lacks clock, drops, start, command, stop"),
    ):
        with pytest.raises(ValueError, match=message):
            load_robot(name)


def test_rotation_goals_are_those_of_the_task() -> None:
    """A cube turned by hand past many goals, judged by the task and by the contract's rule."""
    scene = leap_scene()
    sim = CpuSim(scene.model, 1, threads=1, sensors="none")
    task = CubeRotate(scene, sim, torch.Generator().manual_seed(2))
    goals = make_goals(CubeRotate.goal_rule(scene, CubeRotate.settings))
    only = torch.tensor([0])
    qpos, qvel = task.reset(only)
    sim.reset(only, qpos, qvel)
    start, successes = scene.object_qpos + 3, 0
    begin = qpos[0, start : start + 4].clone()
    for step in range(140):
        pose = {"object_quat": task.readings()["object_quat"][0].numpy()}
        np.testing.assert_allclose(
            goals.update(pose, 0.0), task.readings()["goal_quat"][0], atol=1e-5
        )
        assert goals.reached == successes
        yaw, tilt = 0.1 * (step + 1) * math.copysign(1, TURN), 0.2 * math.sin(step)
        turned = np.zeros(4)
        wobble = np.array([math.cos(tilt / 2), math.sin(tilt / 2), 0.0, 0.0])
        mujoco.mju_mulQuat(turned, np.array([math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)]), wobble)
        mujoco.mju_mulQuat(turned, turned.copy(), begin.numpy())
        qpos[0, start : start + 4] = torch.from_numpy(turned)
        sim.reset(only, qpos, qvel)
        successes += int(task.evaluate(torch.zeros(1, 16)).success)
    assert successes >= 8


def test_random_goals_follow_a_reached_one_or_the_time_and_are_uniform() -> None:
    rule = {"kind": "random_rotations", "reading": "g", "of": "o", "reached": 0.4, "seconds": 8.0}
    goals = RandomRotations(rule, seed=0)
    first = goals.update({"o": np.array([1.0, 0, 0, 0])}, 0.0)
    opposite = np.array([-first[1], first[0], -first[3], first[2]])  # half a turn away
    assert (goals.update({"o": opposite}, 7.9) == first).all()
    second = goals.update({"o": opposite}, 8.0)
    assert (second != first).any()
    assert goals.reached == 0
    near = np.zeros(4)
    mujoco.mju_mulQuat(near, np.array([math.cos(0.19), 0, math.sin(0.19), 0]), second.astype(float))
    third = goals.update({"o": -near}, 9.0)  # q and -q are one rotation
    assert goals.reached == 1
    goals.restart()
    assert (goals.update({"o": opposite}, 9.1) != third).any()
    assert goals.reached == 1
    still = {"o": np.array([1.0, 0, 0, 0])}
    drawn = np.array([goals.update(still, 100.0 * i) for i in range(2000)])
    angles = np.sort(2.0 * np.arccos(np.abs(drawn[:, 0]).clip(max=1.0)))
    share = (angles - np.sin(angles)) / np.pi
    assert np.abs(share - (np.arange(2000) + 0.5) / 2000).max() < 1.95 / math.sqrt(2000)


def test_point_goals_count_what_is_reached_and_move_on_in_time() -> None:
    values = [[[0.0, 0, 0]], [[1.0, 0, 0]]]
    goals = make_goals(
        {"kind": "points", "reading": "g", "of": "tips", "values": values}
        | {"reached": 0.02, "seconds": 2.0}
    )
    far, near = {"tips": np.array([[0.5, 0, 0]])}, {"tips": np.array([[0.01, 0, 0]])}
    for measured, now, expected, reached in (
        (far, 0.0, 0.0, 0),
        (near, 1.0, 1.0, 1),
        (near, 2.9, 1.0, 1),
        (near, 3.0, 0.0, 1),  # time is up, and the list begins again
        ({}, 4.9, 0.0, 1),
        ({}, 5.0, 1.0, 1),
    ):
        assert goals.update(measured, now)[0, 0] == expected
        assert goals.reached == reached
    with pytest.raises(ValueError, match="'hop' is unknown; expected one of rotation_sequence"):
        make_goals({"kind": "hop"})
    with pytest.raises(ValueError, match="'points' lacks 'reading'"):
        make_goals({"kind": "points"})


def leap_scene() -> Scene:
    return build_scene(load_hand("leap"), "cube", timestep=PERIOD / 3)


def test_sim_robot_is_the_plain_simulation_at_the_clocks_pace() -> None:
    """However irregularly it is looked at, bit for bit a loop of mj_step."""
    scene, clock = leap_scene(), ScriptedClock()
    robot: Robot = SimRobot.from_scene(scene, clock)
    robot.start()
    data = mujoco.MjData(scene.model)
    seen = robot.read()
    data.qpos[scene.joint_qpos] = data.ctrl[:] = scene.hand.home
    place = slice(scene.object_qpos, scene.object_qpos + 7)
    data.qpos[place] = robot._data.qpos[place]  # pyright: ignore
    rng, done = np.random.default_rng(0), 0
    for _ in range(60):
        clock.time += float(rng.uniform(0.0, 0.09))
        due = int((clock.time - 100.0) / scene.model.opt.timestep)
        for _ in range(due - done):
            mujoco.mj_step(scene.model, data)
        done = due
        seen = robot.read()
        target = np.array(scene.hand.home) + 0.2 * rng.standard_normal(16)
        robot.command(target)
        data.ctrl[:] = target
        np.testing.assert_array_equal(
            seen["joint_pos"].value, data.qpos[scene.joint_qpos].astype(np.float32)
        )
        np.testing.assert_array_equal(seen["object_pos"].value, data.qpos[place][:3].astype("f4"))
        assert 0 <= clock.time - seen["joint_pos"].time < scene.model.opt.timestep + 1e-9
    assert done > 100
    mujoco.mj_kinematics(scene.model, data)
    tips = [data.site(tip).xpos for tip in scene.hand.fingertips]
    np.testing.assert_allclose(seen["fingertip_pos"].value, tips, atol=1e-6)


def test_a_fallen_cube_is_put_back() -> None:
    scene, clock = leap_scene(), ScriptedClock()
    scene.model.opt.gravity = (0.0, 30.0, 20.0)
    robot = SimRobot.from_scene(scene, clock)
    robot.start()
    while robot.drops < 2:
        assert clock.time < 110.0
        clock.time += PERIOD
        before, seen = robot.drops, robot.read()
        gap = np.linalg.norm(seen["object_pos"].value - scene.hand.nest)
        assert gap <= (0.02 if robot.drops > before else 0.1)
    np.testing.assert_allclose(seen["joint_pos"].value, scene.hand.home, atol=1e-6)


class Still(nn.Module):
    """Asks for no motion."""

    state_widths: ClassVar[dict[str, int]] = {}

    def advance(self, actor_obs: torch.Tensor, state: Any) -> Any:
        return 0.0 * actor_obs[:, :16], state


@pytest.mark.realtime
def test_a_real_policy_in_real_time(tmp_path: Path) -> None:
    scene, kind = leap_scene(), task_class("cube_rotate")
    encoder = ObservationEncoder(kind.frame(scene), 3)
    graph = PolicyGraph(kind.layout(scene), encoder, kind.make_actions(scene), Still())
    contract = describe(
        scene, "cube_rotate", graph, hand="leap", object_name="cube", control_period=PERIOD
    )
    path = export_policy(graph, contract, tmp_path / "still.onnx").path
    for _ in range(6):
        robot = SimRobot.from_scene(scene)
        report = run(OnnxPolicy(path), robot, 3.0)
        if report.state == "active":
            break
        # a very busy computer stops the hand, as it should
        assert report.reason == "deadline_missed"
    assert report.seconds == pytest.approx(3.0, abs=0.2)
    assert report.cycles + report.deadline_misses >= 60
    assert report.cycles >= 30  # a busy computer may cost some
    assert (report.goals, report.drops, report.state) == (0, 0, "active")
    assert set(report.interventions_by_name) <= {"deadline_missed"}
    assert report.cycle_ms_p50 < 5.0
    seen = robot.read()
    assert np.linalg.norm(seen["object_pos"].value - scene.hand.nest) < 0.02

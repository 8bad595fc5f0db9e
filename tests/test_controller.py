"""The control loop on a scripted clock, its restraints, goals, and the simulated hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from torch import nn

from widen.deploy.controller import HOMING_SPEED, run
from widen.deploy.export import PolicyGraph, describe, export_policy
from widen.deploy.goals import make_goals
from widen.deploy.robot import Measurement, Robot, load_robot
from widen.deploy.runtime import OnnxPolicy
from widen.deploy.safety import ramp
from widen.deploy.sim_robot import SimRobot
from widen.envs.cube_rotate import TURN, CubeRotate
from widen.envs.encoder import ObservationEncoder
from widen.envs.hand import load_hand
from widen.envs.layout import Reading
from widen.envs.scene import Scene, build_scene
from widen.envs.sim_cpu import CpuSim
from widen.envs.task import task_class

PERIOD = 0.05
NAMES = ("a", "b", "c")
HOME = np.array([0.1, 0.2, 0.3])


class ScriptedClock:
    """Time passes only when somebody sleeps or a script says so."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def sleep_until(self, moment: float) -> None:
        self.time = max(self.time, moment)


class FakeRobot:
    """Follows commands at once. `script` is called with the number of each read."""

    def __init__(self, script: Any = lambda robot, count: None, start: np.ndarray = HOME) -> None:
        self.joint_names = ("c", "a", "b")  # not the policy's order
        self.clock, self.drops, self.reads = ScriptedClock(), 0, 0
        self.pose = dict(zip(NAMES, start, strict=True))
        self.commands: list[np.ndarray] = []
        self.times: list[float] = []
        self.script, self.stopped, self.age, self.broken = script, 0, 0.0, False

    def start(self) -> None:
        pass

    def read(self) -> dict[str, Measurement]:
        self.script(self, self.reads)
        self.reads += 1
        value = np.array([self.pose[name] for name in self.joint_names])
        if self.broken:
            value[1] = np.nan
        return {"joint_pos": Measurement(value, self.clock.now() - self.age)}

    def command(self, joint_target: np.ndarray) -> None:
        self.pose = dict(zip(self.joint_names, joint_target, strict=True))
        self.commands.append(np.array([self.pose[name] for name in NAMES]))
        self.times.append(self.clock.now() - 100.0)

    def stop(self) -> None:
        self.stopped += 1


class FakePolicy:
    """Answers what a function of the number of its calls says; keeps the face of OnnxPolicy."""

    path = Path("fake.onnx")

    def __init__(self, answer: Any = lambda count: HOME, error: float = 0.0) -> None:
        readings = (
            Reading("joint_pos", (3,), "rad", "joint", "robot"),
            Reading("goal", (1, 3), "m", "hand_base", "goal"),
        )
        goal = {"kind": "points", "reading": "goal", "of": "tips", "values": [[[0.0, 0.0, 0.0]]]}
        self.contract = SimpleNamespace(
            joints=NAMES,
            lower=(-1.0, -1.0, -1.0),
            upper=(1.0, 1.0, 1.0),
            home=tuple(HOME),
            control_period=PERIOD,
            max_target_speed=4.0,
            readings=readings,
            goal={**goal, "reached": 0.01, "seconds": 2.0},
        )
        self.answer, self.error, self.calls, self.resets = answer, error, 0, 0
        self.seen: list[np.ndarray] = []
        self.overruled: list[np.ndarray] = []

    def verify(self) -> float:
        return self.error

    def reset(self, n: int = 1) -> None:
        self.resets += 1

    def overrule(self, joint_target: np.ndarray) -> None:
        self.overruled.append(joint_target[0].copy())

    def __call__(self, readings: dict[str, np.ndarray]) -> np.ndarray:
        self.seen.append(readings["joint_pos"][0].copy())
        self.calls += 1
        return np.array(self.answer(self.calls - 1), np.float32)[None]


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
        robot.broken = count in (4, 5)
        robot.age = 1.0 if count == 7 else 0.0

    policy = FakePolicy(lambda count: HOME + 0.01 * (count + 1))
    robot = FakeRobot(script)
    report = go(policy, robot, 9)
    assert report.interventions_by_name == {"bad_reading": 2, "stale_reading": 1}
    moved = np.array(robot.commands)[:, 0] - HOME[0]
    np.testing.assert_allclose(moved, 0.01 * np.array([0, 1, 2, 3, 3, 3, 4, 4, 5]), atol=1e-6)
    assert policy.calls == 5


def test_nothing_is_sent_before_the_first_good_reading() -> None:
    def script(robot: FakeRobot, count: int) -> None:
        robot.broken = count < 3

    robot = FakeRobot(script)
    assert go(FakePolicy(), robot, 5).interventions_by_name == {"bad_reading": 3}
    assert len(robot.commands) == 2


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
        with pytest.raises(error):
            go(FakePolicy(), robot, 100)
    assert robot.stopped == 1


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"fake.onnx: differs from its golden vectors by 0.01"):
        go(FakePolicy(error=0.01), FakeRobot(), 3)
    robot = FakeRobot()
    robot.joint_names = ("a", "b", "thumb")
    with pytest.raises(ValueError, match="differ: c, thumb"):
        go(FakePolicy(), robot, 3)
    with pytest.raises(ValueError, match="max_speed: expected more than 0"):
        go(FakePolicy(), FakeRobot(), 3, max_speed=0.0)
    assert robot.commands == []


def test_ramp_ends_exactly() -> None:
    np.testing.assert_array_equal(ramp(HOME, HOME, 0.05), [HOME])
    poses = ramp(HOME, HOME + np.array([0.0, 0.0, 0.12]), 0.05)
    np.testing.assert_allclose(poses[:, 2] - HOME[2], [0.0, 0.04, 0.08, 0.12])


def test_load_robot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab_hand.py").write_text(
        "class Half:\n    joint_names = ()\n    def read(self): ...\n"
        "class Broken:\n    def __init__(self): raise OSError('no cable')\n"
        "class Whole(Half):\n    clock = drops = None\n"
        "    def start(self): ...\n    def command(self, q): ...\n    def stop(self): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert type(load_robot("lab_hand:Whole")).__name__ == "Whole"
    for name, message in (
        ("lab_hand", "expected sim or MODULE:CLASS"),
        ("lab_foot:Whole", "cannot import lab_foot"),
        ("lab_hand:Hole", "no class Hole in lab_hand; expected Whole"),
        ("lab_hand:Broken", "cannot be made: OSError: no cable"),
        ("lab_hand:Half", "Half lacks clock, drops, start, command, stop"),
    ):
        with pytest.raises(ValueError, match=message):
            load_robot(name)


def test_rotation_goals_are_those_of_the_task() -> None:
    """A cube turned by hand past many goals, judged by the task and by the contract's rule."""
    scene = leap_scene()
    sim = CpuSim(scene.model, 1, threads=1, current_sensors=False)
    task = CubeRotate(scene, sim, torch.Generator().manual_seed(2))
    goals = make_goals(CubeRotate.goal_rule(scene))
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

    def mean_action(self, actor_obs: torch.Tensor) -> torch.Tensor:
        return 0.0 * actor_obs[:, :16]


def test_a_real_policy_in_real_time(tmp_path: Path) -> None:
    scene, kind = leap_scene(), task_class("cube_rotate")
    encoder = ObservationEncoder(kind.frame(scene), 3)
    graph = PolicyGraph(kind.layout(scene), encoder, kind.make_actions(scene), Still())
    contract = describe(
        scene, "cube_rotate", graph, hand="leap", object_name="cube", control_period=PERIOD
    )
    path = export_policy(graph, contract, tmp_path / "still.onnx").path
    robot = SimRobot.from_scene(scene)
    report = run(OnnxPolicy(path), robot, 3.0)
    assert report.seconds == pytest.approx(3.0, abs=0.2)
    assert report.cycles + report.deadline_misses >= 60
    assert report.cycles >= 50  # a busy computer may cost a few
    assert (report.goals, report.drops, report.interventions) == (0, 0, 0)
    assert report.cycle_ms_p50 < 5.0
    seen = robot.read()
    assert np.linalg.norm(seen["object_pos"].value - scene.hand.nest) < 0.02

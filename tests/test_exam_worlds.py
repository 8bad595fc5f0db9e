"""The worlds of an examination are what their names say."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import world_of

from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.sim import SimConfig
from widen.envs.sim_cpu import CpuSim
from widen.randomization import manual
from widen.randomization.events import Event, LatencyStep, MotorDead, PoseLost, WrenchPulse
from widen.randomization.parameters import CATALOGUE, WORLD
from widen.randomization.scripted import Script, Scripted
from widen.train.exam_conditions import syllabus

AT = 4


def happening(layer: Any, **settings: Any) -> Script:
    return Script(layers=(partial(layer, at=AT, **settings),))


def layer_of(world: Scripted) -> Any:
    return world._layers[0]


def still(env: BatchedEnv) -> Tensor:
    return torch.zeros(env.num_envs, env.num_actions)


def test_values_are_in_the_model_and_gone_in_the_next_script() -> None:
    heavy = Script.held(object_mass=2.0, object_friction=0.5, hand_friction=0.5)
    env, world = world_of(Script(), heavy)
    sim, body = env.sim, env.scene.model.body("object").id
    fields = ("body_mass", "body_inertia", "geom_friction")
    before = {name: sim.per_env(name).clone() for name in fields}
    world.play(heavy, 0)
    env.reset()
    assert sim.per_env("body_mass")[:, body] == pytest.approx(2.0 * before["body_mass"][:, body])
    assert sim.per_env("body_inertia")[:, body] == pytest.approx(
        2.0 * before["body_inertia"][:, body]
    )
    others = [i for i in range(env.scene.model.nbody) if i != body]
    assert torch.equal(sim.per_env("body_mass")[:, others], before["body_mass"][:, others])
    for geom in (*env.scene.object_geoms, *env.scene.hand_geoms):
        slide = sim.per_env("geom_friction")[:, geom, 0]
        assert slide == pytest.approx(0.5 * before["geom_friction"][:, geom, 0])
    world.play(Script(), 0)
    for name in fields:
        assert torch.equal(sim.per_env(name), before[name])


def test_the_nominal_world_is_the_one_without_a_perturbation() -> None:
    env, _ = world_of(
        Script(), Script.held(object_mass=2.0, object_delay=1.0), manual.held_out(True)
    )
    config = EnvConfig(num_envs=3, episode_seconds=2.0)
    plain = BatchedEnv("cube_rotate", config=config, sim=SimConfig(threads=1))
    ours, theirs = env.reset(), plain.reset()
    for k in range(10):
        assert torch.equal(ours["actor"], theirs["actor"]), k
        action = torch.full((3, 16), 0.3)
        ours, theirs = env.step(action).obs, plain.step(action).obs


def test_a_dead_motor_is_one_without_gains_from_the_stated_step_on() -> None:
    """Against a loop over mj_step whose gains are taken away at that step."""
    env, _ = world_of(happening(MotorDead))
    env.reset()
    model, scene = env.scene.model, env.scene
    loops = []
    for i in range(3):
        own = copy.copy(model)
        data = mujoco.MjData(own)
        data.qpos[:], data.qvel[:] = env.sim.qpos[i].numpy(), env.sim.qvel[i].numpy()
        loops.append((own, data))
    target = torch.tensor(scene.hand.home).float().repeat(3, 1) + 0.2
    for k in range(AT + 6):
        env.step_target(target, still(env))
        for i, (own, data) in enumerate(loops):
            if k == AT:
                own.actuator_gainprm[i] = own.actuator_biasprm[i] = 0.0
            data.ctrl[:] = target[i].double().numpy()
            mujoco.mj_step(own, data, nstep=env.substeps)
            np.testing.assert_array_equal(env.sim.qpos[i].numpy(), data.qpos, f"step {k}")
            assert (data.actuator_force[i] == 0.0) == (k >= AT)
            assert np.count_nonzero(data.actuator_force) == 16 - (k >= AT)


def test_every_motor_is_lost_equally_often() -> None:
    _, world = world_of(happening(MotorDead), num_envs=32)
    assert torch.equal(layer_of(world).motor.bincount(), torch.full((16,), 2))


def test_a_motor_that_died_is_alive_in_the_next_episode() -> None:
    env, world = world_of(happening(MotorDead))
    env.reset()
    for _ in range(AT + 1):
        env.step(still(env))
    gains = env.sim.per_env("actuator_gainprm")
    assert (gains[:, :, 0] == 0).sum(1).tolist() == [1, 1, 1]
    world.begin(torch.tensor([1]))
    assert (gains[:, :, 0] == 0).sum(1).tolist() == [1, 0, 1]


def test_latency_grows_by_one_control_step() -> None:
    env, world = world_of(happening(LatencyStep))
    env.reset()
    asked = [torch.full((3, 16), float(k)) for k in range(8)]
    given = [world.act(target, 3)[0] for target in asked]
    for k, ctrl in enumerate(given):
        assert ctrl.shape == (3, 3, 16)
        assert (ctrl == (k if k < AT else k - 1)).all(), k


@pytest.mark.parametrize("size", [2.0, 10.0])
def test_a_pulse_is_as_strong_and_as_long_as_stated(size: float) -> None:
    env, world = world_of(happening(WrenchPulse, steps=2, size=size), num_envs=64)
    env.reset()
    pushes = [world.act(env.target, 3)[1] for _ in range(AT + 4)]
    newtons = size * 0.08  # the cube's mass
    for k, wrench in enumerate(pushes):
        assert wrench is not None
        assert (wrench[:, 3:] == 0).all()
        expected = newtons if AT <= k < AT + 2 else 0.0
        assert wrench[:, :3].norm(dim=1) == pytest.approx(torch.full((64,), expected)), k
    directions = pushes[AT][:, :3] / newtons
    assert directions.mean(0).norm() < 0.35  # all round
    assert torch.equal(pushes[AT], pushes[AT + 1])


def test_a_pulse_moves_the_cube_as_newton_says() -> None:
    """In the first control step of its fall, weight and push are all that acts on the cube."""
    push = Script(layers=(partial(WrenchPulse, at=1, steps=1, size=10.0),))
    env, world = world_of(Script(), push)
    velocities = []
    for script in (Script(), push):
        world.play(script, 0)
        env.generator.manual_seed(0)
        env.reset()
        qpos = env.sim.qpos.clone()
        qpos[:, env.scene.object_qpos + 2] += 1.0  # high above the hand
        env.sim.reset(torch.arange(3), qpos, torch.zeros_like(env.sim.qvel))
        for _ in range(2):
            env.sim.step(*world.act(env.target, 3))
        start = env.scene.object_dof
        velocities.append(env.sim.qvel[:, start : start + 3].clone())
    change = velocities[1] - velocities[0]
    assert change.norm(dim=1) == pytest.approx(
        torch.full((3,), 10.0 * env.control_dt).double(), rel=1e-5
    )


def test_a_lost_pose_is_the_last_one_until_it_is_found() -> None:
    env, _ = world_of(happening(PoseLost, steps=3))
    env.reset()
    true, seen = [], []
    for _ in range(AT + 6):
        env.step(torch.full((3, 16), 0.5))
        true.append({name: x.clone() for name, x in env.task.readings().items()})
        seen.append(env.last_readings)
    for k, (a, b) in enumerate(zip(true, seen, strict=True)):
        expected = true[AT - 1] if AT <= k < AT + 3 else a
        for name in ("object_pos", "object_quat"):
            assert torch.equal(b[name], expected[name]), (k, name)
        assert torch.equal(b["joint_pos"], a["joint_pos"])
        assert not torch.equal(a["object_pos"], true[k - 1]["object_pos"])


def test_each_environment_has_its_own_clock() -> None:
    env, world = world_of(happening(Event))
    env.reset()
    event = layer_of(world)
    for _ in range(AT):
        event.target(env.target)
    event.begin(torch.tensor([1]))
    event.target(env.target)
    assert event.under_way().tolist() == [True, False, True]
    assert event.under_way(1).tolist() == [True, False, True]
    event.target(env.target)
    assert event.under_way(1).tolist() == [False, False, False]


SCRIPTS = {
    "latency": happening(LatencyStep),
    "motor": happening(MotorDead),
    "pose": happening(PoseLost, steps=3),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_events_by_masks_are_those_by_ids(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = []
    for masked in (False, True):
        monkeypatch.setattr(CpuSim, "masked", masked)
        env, _ = world_of(SCRIPTS[name])
        env.max_steps = 12
        env.reset()
        env.sim.reset(torch.arange(3), *env.task.nominal_state(3))  # no random start
        env.age = torch.tensor([0, 3, 9])
        way = []
        for _ in range(9):  # until the third begins anew
            env.step(torch.full((3, 16), 0.4))
            way.append(
                torch.cat(
                    (
                        env.sim.qpos[:2].flatten(),
                        env.last_readings["object_pos"][:2].flatten().double(),
                    )
                )
            )
        ways.append(torch.stack(way[:3]))
    assert torch.equal(*ways)


def test_random_numbers_depend_on_the_step_alone() -> None:
    """Whoever else began anew: an environment of another policy meets the same episode."""
    script = Script(
        {"joint_noise": (0.05, 0.05), "action_noise": (0.02, 0.02)}, manual.held_out(True).layers
    )
    heard = []
    for restart in (False, True):
        env, world = world_of(script)
        env.reset()
        way = []
        for k in range(6):
            if restart and k == 2:
                world.begin(torch.tensor([0, 2]))
            ctrl, wrench = world.act(env.target, 3)
            readings = world.observe({"joint_pos": torch.zeros(3, 16)})
            assert wrench is not None
            way.append(torch.cat((ctrl[1].flatten(), wrench[1], readings["joint_pos"][1])))
        heard.append(torch.stack(way))
    assert torch.equal(*heard)
    assert heard[0][:, -16:].std(0).min() > 0.01


def test_another_seed_is_another_episode() -> None:
    env, world = world_of(manual.held_out(True))
    masses = []
    for seed in (0, 1, 0):
        world.play(world.scripts[0], seed)
        env.reset()
        masses.append(env.sim.per_env("body_mass")[:, env.scene.model.body("object").id].clone())
    assert torch.equal(masses[0], masses[2])
    assert not torch.equal(masses[0], masses[1])


def test_every_parameter_can_be_examined_at_its_bounds() -> None:
    """The whole catalogue at its limits, in as many scenes as that takes."""
    table = [
        {"name": what.name, "low": what.limits[0], "nominal": what.nominal, "high": what.limits[1]}
        for what in CATALOGUE.values()
        if what.kind != "task"
    ]
    plan = syllabus(table, 0.05, 20.0, 3.0, has_object=True)
    bounds = [c.script for c in plan.conditions if c.group == "bounds"]
    assert {name for script in bounds for name in script.ranges} == set(WORLD)
    scenes: dict[Any, list[Script]] = {}
    for script in bounds:
        key = script.contact_dims, "body_ipos" in script.model_fields
        scenes.setdefault(key, []).append(script)
    assert {dims for dims, _ in scenes} == {3, 4, 6}
    for (dims, _), scripts in scenes.items():
        env, world = world_of(*scripts, num_envs=2)
        assert env.scene.model.geom_condim[env.scene.object_geoms[0]] == dims
        for script in scripts:
            world.play(script, 0)
            env.reset()
            for _ in range(2):
                result = env.step(still(env))
            assert torch.isfinite(result.obs["actor"]).all(), script


# the held-out world

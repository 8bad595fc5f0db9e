"""The held-out world against the distributions that its paper states."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import world_of

from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.sim import SimConfig
from widen.randomization import manual
from widen.randomization.scripted import Scripted


def uniform_to(samples: Tensor, low: float, high: float) -> float:
    """Kolmogorov-Smirnov distance of samples from U(low, high), times the root of their number."""
    u = ((samples.double().flatten() - low) / (high - low)).sort().values
    steps = torch.arange(1, len(u) + 1) / len(u)
    return float((u - steps).abs().max()) * math.sqrt(len(u))


def normal_to(samples: Tensor, std: float) -> float:
    """As `uniform_to`, from N(0, std)."""
    return uniform_to(torch.special.ndtr(samples.double() / std), 0.0, 1.0)


@pytest.fixture(scope="module")
def held_out() -> tuple[BatchedEnv, Scripted]:
    env, world = world_of(manual.held_out(True), num_envs=300)
    env.reset()
    return env, world


def factor(env: BatchedEnv, field: str, index: Any) -> Tensor:
    live = env.sim.per_env(field)
    nominal = torch.tensor(np.array(getattr(env.scene.model, field)))
    return live[(slice(None), *index)] / nominal[index]


FAR = 1.95  # exceeded by one in a thousand samples of the right distribution


def test_held_out_model_fields_have_the_published_distributions(held_out: Any) -> None:
    env, _ = held_out
    body, geom = env.scene.model.body("object").id, int(env.scene.object_geoms[0])
    dofs, nu = env.scene.joint_dof, 16
    mass = factor(env, "body_mass", (body,))
    assert uniform_to(mass, 0.5, 1.5) < FAR
    assert torch.allclose(
        factor(env, "body_inertia", (body, 0)), mass * factor(env, "geom_size", (geom, 0)) ** 2
    )
    link = int(env.scene.model.dof_bodyid[dofs[0]])
    assert uniform_to(factor(env, "body_mass", (link,)), 0.5, 1.5) < FAR
    assert uniform_to(factor(env, "geom_size", (geom, 0)), 0.95, 1.05) < FAR
    assert uniform_to(factor(env, "geom_friction", (geom, 0)), 0.7, 1.3) < FAR
    hand = int(env.scene.hand_geoms[0])
    assert uniform_to(factor(env, "geom_friction", (hand, 0)), 0.7, 1.3) < FAR
    damping = torch.stack([factor(env, "dof_damping", (int(d),)) for d in dofs], 1)
    assert uniform_to(damping.log(), math.log(0.3), math.log(3.0)) < FAR
    assert uniform_to(damping, 0.3, 3.0) > 5  # and not uniform
    gain = torch.stack([factor(env, "actuator_gainprm", (j, 0)) for j in range(nu)], 1)
    assert uniform_to(gain.log(), math.log(0.75), math.log(1.5)) < FAR
    bias = torch.stack([factor(env, "actuator_biasprm", (j, 1)) for j in range(nu)], 1)
    assert torch.allclose(bias, gain)
    for drawn in (damping, gain):  # joint by joint
        together = torch.corrcoef(drawn.log().T) - torch.eye(nu)
        assert together.abs().max() < 0.3
    gravity = env.sim.per_env("opt.gravity") - torch.tensor(env.scene.model.opt.gravity)
    assert all(normal_to(gravity[:, axis], 0.4) < FAR for axis in range(3))
    joints = env.scene.model.dof_jntid[dofs]
    moved = env.sim.per_env("jnt_range")[:, joints] - torch.tensor(
        env.scene.model.jnt_range[joints]
    )
    assert normal_to(moved[..., 0], 0.15) < FAR
    for name in ("dof_damping", "actuator_gainprm"):  # the rest stays
        assert torch.isfinite(env.sim.per_env(name)).all()


def test_held_out_actions(held_out: Any) -> None:
    """The spread of what motors get is that of a(1 + .05n) + .015n' + .015n'' by arithmetic."""
    env, world = held_out
    layer = world._layers[1]
    assert isinstance(layer, manual.ManualActions)
    half = torch.tensor((env.scene.upper - env.scene.lower) / 2).float()
    here = env.sim.qpos[:, env.task.joints].float()
    for away in (0.0, 0.6):
        disturbed = torch.stack([layer.target(here + away * half) for _ in range(40)])
        error = (disturbed - here - away * half) / half  # in units of an action
        each = error.mean(0)  # the episode's part
        expected = math.hypot(0.05 * away, 0.015)
        assert normal_to(each, math.hypot(expected, 0.015 / math.sqrt(40))) < FAR
        assert normal_to(error - each, 0.015 * math.sqrt(1 - 1 / 40)) < 3.0


def test_held_out_forces(held_out: Any) -> None:
    env, world = held_out
    layer = world._layers[-1]
    assert isinstance(layer, manual.ManualForces)
    odds = 1 - (1 - layer._odds) ** (0.08 / env.control_dt)  # in 80 ms
    assert uniform_to(odds.log(), math.log(0.001), math.log(0.1)) < FAR
    pushes = torch.stack([layer.wrench()[:, :3] for _ in range(400)])
    before, after = pushes[:-1], pushes[1:]
    decayed = torch.isclose(after, before * 0.99 ** (env.control_dt / 0.08)).all(-1)
    fresh = ~decayed
    share = float(fresh.double().mean())
    assert share == pytest.approx(float(layer._odds.mean()), rel=0.1)
    assert normal_to(after[fresh], 0.08) < 2.5
    assert (layer.wrench()[:, 3:] == 0).all()


def test_held_out_backlash_is_the_catalogues_play(held_out: Any) -> None:
    _, world = held_out
    layer = world._layers[2]
    assert isinstance(layer, manual.ManualBacklash)
    start = torch.zeros(300, 16)
    layer._effect.hold(torch.arange(300), start.double())
    up, down = layer.target(start + 0.3), layer.target(start - 0.3)
    gap = (0.6 - (up - down)).double()  # lost on the way back
    assert normal_to((gap[:, 0] / 0.01).log(), 0.3) < FAR


def test_held_out_without_an_object() -> None:
    world = Scripted([manual.held_out(False)], 1)
    env = BatchedEnv(
        "fingertip_reach",
        config=EnvConfig(num_envs=2),
        sim=SimConfig(threads=1),
        perturbation=world,
    )
    env.reset()
    for _ in range(5):
        result = env.step(torch.zeros(env.num_envs, env.num_actions))
    assert torch.isfinite(result.reward).all()

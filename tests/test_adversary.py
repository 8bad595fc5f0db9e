"""Adversary networks against a numpy forward pass, their wrenches against free bodies, pushes."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from plants import CONTROL_DT, JOINTS, begin, make
from torch import Tensor

from widen.envs.hand import load_hand
from widen.envs.scene import OBJECTS, Scene, build_scene
from widen.envs.sim import BatchSim, SimConfig, make_sim
from widen.randomization.adversary import ADVERSARY, PULSES_PER_SECOND, Adversary, Networks
from widen.randomization.config import RandomizationConfig
from widen.randomization.randomizer import Randomizer

LIMITS = {what.name: what.limits[1] for what in ADVERSARY}
CUBE = OBJECTS["cube"]
HALF = CUBE.half_size[0]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return build_scene(load_hand("leap"), "cube", timestep=1 / 60)


@pytest.fixture(scope="module")
def bare() -> Scene:
    return build_scene(load_hand("leap"), None, timestep=1 / 60)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products of a few small matrices are not worth waiting for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def place(scene: Scene, made: Adversary, sim: BatchSim, same: bool = False) -> Tensor:
    """Random poses near home in every environment, or one in all; joint positions (N, nu)."""
    n, model = sim.num_envs, scene.model
    qpos = torch.from_numpy(np.tile(model.qpos0, (n, 1)))
    noise = torch.randn(1 if same else n, model.nq, dtype=torch.float64).expand(n, -1)
    qpos[:, scene.joint_qpos] = torch.tensor(scene.hand.home).double() + 0.3 * noise[:, :JOINTS]
    if scene.object_body is not None:
        start = scene.object_qpos
        qpos[:, start : start + 3] += 0.02 * noise[:, -7:-4]
        quat = noise[:, -4:]
        qpos[:, start + 3 : start + 7] = quat / quat.norm(dim=1, keepdim=True)
    sim.reset(torch.arange(n), qpos, torch.zeros(n, model.nv))
    joints = sim.qpos[:, torch.as_tensor(scene.joint_qpos)].float()
    made.hold(torch.arange(n), joints)
    return joints


# ---------------------------------------------------------------------------- networks


def forward(scene: Scene, layers: list[Any], qpos: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """One environment's network in numpy, float64, from what it sees."""
    low, high = scene.lower, scene.upper
    seen = [(2 * x - low - high) / (high - low) for x in (qpos[scene.joint_qpos], asked)]
    if scene.object_body is not None:
        pos, quat = np.split(qpos[scene.object_qpos : scene.object_qpos + 7], [3])
        turned = np.empty(9)
        mujoco.mju_quat2Mat(turned, quat)
        seen += [(pos - np.array(scene.hand.nest)) / 0.05, turned.reshape(3, 3)[:, :2].ravel("F")]
    x = np.concatenate(seen)
    for i, (matrix, bias) in enumerate(layers):
        x = x @ matrix + bias
        if i < len(layers) - 1:
            x = np.maximum(x, 0.0)
    return np.tanh(x)


def layers_of(made: Adversary, env: int) -> list[tuple[np.ndarray, np.ndarray]]:
    assert made._networks is not None
    return [
        (matrix[env].double().numpy(), bias[env, 0].double().numpy())
        for matrix, bias in made._networks.layers()
    ]


@pytest.mark.parametrize("thing", ["cube", None])
def test_moves_against_a_forward_pass_in_numpy(thing: str | None, request: Any) -> None:
    scene = request.getfixturevalue("scene" if thing else "bare")
    alphas = [0.0, 0.1, 0.25, 0.5]
    n = len(alphas)
    made, sim = make(Adversary, scene, n, adversary_action=alphas)
    last = place(scene, made, sim)
    for _ in range(3):
        target = last + 0.2 * torch.randn(n, JOINTS)
        sent, wrench = made.act(target)
        assert wrench is None
        for env, alpha in enumerate(alphas):
            before, now = last[env].double().numpy(), target[env].double().numpy()
            network = layers_of(made, env)
            assert [bias.size for _, bias in network[:-1]] == [network[0][1].size] * 3
            move = 0.2 * forward(scene, network, sim.qpos[env].numpy(), before)
            expected = before + (1 - alpha) * (now - before) + alpha * move
            np.testing.assert_allclose(sent[env].numpy(), expected, rtol=0, atol=2e-6)
        last = target  # the policy's: what the adversary adds does not accumulate
        place(scene, made, sim)
        made.hold(torch.arange(n), last)


def test_fault_9_every_environment_and_episode_has_a_network_of_its_own(scene: Scene) -> None:
    """Not one that all share, and not one that changes by the clock while an episode runs."""
    n = 6
    made, sim = make(Adversary, scene, n, adversary_action=0.5, adversary_wrench=1.0)
    joints = place(scene, made, sim, same=True)

    def answer() -> Tensor:
        made.hold(torch.arange(n), joints)
        sent, wrench = made.act(joints)
        return torch.cat((sent - joints, wrench), -1)

    first = answer()
    for env in range(n):
        for other in range(env):
            assert (first[env] - first[other]).abs().max() > 0.05
    for _ in range(200):  # ten seconds
        made.act(joints + torch.randn(n, JOINTS))
    torch.testing.assert_close(answer(), first, rtol=0, atol=1e-6)
    begin(made, torch.tensor([1, 4]), adversary_action=0.5, adversary_wrench=1.0)
    renewed = (answer() - first).abs().amax(1)
    assert (renewed[[1, 4]] > 0.05).all()
    assert (renewed[[0, 2, 3, 5]] < 1e-6).all()
    begin(made, torch.tensor([1]), adversary_action=0.5, adversary_wrench=1.0)
    assert ((answer() - first).abs().amax(1)[[1, 4]] > 0.05).all()  # nor the one before


def test_outputs_fill_their_range_and_depend_on_the_state() -> None:
    n, generator = 3000, torch.Generator().manual_seed(0)
    networks = Networks((40, 24, 24, 24, 8), n, generator)
    networks.renew(torch.arange(n))
    once, again = (networks(torch.randn(n, 40, generator=generator)) for _ in range(2))
    assert once.abs().max() <= 1.0
    assert once.mean().abs() < 0.02
    assert 0.5 < once.square().mean().sqrt() < 0.75  # .63 for tanh of a standard normal
    assert (once - again).square().mean().sqrt() > 0.3
    assert (once * again).mean() > 0.02  # and an output has a mean of its own


# ---------------------------------------------------------------------------- wrenches


def weightless(scene: Scene) -> Scene:
    model = copy.copy(scene.model)
    model.opt.gravity[:] = 0.0
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONTACT)
    return replace(scene, model=model)


def test_a_wrench_accelerates_a_free_object_by_beta_u(scene: Scene) -> None:
    betas = [0.0, 1.0, 5.0]
    n, floating = len(betas), weightless(scene)
    made, sim = make(Adversary, floating, n, adversary_wrench=betas)
    joints = place(floating, made, sim)
    before = sim.qpos.clone().numpy()
    sent, wrench = made.act(joints)
    assert torch.equal(sent, joints)
    sim.step(torch.zeros(n, 1, JOINTS), wrench)
    dof, rate = floating.object_dof, 60.0  # steps per second
    linear, turning = (sim.qvel[:, dof + i : dof + i + 3].numpy() * rate for i in (0, 3))
    gyration = 2 / 3 * HALF**2  # of a solid cube: inertia / mass, the same about every axis
    for env, beta in enumerate(betas):
        u = forward(scene, layers_of(made, env), before[env], joints[env].double().numpy())
        assert np.abs(u).max() > 0.2
        start = floating.object_qpos + 3
        spin = np.empty(3)
        mujoco.mju_rotVecQuat(spin, turning[env], before[env, start : start + 4])  # to the world's
        np.testing.assert_allclose(linear[env], beta * u[:3], rtol=0, atol=1e-4)
        np.testing.assert_allclose(spin, beta * u[3:] * HALF / gyration, rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", ["adversary_wrench", "pulse_force"])
def test_forces_go_with_the_mass_that_was_drawn(scene: Scene, name: str) -> None:
    found = []
    for mass in (1.0, 2.0):
        entries = {what: {"range": (v, v)} for what, v in (("object_mass", mass), (name, 2.0))}
        config = {"curriculum": "uniform", "parameters": entries}
        made = Randomizer(RandomizationConfig.model_validate(config), seed=3)
        sim = make_sim(
            scene.model,
            4,
            SimConfig(backend="cpu", threads=1),
            model_fields=made.model_fields,
            wrench_body="object",
        )
        made.attach(sim, scene, CONTROL_DT)
        made.begin(torch.arange(4))
        if name == "pulse_force":
            made._adversary._tensors["chance"].fill_(1.0)
        found.append(made.act(torch.zeros(4, JOINTS), 1)[1])
    assert (found[0][:, :3] != 0).all()
    torch.testing.assert_close(found[1], 2.0 * found[0])


# ------------------------------------------------------------------------------ pushes


def test_pushes_begin_at_random_decay_and_replace_each_other(scene: Scene) -> None:
    n, steps, std = 1500, 400, 2.0
    made, _ = make(Adversary, scene, n, pulse_force=std)
    target = torch.zeros(n, JOINTS)
    push, begun, fresh = torch.zeros(n, 6), torch.zeros(n), []
    decay = 0.99 ** (CONTROL_DT / 0.08)
    for _ in range(steps):
        sent, wrench = made.act(target)
        assert sent is target
        continues = torch.isclose(wrench, decay * push, rtol=1e-4, atol=1e-7).all(1)
        begun += ~continues
        fresh.append(wrench[~continues, :3])
        push = wrench.clone()
        assert not wrench[:, 3:].any()
    forces = torch.cat(fresh) / CUBE.mass
    assert forces.std() == pytest.approx(std, rel=0.02)
    assert forces.mean().abs() < 4 * std / math.sqrt(forces.numel())
    # the mean of a log-uniform rate, and its spread: episodes differ
    low, high = PULSES_PER_SECOND
    seconds, mean = steps * CONTROL_DT, (high - low) / math.log(high / low)
    square = 0.5 * (high**2 - low**2) / math.log(high / low)
    spread = math.sqrt(mean * seconds + (square - mean**2) * seconds**2)
    # a step sees no more than one begin: that loses a share of less than 1.25 * .05 / 2
    assert begun.mean() == pytest.approx(mean * seconds, rel=0.03, abs=4 * spread / math.sqrt(n))
    assert begun.std() == pytest.approx(spread, rel=0.1)


def test_a_new_episode_begins_without_a_push(scene: Scene) -> None:
    made, _ = make(Adversary, scene, 4, pulse_force=3.0)
    made._tensors["chance"].fill_(1.0)  # one in every step
    target = torch.zeros(4, JOINTS)
    assert (made.act(target)[1][:, :3] != 0).all()
    begin(made, torch.tensor([2]), pulse_force=3.0)
    made._tensors["chance"].fill_(0.0)
    wrench = made.act(target)[1]
    assert not wrench[2].any()
    assert (wrench[[0, 1, 3], :3] != 0).all()


def test_pushes_and_wrenches_add_up(scene: Scene) -> None:
    made, sim = make(Adversary, scene, 5, adversary_wrench=1.0, pulse_force=2.0)
    joints = place(scene, made, sim)
    made._tensors["chance"].zero_()
    _, wrench = made.act(joints)
    made._tensors["push"] = push = torch.randn(5, 3)
    made.hold(torch.arange(5), joints)
    _, more = made.act(joints)
    later = 0.99 ** (CONTROL_DT / 0.08) * push
    torch.testing.assert_close(more[:, :3] - wrench[:, :3], CUBE.mass * later)
    torch.testing.assert_close(more[:, 3:], wrench[:, 3:])


# ------------------------------------------------------------------- refusals, resume


@pytest.mark.parametrize("name", ["adversary_wrench", "pulse_force"])
def test_what_acts_on_the_object_needs_one(bare: Scene, name: str) -> None:
    config = {"curriculum": "uniform", "parameters": {name: {}, "adversary_action": {}}}
    made = Randomizer(RandomizationConfig.model_validate(config))
    sim = make_sim(bare.model, 2, SimConfig(backend="cpu", threads=1))
    with pytest.raises(ValueError, match=f"^randomization.parameters: {name}: .*no object") as info:
        made.attach(sim, bare, CONTROL_DT)
    assert "\n" not in str(info.value)


def drive(made: Adversary, sim: BatchSim, scene: Scene, steps: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    given: list[Tensor] = []
    for _ in range(steps):
        sent, wrench = made.act(torch.randn(5, JOINTS, generator=generator))
        sim.step(sent[:, None], wrench)
        given += [sent.clone(), wrench.clone()]
        ids = (torch.rand(5, generator=generator) < 0.2).nonzero()[:, 0]
        begin(made, ids, **{name: 0.5 * most for name, most in LIMITS.items()})
        made.hold(ids, torch.randn(len(ids), JOINTS, generator=generator))
    return given


def test_a_run_in_two_parts_equals_one(scene: Scene) -> None:
    values = {name: 0.5 * most for name, most in LIMITS.items()}
    first, sim = make(Adversary, scene, 5, 1, **values)
    drive(first, sim, scene, 30, seed=2)
    file = io.BytesIO()
    torch.save(
        {"a": first.state_dict(), "s": sim.state_dict(), "g": first._generator.get_state()}, file
    )
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second, other = make(Adversary, scene, 5, 77, **values)
    other.load_state_dict(state["s"])
    second.load_state_dict(state["a"])
    second._generator.set_state(state["g"])
    expected = drive(first, sim, scene, 30, seed=3)
    found = drive(second, other, scene, 30, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_parameters_at_their_nominal_change_nothing(scene: Scene) -> None:
    for what in ADVERSARY:
        assert what.nominal == 0.0 == what.limits[0]
        made, sim = make(Adversary, scene, 3, **{what.name: 0.0})
        place(scene, made, sim)
        target = torch.randn(3, JOINTS)
        sent, wrench = made.act(target)
        torch.testing.assert_close(sent, target, rtol=0, atol=0)
        assert wrench is None or not wrench.any()

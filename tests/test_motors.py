"""Motors that fail or tire: against MuJoCo models edited by hand and the arithmetic of chance."""

from __future__ import annotations

import copy
import math

import mujoco
import numpy as np
import pytest
import torch
from plants import CONTROL_DT, JOINTS, begin, held, make
from torch import Tensor

from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.hand import load_hand
from widen.envs.scene import Scene, build_scene
from widen.envs.sim import BatchSim, SimConfig
from widen.randomization.actuation import Actuation
from widen.randomization.config import RandomizationConfig
from widen.randomization.motors import FADE_SECONDS, MOST_FAILURES
from widen.randomization.randomizer import Randomizer


@pytest.fixture(scope="module")
def scene() -> Scene:
    return build_scene(load_hand("leap"), None, timestep=1 / 60)


def limp(sim: BatchSim) -> Tensor:
    """(N, nu) bool: motors without any torque."""
    gain, bias = sim.per_env("actuator_gainprm"), sim.per_env("actuator_biasprm")
    none = (gain == 0).all(-1)
    assert torch.equal(none, (bias == 0).all(-1))
    return none


def test_broken_motors_have_no_torque(scene: Scene) -> None:
    """A plain loop over a model whose kp and kv are zero for the same motors."""
    n, seen = 12, 0
    made, sim = make(Actuation, scene, n, seed=2, motor_broken=0.1)
    home = torch.tensor(scene.hand.home, dtype=torch.float64)
    sim.reset(torch.arange(n), home.repeat(n, 1), torch.zeros(n, scene.model.nv))
    broken = limp(sim).numpy()
    targets = home + 0.4 * torch.randn(20, n, JOINTS)
    found = []
    for target in targets:
        sim.step(made.act(target, 3))
        found.append(sim.qpos.clone().numpy())
    for env in range(n):
        model = copy.copy(scene.model)
        for motor in np.flatnonzero(broken[env]):
            model.actuator_gainprm[motor, 0] = 0.0
            model.actuator_biasprm[motor, 1:3] = 0.0
            seen += 1
        data = mujoco.MjData(model)
        data.qpos[:] = scene.hand.home
        for step, target in enumerate(targets):
            data.ctrl[:] = target[env].numpy()
            mujoco.mj_step(model, data, 3)
            np.testing.assert_array_equal(found[step][env], data.qpos)
    assert seen > 5


def test_frozen_motors_stay_where_the_episode_began(scene: Scene) -> None:
    n = 40
    made, _ = make(Actuation, scene, n, motor_frozen=0.1, action_latency=0.5)
    for _ in range(2):
        begin(made, torch.arange(n), motor_frozen=0.1, action_latency=0.5)
        position, first, last = held(made, n), torch.randn(n, JOINTS), torch.randn(n, JOINTS)
        made.act(first, 2)
        ctrl = made.act(last, 2)
        frozen = ctrl[:, 1] == position
        assert 10 < frozen.sum() < 2 * n
        for env in range(n):
            assert frozen[env].sum() <= MOST_FAILURES
            for i in range(JOINTS):
                expected = (
                    [position[env, i]] * 2 if frozen[env, i] else [first[env, i], last[env, i]]
                )
                assert ctrl[env, :, i].tolist() == [float(x) for x in expected]


def expected_failures(chance: float) -> float:
    """Mean of min(failures, MOST_FAILURES) where each of the motors fails by itself."""
    odds = [
        math.comb(JOINTS, k) * chance**k * (1 - chance) ** (JOINTS - k) for k in range(JOINTS + 1)
    ]
    return sum(p * min(k, MOST_FAILURES) for k, p in enumerate(odds))


def test_how_many_motors_fail(scene: Scene) -> None:
    n, broken, frozen = 4000, 0.06, 0.03
    made, sim = make(Actuation, scene, n, motor_broken=broken, motor_frozen=frozen)
    position = held(made, n)
    dead, stuck = limp(sim), made.act(torch.randn(n, JOINTS), 1)[:, 0] == position
    assert not (dead & stuck).any()
    failed = (dead | stuck).sum(1)
    assert failed.max() == MOST_FAILURES
    expected = expected_failures(broken + frozen)
    assert failed.float().mean() == pytest.approx(expected, abs=4 * 0.8 / math.sqrt(n))
    share = dead.sum() / (dead.sum() + stuck.sum())
    assert share == pytest.approx(broken / (broken + frozen), abs=0.03)
    by_motor = (dead | stuck).float().mean(0)  # none is picked before another
    error = 4.5 * math.sqrt(expected / JOINTS / n)
    assert (by_motor - expected / JOINTS).abs().max() < error


def environment(n: int, **ranges: float) -> BatchedEnv:
    entries = {name: {"range": (value, value)} for name, value in ranges.items()}
    config = {"curriculum": "uniform", "parameters": entries}
    return BatchedEnv(
        "fingertip_reach",
        config=EnvConfig(num_envs=n),
        sim=SimConfig(backend="cpu", threads=1),
        perturbation=Randomizer(RandomizationConfig.model_validate(config)),
    )


def test_fading_motors_against_a_loop_that_edits_its_model(scene: Scene) -> None:
    fade, gain, force = 0.6, 1.5, 0.8
    env = environment(3, motor_fade=fade, actuator_gain=gain, force_limit=force)
    sim = env.sim
    for _ in range(2):  # the second episode begins as strong as the first did
        env.reset()
        model = copy.copy(scene.model)
        model.actuator_gainprm[:, 0] *= gain
        model.actuator_biasprm[:, 1] *= gain
        model.actuator_forcerange *= force
        fresh = [
            np.array(x)
            for x in (model.actuator_gainprm, model.actuator_biasprm, model.actuator_forcerange)
        ]
        data = mujoco.MjData(model)
        data.qpos[:] = sim.qpos[0].numpy()
        targets = torch.tensor(scene.hand.home) + 0.8 * torch.randn(50, JOINTS)
        for step, target in enumerate(targets):
            left = 1.0 - fade * step * CONTROL_DT / FADE_SECONDS
            model.actuator_gainprm[:] = left * fresh[0]
            model.actuator_biasprm[:] = left * fresh[1]
            model.actuator_forcerange[:] = left * fresh[2]
            ctrl, _ = env.perturbation.act(target.repeat(3, 1), 3)
            sim.step(ctrl)
            data.ctrl[:] = target.numpy()
            mujoco.mj_step(model, data, 3)
            np.testing.assert_allclose(sim.qpos[0].numpy(), data.qpos, rtol=0, atol=1e-9)
        weak = sim.per_env("actuator_gainprm")[0, 0, 0] / fresh[0][0, 0]
        assert weak == pytest.approx(1 - 0.6 * 49 * 0.05 / 20)


def test_strength_ends_at_nothing_and_a_limp_motor_stays_limp(scene: Scene) -> None:
    made, sim = make(Actuation, scene, 8, seed=2, motor_fade=0.6, motor_broken=0.1)
    broken = limp(sim)
    assert broken.sum() > 0
    target = torch.zeros(8, JOINTS)
    for _ in range(200):  # ten seconds
        made.act(target, 1)
    left = sim.per_env("actuator_gainprm")[..., 0] / 3.0
    assert torch.equal(left == 0, broken)
    torch.testing.assert_close(left[~broken], torch.full_like(left[~broken], 1 - 0.3 * 199 / 200))
    for _ in range(500):
        made.act(target, 1)
    assert (sim.per_env("actuator_forcerange") == 0).all()

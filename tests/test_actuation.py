"""Between targets and motors: against plain lists and loops, and against edited MuJoCo models."""

from __future__ import annotations

import copy
import io
import math
from dataclasses import replace
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from plants import JOINTS, begin, held, make, plant
from torch import Tensor

from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.hand import load_hand
from widen.envs.scene import Scene, build_scene
from widen.envs.sim import BatchSim, SimConfig
from widen.randomization.actuation import ACTUATION, Actuation
from widen.randomization.config import RandomizationConfig
from widen.randomization.parameters import CATALOGUE
from widen.randomization.randomizer import Randomizer

LIMITS = {what.name: what.limits[1] for what in ACTUATION}


@pytest.fixture(scope="module")
def scene() -> Scene:
    """The hand alone, where nothing but gravity disturbs it."""
    return build_scene(load_hand("leap"), None, timestep=1 / 60)


def actuation(scene: Scene, num_envs: int, seed: int = 0, **values: Any) -> Actuation:
    return make(Actuation, scene, num_envs, seed, **values)[0]


# ------------------------------------------------------------------------------ latency

LATENCIES = [0.0, 0.1, 1 / 3, 0.5, 2 / 3, 0.99, 1.0, 1.2, 1.7, 2.0, 2.5, 2.9, 3.0]


@pytest.mark.parametrize("substeps", [1, 3, 4])
def test_latency_against_a_list_of_past_targets(scene: Scene, substeps: int) -> None:
    n = len(LATENCIES)
    made = actuation(scene, n, action_latency=LATENCIES)
    before, past = held(made, n), []
    for step in range(12):
        past.append(torch.randn(n, JOINTS))
        ctrl = made.act(past[-1], substeps)
        assert ctrl.shape == (n, substeps, JOINTS)
        for env, latency in enumerate(LATENCIES):
            for substep in range(substeps):
                # the target of control step k is current from time k until k + 1
                current = math.floor(step + substep / substeps - latency + 1e-9)
                expected = past[current][env] if current >= 0 else before[env]
                torch.testing.assert_close(ctrl[env, substep], expected, rtol=0, atol=0)


def arrivals(made: Actuation, num_envs: int, substeps: int) -> Tensor:
    """How late every motor obeys, (num_envs, nu) [control steps], rounded up to substeps.

    The target of control step k is the number k. Each must arrive in its turn, equally late.
    """
    steps = 12
    made.hold(torch.arange(num_envs), torch.full((num_envs, JOINTS), -1.0))
    ctrl = [made.act(torch.full((num_envs, JOINTS), float(k)), substeps) for k in range(steps)]
    obeyed = torch.cat(ctrl, 1).numpy()  # (num_envs, steps * substeps, nu)
    late = np.argmax(obeyed == 0.0, axis=1)  # substeps until the first target
    for now in range(steps * substeps):
        expected = np.maximum((now - late) // substeps, -1)
        np.testing.assert_array_equal(obeyed[:, now], expected)
    return torch.from_numpy(late) / substeps


def test_fault_4_every_latency_within_the_limits_is_still_in_the_queue(scene: Scene) -> None:
    """Both parameters at their hard limits, with normal samples that go beyond any bound."""
    n, common, spread = 300, LIMITS["action_latency"], LIMITS["action_latency_spread"]
    late = arrivals(actuation(scene, n, action_latency=common), n, 3)
    assert (late == common).all()
    made = actuation(scene, n, action_latency=common, action_latency_spread=spread)
    late = arrivals(made, n, 20)
    assert late.max() == common + 2 * spread  # cut there: a normal sample of 4800 goes further
    assert (late == late.max()).float().mean() == pytest.approx(0.0228, abs=0.01)
    with pytest.raises(ValueError, match="goes beyond"):
        RandomizationConfig.model_validate(
            {"parameters": {"action_latency": {"limits": [0.0, common + 0.1]}}}
        ).ranges()


@pytest.mark.parametrize("substeps", [1, 3])
@pytest.mark.parametrize("most", [0.1, 1.9, 2.8, 3.0])
def test_fault_4_a_config_may_end_latency_anywhere(
    scene: Scene, most: float, substeps: int
) -> None:
    made = Actuation({"action_latency": most}, plant(scene, 2))
    begin(made, torch.arange(2), action_latency=most)
    late = arrivals(made, 2, substeps)
    assert (late == math.ceil(most * substeps - 1e-9) / substeps).all()


def test_every_motor_has_its_own_latency(scene: Scene) -> None:
    n, substeps = 200, 40
    made = actuation(scene, n, action_latency=2.0, action_latency_spread=0.3)
    late = arrivals(made, n, substeps) - 0.5 / substeps  # which was rounded up
    assert late.mean() == pytest.approx(2.0, abs=0.02)
    assert late.std() == pytest.approx(0.3, rel=0.05)
    assert late.mean(1).std() == pytest.approx(0.3 / 4, rel=0.25)  # independent of each other
    alone = arrivals(actuation(scene, n, action_latency_spread=0.3), n, substeps)
    assert (alone == 0.0).float().mean() == pytest.approx(0.5, abs=0.03)  # none is early


# ---------------------------------------------------------------------- lost commands


def test_a_lost_command_leaves_the_last_one(scene: Scene) -> None:
    chances = [0.0, 0.1, 0.3, 0.5]
    n, steps = len(chances), 1500
    made = actuation(scene, n, action_repeat=chances)
    last, lost = held(made, n), torch.zeros(n)
    for _ in range(steps):
        target = torch.randn(n, JOINTS)
        ctrl = made.act(target, 2)
        assert torch.equal(ctrl[:, 0], ctrl[:, 1])
        for env in range(n):
            if torch.equal(ctrl[env, 0], last[env]):  # all joints of a hand together
                lost[env] += 1
            else:
                assert torch.equal(ctrl[env, 0], target[env])
        last = ctrl[:, 0].clone()
    for env, chance in enumerate(chances):
        error = 4 * math.sqrt(chance * (1 - chance) / steps)
        assert lost[env] / steps == pytest.approx(chance, abs=error)


# --------------------------------------------------------------------------- backlash


def test_backlash_is_the_play_operator(scene: Scene) -> None:
    gaps = [0.0, 0.05, 0.13, 0.2]
    n = len(gaps)
    made = actuation(scene, n, backlash=gaps)
    position = held(made, n)
    joint = [[float(x) for x in row] for row in position]
    target = position.clone()
    for _ in range(60):
        target = target + 0.1 * torch.randn(n, JOINTS)
        ctrl = made.act(target, 1)[:, 0]
        for env, gap in enumerate(gaps):
            for i in range(JOINTS):
                motor = float(target[env, i])
                if motor - joint[env][i] > gap / 2:  # pushes one flank
                    joint[env][i] = motor - gap / 2
                elif joint[env][i] - motor > gap / 2:  # or the other
                    joint[env][i] = motor + gap / 2
                assert float(ctrl[env, i]) == pytest.approx(joint[env][i], abs=1e-6)


def test_a_motor_that_turns_back_crosses_the_whole_gap(scene: Scene) -> None:
    gap = 0.2
    made = actuation(scene, 1, backlash=gap, action_latency=1.5)
    made.hold(torch.arange(1), torch.zeros(1, JOINTS))
    sweep = np.concatenate((np.arange(0, 0.5, 0.02), np.arange(0.5, -0.5, -0.02)))
    joint = [made.act(torch.full((1, JOINTS), float(x)), 2)[0, 1, 0].item() for x in sweep]
    peak = sweep.max() - gap / 2
    assert max(joint) == pytest.approx(peak, abs=1e-6)
    resting = np.isclose(joint, peak, atol=1e-6).sum()
    assert resting == round(gap / 0.02) + 1
    # substep 1 of a control step obeys the target of one step ago; the gap knows no time
    np.testing.assert_allclose(joint[-10:], sweep[-11:-1] + gap / 2, atol=1e-6)


# ----------------------------------------------------------------- factors and offsets


def test_multiplicative_noise_is_a_factor_on_changes(scene: Scene) -> None:
    n, std = 500, 0.2
    made = actuation(scene, n, action_gain_noise=std)
    last, factors = held(made, n), []
    for _ in range(4):
        target = torch.randn(n, JOINTS)
        ctrl = made.act(target, 1)[:, 0]
        factors.append((ctrl - last) / (target - last))
        last = target  # a factor's error does not accumulate
    spread = factors[1] - 1.0
    assert spread.mean().abs() < 4 * std / math.sqrt(n * JOINTS)
    assert spread.std() == pytest.approx(std, rel=0.04)
    for factor in factors:
        assert (factor - factors[1]).abs().median() < 1e-5  # the episode's own
    begin(made, torch.arange(0, n, 2), action_gain_noise=std)
    target = torch.randn(n, JOINTS)
    again = (made.act(target, 1)[:, 0] - last) / (target - last)
    changed = (again - factors[1]).abs() > 1e-2
    assert changed[::2].float().mean() > 0.9
    assert changed[1::2].float().mean() < 0.01


def test_noise_and_bias_of_targets(scene: Scene) -> None:
    n, steps, noise, bias = 400, 40, 0.02, 0.05
    made = actuation(scene, n, action_noise=noise, action_bias=bias)
    target = torch.randn(n, JOINTS)
    errors = torch.stack([made.act(target, 3) - target[:, None] for _ in range(steps)])
    assert (errors[:, :, 0] == errors[:, :, 2]).all()  # one target is one command
    means = errors[:, :, 0].mean(0)
    assert means.std() == pytest.approx(math.hypot(bias, noise / math.sqrt(steps)), rel=0.03)
    within = (errors[:, :, 0] - means).square().mean() * steps / (steps - 1)
    assert within.sqrt() == pytest.approx(noise, rel=0.02)


# ------------------------------------------------------------------------ encoder zero


def test_servo_and_policy_read_the_same_encoder(scene: Scene) -> None:
    """With nothing to push it away the servo brings what it *reads* to the target."""
    n, ids, model = 6, torch.arange(6), copy.copy(scene.model)
    model.opt.gravity[:] = 0.0
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONTACT)
    made, sim = make(Actuation, replace(scene, model=model), n, encoder_offset=0.1)
    offset = made.encoder_offset
    home = torch.tensor(scene.hand.home, dtype=torch.float64).repeat(n, 1)
    sim.reset(ids, home, torch.zeros(n, model.nv))
    made.hold(ids, sim.qpos)
    torch.testing.assert_close(made.act(home.float() + offset, 1)[:, 0], home.float())
    target = torch.full((n, JOINTS), 0.5)  # well within all limits
    for _ in range(100):
        sim.step(made.act(target, 3))
    assert offset.abs().max() > 0.15
    torch.testing.assert_close(sim.qpos.float() + offset, target, rtol=0, atol=1e-4)


def test_readings_have_the_offset_and_the_start_is_at_rest(scene: Scene) -> None:
    n, ids = 5, torch.arange(5)
    entries = {name: {"range": (1.0, 1.0)} for name in ("action_latency",)}
    entries["encoder_offset"] = {"range": (0.1, 0.1)}
    config = {"curriculum": "uniform", "parameters": entries}
    env = BatchedEnv(
        "fingertip_reach",
        config=EnvConfig(num_envs=n),
        sim=SimConfig(backend="cpu", threads=1),
        perturbation=Randomizer(RandomizationConfig.model_validate(config), 4),
    )
    env.reset()
    true = env.sim.qpos[:, torch.as_tensor(scene.joint_qpos)].float()
    offset = env.last_readings["joint_pos"] - true
    assert offset.std() == pytest.approx(0.1, rel=0.3)
    target = torch.randn(n, JOINTS)
    ctrl, _ = env.perturbation.act(target, 1)  # a step late: the motors stay where they are
    torch.testing.assert_close(ctrl[:, 0], true)
    ctrl, _ = env.perturbation.act(target, 1)
    torch.testing.assert_close(ctrl[:, 0], target - offset)
    reading = env.perturbation.observe({"joint_pos": true})["joint_pos"]
    torch.testing.assert_close(reading, true + offset)
    env.perturbation.begin(ids[:2])
    reading = env.perturbation.observe_reset({"joint_pos": true[:2]}, ids[:2])["joint_pos"]
    assert ((reading - true[:2] - offset[:2]).abs() > 1e-3).any(1).all()  # drawn anew
    reading = env.perturbation.observe({"joint_pos": true})["joint_pos"]
    torch.testing.assert_close(reading[2:], true[2:] + offset[2:])


# ------------------------------------------------------------------------------ resume


def drive(made: Actuation, sim: BatchSim, steps: int, seed: int) -> list[Tensor]:
    """All that actuation gives in random use."""
    generator = torch.Generator().manual_seed(seed)
    given = []
    for _ in range(steps):
        given.append(made.act(torch.randn(6, JOINTS, generator=generator), 3).clone())
        given += [sim.per_env(f).clone() for f in ("actuator_gainprm", "jnt_actfrcrange")]
        ids = (torch.rand(6, generator=generator) < 0.2).nonzero()[:, 0]
        begin(made, ids, **dict.fromkeys(LIMITS, 0.1))
        made.hold(ids, torch.randn(len(ids), JOINTS, generator=generator))
        assert made.encoder_offset is not None
        given.append(made.encoder_offset.clone())
    return given


def test_a_run_in_two_parts_equals_one(scene: Scene) -> None:
    def fresh(seed: int) -> tuple[Actuation, BatchSim]:
        return make(Actuation, scene, 6, seed, **dict.fromkeys(LIMITS, 0.1))

    first, sim = fresh(1)
    drive(first, sim, 30, seed=2)
    file = io.BytesIO()
    torch.save(
        {
            "actuation": first.state_dict(),
            "sim": sim.state_dict(),
            "generator": first._generator.get_state(),
        },
        file,
    )
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second, other = fresh(77)
    other.load_state_dict(state["sim"])
    second.load_state_dict(state["actuation"])
    second._generator.set_state(state["generator"])
    expected, found = drive(first, sim, 30, seed=3), drive(second, other, 30, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_what_was_handed_out_does_not_change_afterwards(scene: Scene) -> None:
    values = dict.fromkeys(
        ("action_repeat", "backlash", "action_gain_noise", "encoder_offset"), 0.1
    )
    made = actuation(scene, 4, **values)
    given = []
    for _ in range(6):
        target = torch.randn(4, JOINTS)
        for array in (target, made.act(target, 2), made.encoder_offset):
            given.append((array, array.clone()))
        begin(made, torch.tensor([1, 3]), **values)
        made.hold(torch.tensor([1, 3]), torch.randn(2, JOINTS))
    assert all(torch.equal(array, copy) for array, copy in given)


def test_every_parameter_alone_at_its_nominal_changes_nothing(scene: Scene) -> None:
    target = torch.randn(3, JOINTS)
    for what in ACTUATION:
        assert what.nominal == 0.0 == what.limits[0]
        assert what is CATALOGUE[what.name]
        made, sim = make(Actuation, scene, 3, **{what.name: 0.0})
        held(made, 3)
        for _ in range(3):
            assert torch.equal(made.act(target, 2), target[:, None].expand(-1, 2, -1)), what.name
        for field in what.fields:
            nominal = torch.from_numpy(np.array(getattr(scene.model, field)))
            assert (sim.per_env(field) == nominal).all()

"""What every backend of `BatchSim` does, against MuJoCo on models compiled from XML."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
from finger_model import (
    BACKENDS,
    FIELDS,
    NOMINAL,
    NQ,
    NU,
    NV,
    SENSORS,
    TOLERANCE,
    N,
    PlainLoop,
    begin,
    close,
    compile_model,
    draw_state,
    draw_values,
    everyone,
    on,
    random_steps,
    same,
    sim_of,
    twins,
    write_values,
    xml,
)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def test_interface(backend: str) -> None:
    model = compile_model()
    sim = sim_of(backend, model, N)
    assert sim.masked == (backend != "cpu")
    assert sim.device.type == ("cuda" if backend == "cuda" else "cpu")
    assert sim.num_envs == N
    shapes = {"qpos": (N, NQ), "qvel": (N, NV), "sensordata": (N, 6), "diverged": (N,)}
    for name, shape in (shapes | {"overflow": (N,)}).items():
        values = getattr(sim, name)
        assert values.shape == shape
        assert values.device == sim.device
        assert values.is_floating_point() == (name in TOLERANCE)
    assert sim.diverged.dtype == sim.overflow.dtype == torch.bool
    for name in FIELDS:
        owner = model.opt if name.startswith("opt.") else model
        nominal = np.asarray(getattr(owner, name.removeprefix("opt.")))
        expected = torch.from_numpy(nominal).to(sim.per_env(name).dtype)
        assert (sim.per_env(name).cpu() == expected.expand(N, *nominal.shape)).all()
    begin(sim)
    random_steps(sim, 0)
    assert not sim.diverged.any()
    assert not sim.overflow.any()
    sim.check()


@pytest.mark.parametrize("sensors", list(SENSORS))
def test_equals_mj_step_over_compiled_models(backend: str, sensors: str) -> None:
    """Fields, partial resets, a ctrl for each substep, the wrench, sensors of the same instant."""
    rng, truth = np.random.default_rng(3), PlainLoop(N, sensors)
    sim = sim_of(backend, compile_model(sensors=sensors), N)

    def compare() -> None:
        for name, expected in truth.now().items():
            close(backend, name, getattr(sim, name), expected)

    compare()
    for trial in range(12):
        qpos, qvel = draw_state(rng, N)
        for env in range(N):
            values = draw_values(rng)
            write_values(sim, env, values)
            truth.reset(env, values, qpos[env], qvel[env])
        ids = torch.tensor([[0, 3], [1, 2, 4]][trial % 2], device=sim.device)
        sim.commit(ids)
        sim.reset(ids, *on(sim, qpos[ids.cpu()], qvel[ids.cpu()]))
        mask = everyone(sim)
        mask[ids] = False
        sim.commit(mask)
        sim.reset(mask, *on(sim, qpos, qvel))
        compare()
        for substeps in (4, 1, 3, 4, 4, 4):
            ctrl = rng.uniform(-1, 1, (N, substeps, NU))
            wrench = rng.normal(size=(N, 6)) * 0.2 if rng.random() < 0.3 else None
            held = None if wrench is None else on(sim, wrench)[0]
            sim.step(on(sim, ctrl)[0], held)
            truth.step(ctrl, wrench)
            compare()
            assert not sim.diverged.any()
    assert truth.touched > 30  # or sizes and frictions would not have mattered
    assert not sim.overflow.any()


def test_ids_and_masks_do_the_same(backend: str) -> None:
    by_ids, by_mask = twins(backend)
    chosen = torch.tensor([1, 3])
    qpos, qvel = draw_state(np.random.default_rng(5), N)
    for sim in (by_ids, by_mask):
        sim.per_env("body_mass")[chosen] *= 1.5
    ids, mask = chosen.to(by_ids.device), everyone(by_ids) & False
    mask[ids] = True
    by_ids.commit(ids)
    by_mask.commit(mask)
    same(backend, by_ids, by_mask)
    by_ids.reset(ids, *on(by_ids, qpos[chosen], qvel[chosen]))
    # rows beside the mask do not count, whatever they hold
    nowhere = torch.full_like(qpos, torch.nan)
    nowhere[chosen] = qpos[chosen]
    by_mask.reset(mask, *on(by_mask, nowhere, qvel))
    same(backend, by_ids, by_mask)
    assert (by_ids.qpos[ids].cpu() == qpos[chosen].to(by_ids.qpos.dtype)).all()
    for sim in (by_ids, by_mask):
        random_steps(sim, 2, 5)
    same(backend, by_ids, by_mask)
    nobody = mask & False
    by_mask.commit(nobody)
    by_mask.reset(nobody, by_mask.qpos * torch.nan, by_mask.qvel)
    by_ids.reset(ids[:0], by_ids.qpos[:0], by_ids.qvel[:0])
    same(backend, by_ids, by_mask)


def test_commit_and_reset_touch_nothing_else(backend: str) -> None:
    sim, alone = twins(backend)
    rng = np.random.default_rng(6)
    others = [0, 2, 4]
    for env in (1, 3):
        write_values(sim, env, draw_values(rng))
    ids = torch.tensor([1, 3], device=sim.device)
    sim.commit(ids)
    same(backend, sim, alone)
    sim.reset(ids, *on(sim, *draw_state(rng, 2)))
    for count in (0, 1, 9):
        random_steps(sim, count, count)
        random_steps(alone, count, count)
        same(backend, sim, alone, others)
    assert (sim.qpos[ids] != alone.qpos[ids]).any(1).all()


def test_reset_makes_everything_as_new(backend: str) -> None:
    used, new = twins(backend)
    wild = torch.full((N, 3, NU), 0.9, device=used.device)
    used.step(wild, torch.full((N, 6), 0.4, device=used.device))
    for sim in (used, new):
        begin(sim, seed=2)
        random_steps(sim, 3)
    same(backend, used, new)
    fresh = sim_of(backend, compile_model(), N)
    begin(fresh, seed=2)
    random_steps(fresh, 3)
    same(backend, used, fresh)


def test_views_are_live_and_share_memory(backend: str) -> None:
    sim = sim_of(backend, compile_model(), N)
    mass, pointer = sim.per_env("body_mass"), sim.qpos.data_ptr()
    held = {name: getattr(sim, name) for name in TOLERANCE}
    before = {name: view.clone() for name, view in held.items()}
    random_steps(sim, 0)
    assert sim.qpos.data_ptr() == pointer
    assert sim.per_env("body_mass").data_ptr() == mass.data_ptr()
    for name, view in held.items():
        assert view is getattr(sim, name)
        assert (view != before[name]).any()


def test_the_callers_model_is_not_written_and_not_needed(backend: str) -> None:
    model = compile_model()
    sim = sim_of(backend, model, N)
    model.body_mass[:] = 7.0
    assert sim.model.body_mass[-1] == NOMINAL["mass"][0]
    sim.per_env("body_mass")[0] *= 2
    sim.commit(everyone(sim))
    random_steps(sim, 0)
    assert sim.model.body_mass[-1] == NOMINAL["mass"][0]
    assert model.body_mass[-1] == 7.0


@pytest.mark.parametrize(("row", "value"), [("qpos", torch.nan), ("qvel", 1e12)])
def test_divergence_stays_where_it_is(
    backend: str,
    row: str,
    value: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    ill, healthy = twins(backend)
    capfd.readouterr()
    only = torch.arange(N, device=ill.device) == 2
    for seed in range(3):  # MuJoCo's counters stand at one after the first, and stay there
        getattr(ill, row)[2, 0] = value  # as an exploding contact would leave it
        random_steps(healthy, seed, 1)
        random_steps(ill, seed, 1)
        assert (ill.diverged == only).all()
        assert not healthy.diverged.any()
        assert ill.qpos.isfinite().all()
        assert ill.sensordata.isfinite().all()
    for sim in (ill, healthy):
        sim.reset(only, *on(sim, *draw_state(np.random.default_rng(7), N)))
        random_steps(sim, 9)
    assert not ill.diverged.any()
    same(backend, ill, healthy)
    assert capfd.readouterr() == ("", "")  # and no MUJOCO_LOG.TXT
    assert list(tmp_path.iterdir()) == []


def test_a_ctrl_that_is_no_number_is_divergence(backend: str) -> None:
    sim = sim_of(backend, compile_model(), N)
    ctrl = torch.zeros(N, 2, NU, device=sim.device)
    ctrl[1, 1] = torch.nan
    for _ in range(3):
        sim.step(ctrl)
        assert sim.diverged.tolist() == [env == 1 for env in range(N)]
    sim.step(torch.zeros_like(ctrl))
    assert not sim.diverged.any()


def test_wrench_is_a_force_in_the_world_at_the_centre_of_mass(backend: str) -> None:
    sim = sim_of(backend, compile_model(NOMINAL | {"gravity": [0.0, 0.0, 0.0]}), N)
    qpos, _ = draw_state(np.random.default_rng(0), N)
    qpos[:, 3:6] = torch.tensor([1.0, 1.0, 1.0])  # free of everything
    sim.reset(everyone(sim), *on(sim, qpos, torch.zeros(N, NV)))
    ctrl, wrench = on(sim, torch.zeros(N, 2, NU), torch.zeros(N, 6))
    wrench[1, 1] = 0.04
    wrench[3, 3:] = torch.tensor([0.0, 0.0, 0.001])
    sim.step(ctrl, wrench)
    for _ in range(2):  # held for one call
        speed = 0.04 / NOMINAL["mass"][0] * 0.02
        torch.testing.assert_close(sim.qvel[1, 4].item(), speed, rtol=1e-5, atol=0)
        others = [env for env in range(N) if env != 1]
        assert sim.qvel[others, 3:6].abs().max() < 1e-6
        assert sim.qvel[[0, 1, 2, 4], 6:].abs().max() < 1e-6
        assert sim.qvel[3, 6:].norm() > 0.1
        sim.step(ctrl)


def test_expanded_float32_ctrl_is_the_same_in_every_substep(backend: str) -> None:
    expanded, full = twins(backend)
    target = torch.rand(N, NU, device=full.device)
    expanded.step(target[:, None].expand(-1, 4, -1))
    full.step(target.double()[:, None].repeat(1, 4, 1))
    same(backend, expanded, full)


@pytest.mark.parametrize("sensors", list(SENSORS))
def test_late_sensors_are_those_of_mj_step(backend: str, sensors: str) -> None:
    """Of the state before the last simulation step, whatever a call's number of them."""
    rng, truth = np.random.default_rng(7), PlainLoop(N, sensors)
    sim = sim_of(backend, compile_model(sensors=sensors), N, sensors="late")
    qpos, qvel = draw_state(rng, N)
    for env in range(N):
        values = draw_values(rng)
        write_values(sim, env, values)
        truth.reset(env, values, qpos[env], qvel[env])
    sim.commit(everyone(sim))
    sim.reset(everyone(sim), *on(sim, qpos, qvel))
    for substeps in (3, 1, 4):
        ctrl = rng.uniform(-1, 1, (N, substeps, NU))
        sim.step(on(sim, ctrl)[0])
        truth.step(ctrl, None)
        expected = np.array([data.sensordata for data in truth.datas])
        close(backend, "sensordata", sim.sensordata, expected)
        assert (expected != truth.now()["sensordata"]).any()


def test_without_sensors_they_are_not_to_be_read(backend: str) -> None:
    sim = sim_of(backend, compile_model(), N, sensors="none")
    random_steps(sim, 0)
    assert sim.sensordata.shape == (N, 6)
    assert sim.sensordata.isnan().all()


@pytest.mark.parametrize("sensors", list(SENSORS))
def test_state_dict_continues_in_contact(backend: str, sensors: str) -> None:
    model = compile_model(sensors=sensors)
    sim, other = sim_of(backend, model, N), sim_of(backend, model, N)
    begin(sim, seed=1)
    random_steps(sim, 0, 12)
    still, wrench = on(sim, torch.zeros(N, 3, NU), torch.full((N, 6), 0.1))
    sim.step(still, wrench)
    saved, qpos = sim.state_dict(), sim.qpos.clone()
    random_steps(other, 5)  # the target is somewhere else altogether
    other.load_state_dict(saved)
    for seed in (1, 2):
        same(backend, other, sim)
        assert (sim.diverged == other.diverged).all()
        for name in FIELDS:
            assert (sim.per_env(name) == other.per_env(name)).all()
        random_steps(sim, seed)
        random_steps(other, seed)
    sim.load_state_dict(saved)
    assert (sim.qpos == qpos).all()  # what was saved did not move on with the simulation


def test_state_of_another_simulation_is_refused(backend: str) -> None:
    model = compile_model()
    sim, other = sim_of(backend, model, N), sim_of(backend, model, N, fields=("body_mass",))
    with pytest.raises(ValueError, match="body_mass"):
        other.load_state_dict(sim.state_dict())
    with pytest.raises(ValueError, match="expected shape"):
        sim_of(backend, model, N + 1).load_state_dict(sim.state_dict())


def test_mistakes_are_named(backend: str) -> None:
    model = compile_model()
    sim = sim_of(backend, model, N, fields=("body_mass", "geom_size"))
    with pytest.raises(KeyError, match=r"geom_friction.*body_mass, geom_size"):
        sim.per_env("geom_friction")
    with pytest.raises(ValueError, match=r"model_fields: .*'geom_friction'"):
        sim_of(backend, model, N, fields=("geom_frction",))
    with pytest.raises(ValueError, match=r"wrench_body: .*'boxx'.*'box'"):
        sim_of(backend, model, N, wrench_body="boxx")
    with pytest.raises(ValueError, match="num_envs: expected 1 or more, got 0"):
        sim_of(backend, model, 0)
    for shape in ((N, NU), (N, 0, NU), (N + 1, 1, NU), (N, 1, NU + 1)):
        with pytest.raises(ValueError, match="ctrl: expected"):
            sim.step(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"wrench: expected shape \(5, 6\)"):
        sim.step(torch.zeros(N, 1, NU), torch.zeros(6))
    bare = sim_of(backend, model, N, fields=("body_mass", "geom_size"), wrench_body=None)
    with pytest.raises(ValueError, match="wrench_body"):
        bare.step(torch.zeros(N, 1, NU), torch.zeros(N, 6))
    first = torch.tensor([0], device=sim.device)
    with pytest.raises(ValueError, match=r"qpos: expected shape \(1, 10\)"):
        sim.reset(first, torch.zeros(2, NQ), torch.zeros(1, NV))
    with pytest.raises(ValueError, match=r"qvel: expected shape \(1, 9\)"):
        sim.reset(first, torch.zeros(1, NQ), torch.zeros(1, NV + 1))
    with pytest.raises(ValueError, match=r"qpos: expected shape \(5, 10\)"):
        sim.reset(everyone(sim), torch.zeros(2, NQ), torch.zeros(N, NV))


def test_a_centre_of_mass_that_cannot_move_is_refused(backend: str) -> None:
    """When the simulation is made, or when it is moved."""
    model = mujoco.MjModel.from_xml_string(xml(NOMINAL).replace('simple="false"', ""))

    def move() -> None:
        sim = sim_of(backend, model, N, fields=("body_ipos",))
        sim.per_env("body_ipos")[1, -1, 0] = 0.01
        sim.commit(everyone(sim))

    with pytest.raises(ValueError, match="simple='false'"):
        move()

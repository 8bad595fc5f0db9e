"""CpuSim against plain mj_step loops over models compiled from XML."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import torch

from widen.envs.sim import BatchSim, SimConfig, make_sim

NOMINAL: dict[str, list[float]] = {
    "mass": [0.08],
    "inertia": [6e-5, 7e-5, 8e-5],
    "com": [0.0, 0.0, 0.0],
    "size": [0.03, 0.028, 0.026],
    "friction": [0.8, 0.005, 0.0001],
    "tip": [0.01],
    "damping": [0.1, 0.08, 0.06],
    "armature": [0.0015, 0.0015, 0.001],
    "gain": [3.0, 2.5, 2.0],
    "gravity": [0.0, 0.0, -9.81],
}
FIELDS = (
    "body_mass",
    "body_inertia",
    "body_ipos",
    "geom_size",
    "geom_friction",
    "dof_damping",
    "dof_armature",
    "actuator_gainprm",
    "actuator_biasprm",
    "opt.gravity",
)
SENSORS = {
    "velocity": '<framepos objtype="site" objname="tip"/><framelinvel objtype="body" objname="box"/>',
    "acceleration": '<framepos objtype="site" objname="tip"/><touch site="pad"/>',
}
NQ, NV, NU = 10, 9, 3


def text(values: list[float]) -> str:
    return " ".join(f"{v:.17g}" for v in values)


def xml(values: dict[str, list[float]], sensors: str = "velocity") -> str:
    """A finger that a box leans on; every value is written with all its digits."""
    v = {name: text(numbers) for name, numbers in values.items()}
    joint = [
        f'damping="{d:.17g}" armature="{a:.17g}"'
        for d, a in zip(values["damping"], values["armature"], strict=True)
    ]
    motors = "".join(
        f'<general joint="j{i}" biastype="affine" gainprm="{kp:.17g}"'
        f' biasprm="0 {-kp:.17g} -0.05" forcerange="-0.4 0.4"/>'
        for i, kp in enumerate(values["gain"])
    )
    link = '<inertial pos="0.02 0 0" mass="0.03" diaginertia="2e-6 9e-6 9e-6"/>'
    return f"""
    <mujoco>
      <option timestep="0.01" integrator="implicitfast" gravity="{v["gravity"]}"/>
      <worldbody>
        <geom type="plane" size="1 1 .1"/>
        <body name="a" pos="0 0 .03"><joint name="j0" axis="0 0 1" {joint[0]}/>{link}
          <geom type="capsule" fromto="0 0 0 .03 0 0" size=".009"/>
          <body name="b" pos=".04 0 0"><joint name="j1" axis="0 -1 0" {joint[1]}/>{link}
            <geom type="capsule" fromto="0 0 0 .03 0 0" size=".009"/>
            <body name="c" pos=".04 0 0"><joint name="j2" axis="0 -1 0" {joint[2]}/>{link}
              <geom name="tip" type="sphere" pos=".03 0 0" size="{v["tip"]}"/>
              <site name="tip" pos=".04 0 0"/><site name="pad" pos=".03 0 0" size=".02"/>
        </body></body></body>
        <body name="box" pos=".16 0 .03" simple="false"><freejoint/>
          <inertial pos="{v["com"]}" mass="{v["mass"]}" diaginertia="{v["inertia"]}"/>
          <geom name="box" type="box" size="{v["size"]}" friction="{v["friction"]}"/>
        </body>
      </worldbody>
      <contact><exclude body1="a" body2="b"/><exclude body1="b" body2="c"/></contact>
      <actuator>{motors}</actuator>
      <sensor>{SENSORS[sensors]}</sensor>
    </mujoco>"""


def compile_model(
    values: dict[str, list[float]] = NOMINAL, sensors: str = "velocity"
) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(xml(values, sensors))


def sim_of(
    model: mujoco.MjModel, n: int, fields: tuple[str, ...] = FIELDS, threads: int = 2, **more: Any
) -> BatchSim:
    config = SimConfig(threads=threads)
    return make_sim(model, n, config, model_fields=fields, wrench_body="box", **more)


def draw_values(rng: np.random.Generator) -> dict[str, list[float]]:
    """One environment's parameters, some of them nominal."""
    values = dict(NOMINAL)
    if rng.random() < 0.7:
        scale = rng.uniform(0.4, 2.5)
        values["mass"] = [0.08 * scale]
        values["inertia"] = [i * scale for i in NOMINAL["inertia"]]
    if rng.random() < 0.5:
        scale = rng.uniform(0.8, 1.3)
        values["size"] = [s * scale for s in NOMINAL["size"]]
        values["inertia"] = [i * scale**2 for i in values["inertia"]]
    if rng.random() < 0.5:
        values["com"] = list(rng.uniform(-0.005, 0.005, 3))
    for name in ("friction", "tip", "damping", "armature", "gain"):
        if rng.random() < 0.5:
            values[name] = [x * rng.uniform(0.5, 1.8) for x in NOMINAL[name]]
    if rng.random() < 0.5:
        values["gravity"] = list(np.array([0, 0, -9.81]) + rng.uniform(-0.5, 0.5, 3))
    return {name: [float(x) for x in numbers] for name, numbers in values.items()}


def write_values(sim: BatchSim, env: int, values: dict[str, list[float]]) -> None:
    box = sim.model.body("box").id
    geom, tip = sim.model.geom("box").id, sim.model.geom("tip").id
    row = {name: torch.tensor(numbers, dtype=torch.float64) for name, numbers in values.items()}
    sim.per_env("body_mass")[env, box] = row["mass"][0]
    sim.per_env("body_inertia")[env, box] = row["inertia"]
    sim.per_env("body_ipos")[env, box] = row["com"]
    sim.per_env("geom_size")[env, geom] = row["size"]
    sim.per_env("geom_size")[env, tip, 0] = row["tip"][0]
    sim.per_env("geom_friction")[env, geom] = row["friction"]
    sim.per_env("dof_damping")[env, :3] = row["damping"]
    sim.per_env("dof_armature")[env, :3] = row["armature"]
    sim.per_env("actuator_gainprm")[env, :, 0] = row["gain"]
    sim.per_env("actuator_biasprm")[env, :, 1] = -row["gain"]
    sim.per_env("opt.gravity")[env] = row["gravity"]


def draw_state(rng: np.random.Generator, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Box near the fingertip, often in touch with it."""
    qpos = np.zeros((k, NQ))
    qpos[:, :3] = rng.uniform(-0.3, 0.3, (k, 3))
    qpos[:, 3:6] = np.array([0.15, 0, 0.03]) + rng.uniform(-0.01, 0.01, (k, 3))
    quat = rng.normal(size=(k, 4)) * 0.1 + [1, 0, 0, 0]
    qpos[:, 6:] = quat / np.linalg.norm(quat, axis=1, keepdims=True)
    return torch.from_numpy(qpos), torch.from_numpy(rng.normal(size=(k, NV)) * 0.1)


class PlainLoop:
    """One compiled model and one MjData for each environment: the independent truth."""

    def __init__(self, n: int, sensors: str) -> None:
        self.sensors = sensors
        self.models = [compile_model(sensors=sensors) for _ in range(n)]
        self.datas = [mujoco.MjData(m) for m in self.models]
        self.touched = 0

    def reset(self, env: int, values: dict[str, list[float]], qpos: Any, qvel: Any) -> None:
        self.models[env] = compile_model(values, self.sensors)
        self.datas[env] = data = mujoco.MjData(self.models[env])
        data.qpos[:], data.qvel[:] = qpos, qvel

    def step(self, ctrl: np.ndarray, wrench: np.ndarray | None) -> None:
        for env, (model, data) in enumerate(zip(self.models, self.datas, strict=True)):
            data.xfrc_applied[model.body("box").id] = 0 if wrench is None else wrench[env]
            for row in ctrl[env]:
                data.ctrl[:] = row
                mujoco.mj_step(model, data)
            tip = model.geom("tip").id
            self.touched += any(tip in pair for pair in data.contact.geom)

    def equals(self, sim: BatchSim) -> None:
        for env, (model, data) in enumerate(zip(self.models, self.datas, strict=True)):
            now = copy.copy(data)  # so that looking at the sensors changes nothing
            mujoco.mj_forward(model, now)
            assert (sim.qpos[env].numpy() == data.qpos).all()
            assert (sim.qvel[env].numpy() == data.qvel).all()
            assert (sim.sensordata[env].numpy() == now.sensordata).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sensors", list(SENSORS))
def test_equals_plain_loops_over_compiled_models(threads: int, sensors: str) -> None:
    n, rng = 5, np.random.default_rng(3)
    sim = sim_of(compile_model(sensors=sensors), n, threads=threads)
    truth = PlainLoop(n, sensors)
    truth.equals(sim)
    for _ in range(200):
        if rng.random() < 0.15:
            ids = np.sort(rng.choice(n, rng.integers(1, n + 1), replace=False))
            qpos, qvel = draw_state(rng, len(ids))
            for k, env in enumerate(ids):
                values = draw_values(rng)
                write_values(sim, env, values)
                truth.reset(env, values, qpos[k], qvel[k])
            sim.commit(torch.from_numpy(ids))
            sim.reset(torch.from_numpy(ids), qpos, qvel)
        else:
            ctrl = rng.uniform(-1, 1, (n, rng.integers(1, 5), NU))
            wrench = rng.normal(size=(n, 6)) * [0.2] * 6 if rng.random() < 0.3 else None
            sim.step(torch.from_numpy(ctrl), None if wrench is None else torch.from_numpy(wrench))
            truth.step(ctrl, wrench)
            assert not sim.diverged.any()
        truth.equals(sim)
    assert truth.touched > 50  # or the sizes and frictions would not have mattered


def random_steps(sim: BatchSim, seed: int, count: int = 10) -> None:
    gen = torch.Generator().manual_seed(seed)
    for _ in range(count):
        sim.step(torch.rand(sim.num_envs, 3, NU, generator=gen) - 0.5)


@pytest.mark.parametrize(("row", "value"), [("qpos", float("nan")), ("qvel", 1e12)])
def test_divergence_stays_where_it_is(
    row: str,
    value: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    n, bad = 6, 2
    model = compile_model()
    qpos, qvel = draw_state(np.random.default_rng(0), n)
    healthy, ill = sim_of(model, n), sim_of(model, n)
    for sim in (healthy, ill):
        sim.reset(torch.arange(n), qpos, qvel)
    only = torch.arange(n) == bad
    for seed in range(3):  # after the first, MuJoCo's counters stand at one and stay there
        getattr(ill, row)[bad, 0] = value  # as an exploding contact would leave it
        random_steps(healthy, seed, 1)
        random_steps(ill, seed, 1)
        assert (ill.diverged == only).all()
        assert not healthy.diverged.any()
    ill.reset(torch.tensor([bad]), qpos[[bad]], qvel[[bad]])
    random_steps(healthy, 9, 20)
    random_steps(ill, 9, 20)
    assert not ill.diverged.any()
    for name in ("qpos", "qvel", "sensordata"):
        assert (getattr(ill, name)[~only] == getattr(healthy, name)[~only]).all()
    assert capfd.readouterr().err == ""  # and nothing printed, no MUJOCO_LOG.TXT
    assert list(tmp_path.iterdir()) == []


def test_a_ctrl_that_is_no_number_is_divergence() -> None:
    sim = sim_of(compile_model(), 2)
    ctrl = torch.zeros(2, 2, NU)
    ctrl[1, 1] = torch.nan
    for _ in range(3):
        sim.step(ctrl)
        assert sim.diverged.tolist() == [False, True]
    sim.step(torch.zeros(2, 2, NU))
    assert not sim.diverged.any()


@pytest.mark.parametrize("memory", [60_000, 700_000], ids=["error", "contact-full warning"])
def test_want_of_memory_is_divergence(memory: int) -> None:
    """40 boxes in one place overflow the arena; a rollout stops at the warning."""
    spec = mujoco.MjSpec.from_string(xml(NOMINAL))
    spec.memory = memory
    for i in range(40):
        body = spec.worldbody.add_body(pos=[1 + 0.001 * i, 1, 0.02])
        body.add_freejoint()
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.02, 0.02, 0.02])
    sim = make_sim(spec.compile(), 2, SimConfig(threads=1), current_sensors=False)
    sim.step(torch.zeros(2, 1, NU))
    assert sim.diverged.all()
    assert sim.qpos.isfinite().all()


def test_views_are_live_and_share_memory() -> None:
    sim = sim_of(compile_model(), 3)
    mass, pointer = sim.per_env("body_mass"), sim.qpos.data_ptr()
    held = {name: getattr(sim, name) for name in ("qpos", "qvel", "sensordata")}
    before = {name: view.clone() for name, view in held.items()}
    random_steps(sim, 0)
    assert sim.qpos.data_ptr() == pointer
    assert sim.per_env("body_mass").data_ptr() == mass.data_ptr()
    for name, view in held.items():
        assert view is getattr(sim, name)
        assert view.dtype == torch.float64
        assert (view != before[name]).any()


def test_the_callers_model_is_not_written_and_not_needed() -> None:
    model = compile_model()
    sim = sim_of(model, 2)
    model.body_mass[:] = 7.0
    assert sim.model.body_mass[-1] == NOMINAL["mass"][0]
    sim.per_env("body_mass")[0] *= 2
    sim.commit(torch.arange(2))
    random_steps(sim, 0)
    assert sim.model.body_mass[-1] == NOMINAL["mass"][0]


@pytest.mark.parametrize("sensors", list(SENSORS))
def test_state_dict_continues_exactly_in_contact(sensors: str) -> None:
    n, rng = 4, np.random.default_rng(1)
    model = compile_model(sensors=sensors)
    sim, other = sim_of(model, n), sim_of(model, n, threads=1)
    for env in range(n):
        write_values(sim, env, draw_values(rng))
    sim.commit(torch.arange(n))
    qpos, qvel = draw_state(rng, n)
    sim.reset(torch.arange(n), qpos, qvel)
    random_steps(sim, 0, 12)
    sim.step(torch.zeros(n, 3, NU), torch.full((n, 6), 0.1))
    saved, qpos = sim.state_dict(), sim.qpos.clone()
    random_steps(other, 5)  # the target is somewhere else altogether
    other.load_state_dict(saved)
    for seed in (1, 2):
        for name in ("qpos", "qvel", "sensordata", "diverged"):
            assert (getattr(sim, name) == getattr(other, name)).all()
        for name in FIELDS:
            assert (sim.per_env(name) == other.per_env(name)).all()
        random_steps(sim, seed)
        random_steps(other, seed)
    sim.load_state_dict(saved)
    assert (sim.qpos == qpos).all()  # what was saved did not move on with the simulation


def test_state_of_other_fields_is_refused() -> None:
    model = compile_model()
    sim, other = sim_of(model, 2), sim_of(model, 2, fields=("body_mass",))
    with pytest.raises(ValueError, match="body_mass"):
        other.load_state_dict(sim.state_dict())
    with pytest.raises(ValueError, match="state: expected shape"):
        sim_of(model, 3).load_state_dict(sim.state_dict())


def test_wrench_is_a_force_in_the_world_at_the_centre_of_mass() -> None:
    values = {**NOMINAL, "gravity": [0.0, 0.0, 0.0]}
    sim = sim_of(compile_model(values), 2)
    qpos, _ = draw_state(np.random.default_rng(0), 2)
    qpos[:, 3:6] = torch.tensor([1.0, 1.0, 1.0])  # free of everything
    sim.reset(torch.arange(2), qpos, torch.zeros(2, NV))
    wrench = torch.zeros(2, 6)
    wrench[1, 1] = 0.04
    sim.step(torch.zeros(2, 2, NU), wrench)
    speed = 0.04 / NOMINAL["mass"][0] * 0.02
    expected = torch.tensor([[0, 0, 0], [0, speed, 0]], dtype=torch.float64)
    torch.testing.assert_close(sim.qvel[:, 3:6], expected, rtol=1e-6, atol=1e-12)
    assert sim.qvel[:, 6:].abs().max() < 1e-12


def test_expanded_float32_ctrl_is_the_same_in_every_substep() -> None:
    model = compile_model()
    expanded, full = sim_of(model, 3), sim_of(model, 3)
    target = torch.rand(3, NU)
    expanded.step(target[:, None].expand(-1, 4, -1))
    full.step(target.double()[:, None].repeat(1, 4, 1))
    assert (expanded.qpos == full.qpos).all()


def test_without_current_sensors_they_are_not_to_be_read() -> None:
    sim = sim_of(compile_model(), 2, current_sensors=False)
    random_steps(sim, 0)
    assert sim.sensordata.shape == (2, 6)
    assert sim.sensordata.isnan().all()


def test_mistakes_are_named() -> None:
    model = compile_model()
    sim = sim_of(model, 2, fields=("body_mass", "geom_size"))
    with pytest.raises(KeyError, match=r"geom_friction.*body_mass, geom_size"):
        sim.per_env("geom_friction")
    with pytest.raises(ValueError, match=r"model_fields: .*'geom_friction'"):
        sim_of(model, 2, fields=("geom_frction",))
    with pytest.raises(ValueError, match=r"'boxx'.*\['box'\]"):
        make_sim(model, 2, SimConfig(), wrench_body="boxx")
    with pytest.raises(ValueError, match="wrench_body"):
        make_sim(model, 2, SimConfig()).step(torch.zeros(2, 1, NU), torch.zeros(2, 6))
    for shape in ((2, NU), (2, 0, NU), (3, 1, NU), (2, 1, NU + 1)):
        with pytest.raises(ValueError, match="ctrl: expected"):
            sim.step(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"wrench: expected shape \(2, 6\)"):
        sim.step(torch.zeros(2, 1, NU), torch.zeros(6))
    with pytest.raises(ValueError, match=r"qpos: expected shape \(1, 10\)"):
        sim.reset(torch.tensor([0]), torch.zeros(2, NQ), torch.zeros(1, NV))
    with pytest.raises(ValueError, match=r"non-finite .* \[1\]"):
        sim.reset(torch.tensor([1]), torch.full((1, NQ), torch.inf), torch.zeros(1, NV))
    with pytest.raises(ValueError, match=r"qvel: expected shape \(1, 9\)"):
        sim.reset(torch.tensor([0]), torch.zeros(1, NQ), torch.zeros(1, NV + 1))


def test_a_centre_of_mass_that_cannot_move_is_refused() -> None:
    model = mujoco.MjModel.from_xml_string(xml(NOMINAL).replace('simple="false"', ""))
    sim = sim_of(model, 2, fields=("body_ipos",))
    sim.per_env("body_ipos")[1, -1, 0] = 0.01
    with pytest.raises(ValueError, match="simple='false'"):
        sim.commit(torch.arange(2))

"""A finger that a box leans on, from XML: what simulations are tested against."""

from __future__ import annotations

import copy
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from torch import Tensor

from widen.envs.sim import BatchSim
from widen.envs.sim_cpu import CpuSim

Values = dict[str, list[float]]

NOMINAL: Values = {
    "mass": [0.08],
    "inertia": [6e-5, 7e-5, 8e-5],
    "com": [0.0, 0.0, 0.0],
    "size": [0.03, 0.028, 0.026],
    "friction": [0.8, 0.005, 0.0001],
    "grip": [0.5, 0.005, 0.0001],
    "tip": [0.01],
    "damping": [0.1, 0.08, 0.06],
    "armature": [0.0015, 0.0015, 0.001],
    "gain": [3.0, 2.5, 2.0],
    "force": [0.4],
    "joint_force": [0.25],
    "gravity": [0.0, 0.0, -9.81],
    "timestep": [0.01],
    "dims": [3],
    "link_mass": [0.03],
    "link_inertia": [2e-6, 9e-6, 9e-6],
    "loss": [0.0, 0.0, 0.0],
    "range": [-2.8, 2.8, -2.8, 2.8, -2.8, 2.8],
    "kv": [0.05, 0.05, 0.05],
    "solref": [0.02, 1.0],
    "solimp": [0.9, 0.95, 0.001],
    "margin": [0.0],
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
    "actuator_forcerange",
    "jnt_actfrcrange",
    "dof_frictionloss",
    "jnt_range",
    "geom_solref",
    "geom_solimp",
    "geom_margin",
    "opt.gravity",
    "opt.timestep",
)
SENSORS = {
    "velocity": '<framepos objtype="site" objname="tip"/><framelinvel objtype="body" objname="box"/>',
    "acceleration": '<framepos objtype="site" objname="tip"/><touch site="pad"/>',
}
NQ, NV, NU = 10, 9, 3


N = 5  # environments, the same everywhere because Warp compiles some kernels for it
ON_WARP = [pytest.param("warp", marks=pytest.mark.warp)]  # on its CPU device
if torch.cuda.is_available():
    ON_WARP.append(pytest.param("cuda", marks=pytest.mark.warp))
BACKENDS = ["cpu", *ON_WARP]
# float32 rounds to 6e-8; solver and contacts amplify that in 20 steps of the finger. These are
# about four times the largest differences that 320 drawn models and states gave.
TOLERANCE = {"qpos": 5e-4, "qvel": 5e-2, "sensordata": 2e-2}


def sim_of(
    backend: str,
    model: mujoco.MjModel,
    n: int,
    fields: tuple[str, ...] = FIELDS,
    nconmax: int = 16,
    njmax: int = 64,
    **more: Any,
) -> BatchSim:
    """A simulation on one of BACKENDS; njmax and the fields decide which kernels Warp compiles."""
    more = {"model_fields": fields, "wrench_body": "box"} | more
    if backend == "cpu":
        return CpuSim(model, n, threads=2, **more)
    pytest.importorskip("mujoco_warp")
    from widen.envs.sim_warp import WarpSim

    device = "cpu" if backend == "warp" else "cuda"
    return WarpSim(model, n, nconmax=nconmax, njmax=njmax, device=device, **more)


def close(backend: str, name: str, found: Tensor, expected: np.ndarray) -> None:
    """Equal to the last digit on the CPU, else within TOLERANCE."""
    atol = 0.0 if backend == "cpu" else TOLERANCE[name]
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=0, atol=atol, err_msg=name)


def text(values: list[float]) -> str:
    return " ".join(f"{v:.17g}" for v in values)


def xml(values: Values, sensors: str = "velocity") -> str:
    """Every value is written with all its digits."""
    v = {name: text(numbers) for name, numbers in values.items()}
    limit = f'actuatorfrcrange="-{v["joint_force"]} {v["joint_force"]}"'
    ends = np.reshape(values["range"], (NU, 2))
    joint = [
        f'damping="{d:.17g}" armature="{a:.17g}" frictionloss="{f:.17g}" range="{text(r)}"'
        for d, a, f, r in zip(
            values["damping"], values["armature"], values["loss"], ends.tolist(), strict=True
        )
    ]
    forces = np.broadcast_to(values["force"], NU)  # one for all, or one each
    motors = "".join(
        f'<general joint="j{i}" biastype="affine" gainprm="{kp:.17g}"'
        f' biasprm="0 {-kp:.17g} {-kv:.17g}" forcerange="{-f:.17g} {f:.17g}"/>'
        for i, (kp, kv, f) in enumerate(zip(values["gain"], values["kv"], forces, strict=True))
    )
    link = f'<inertial pos="0.02 0 0" mass="{v["link_mass"]}" diaginertia="{v["link_inertia"]}"/>'
    soft = f'solref="{v["solref"]}" solimp="{v["solimp"]}" margin="{v["margin"]}"'
    grip = f'friction="{v["grip"]}" condim="{v["dims"]}" {soft}'
    bone = f'<geom type="capsule" fromto="0 0 0 .03 0 0" size=".009" {grip}/>'
    return f"""
    <mujoco>
      <compiler angle="radian"/>
      <option timestep="{v["timestep"]}" integrator="implicitfast" gravity="{v["gravity"]}"/>
      <worldbody>
        <geom type="plane" size="1 1 .1" friction=".3"/>
        <body name="a" pos="0 0 .03"><joint name="j0" axis="0 0 1" {joint[0]}/>{link}{bone}
          <body name="b" pos=".04 0 0"><joint name="j1" axis="0 -1 0" {joint[1]}/>{link}{bone}
            <body name="c" pos=".04 0 0"><joint name="j2" axis="0 -1 0" {joint[2]} {limit}/>{link}
              <geom name="tip" type="sphere" pos=".03 0 0" size="{v["tip"]}" {grip}/>
              <site name="tip" pos=".04 0 0"/><site name="pad" pos=".03 0 0" size=".02"/>
        </body></body></body>
        <body name="box" pos=".16 0 .03" simple="false"><freejoint/>
          <inertial pos="{v["com"]}" mass="{v["mass"]}" diaginertia="{v["inertia"]}"/>
          <geom name="box" type="box" size="{v["size"]}" friction="{v["friction"]}"
              condim="{v["dims"]}" {soft}/>
        </body>
      </worldbody>
      <contact><exclude body1="a" body2="b"/><exclude body1="b" body2="c"/></contact>
      <actuator>{motors}</actuator>
      <sensor>{SENSORS[sensors]}</sensor>
    </mujoco>"""


def compile_model(values: Values = NOMINAL, sensors: str = "velocity") -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(xml(values, sensors))


def draw_values(rng: np.random.Generator) -> Values:
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
    for name in ("friction", "grip", "tip", "damping", "armature", "gain", "force", "joint_force"):
        if rng.random() < 0.5:
            values[name] = [x * rng.uniform(0.5, 1.8) for x in NOMINAL[name]]
    if rng.random() < 0.5:
        values["gravity"] = list(np.array([0, 0, -9.81]) + rng.uniform(-0.5, 0.5, 3))
    for name in ("link_mass", "link_inertia", "kv", "solref", "timestep"):
        if rng.random() < 0.3:
            scale = rng.uniform(0.7, 1.4)
            values[name] = [x * scale for x in NOMINAL[name]]
    if rng.random() < 0.5:
        values["loss"] = list(rng.choice([0.0, 1.0], 3) * rng.uniform(0, 0.1, 3))
    if rng.random() < 0.3:
        values["range"] = list(np.tile([-0.5, 0.5], 3) + np.repeat(rng.uniform(-0.3, 0.3, 3), 2))
    if rng.random() < 0.3:
        values["solimp"] = list(
            np.array([0.8, 0.9, 0.002]) + rng.uniform(0, 0.05, 3) * [1, 1, 0.02]
        )
    if rng.random() < 0.3:
        values["margin"] = [rng.uniform(0, 0.002)]
    return {name: [float(x) for x in numbers] for name, numbers in values.items()}


def write_values(sim: BatchSim, env: int, values: Values) -> None:
    """Into the rows of `per_env`; commit them afterwards."""
    box = sim.model.body("box").id
    geom, tip = sim.model.geom("box").id, sim.model.geom("tip").id
    row = {name: torch.tensor(numbers, dtype=torch.float64) for name, numbers in values.items()}
    limit = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    bodies, geoms = slice(1, box), slice(1, geom + 1)
    sim.per_env("body_mass")[env, bodies] = row["link_mass"][0]
    sim.per_env("body_inertia")[env, bodies] = row["link_inertia"]
    sim.per_env("body_mass")[env, box] = row["mass"][0]
    sim.per_env("body_inertia")[env, box] = row["inertia"]
    sim.per_env("body_ipos")[env, box] = row["com"]
    sim.per_env("geom_size")[env, geom] = row["size"]
    sim.per_env("geom_size")[env, tip, 0] = row["tip"][0]
    sim.per_env("geom_friction")[env, geom] = row["friction"]
    sim.per_env("geom_friction")[env, 1 : tip + 1] = row["grip"]
    sim.per_env("dof_damping")[env, :3] = row["damping"]
    sim.per_env("dof_armature")[env, :3] = row["armature"]
    sim.per_env("actuator_gainprm")[env, :, 0] = row["gain"]
    sim.per_env("actuator_biasprm")[env, :, 1] = -row["gain"]
    sim.per_env("actuator_forcerange")[env] = row["force"] * limit
    sim.per_env("jnt_actfrcrange")[env, 2] = row["joint_force"] * limit
    sim.per_env("actuator_biasprm")[env, :, 2] = -row["kv"]
    sim.per_env("dof_frictionloss")[env, :3] = row["loss"]
    sim.per_env("jnt_range")[env, :3] = row["range"].view(3, 2)
    sim.per_env("geom_solref")[env, geoms] = row["solref"]
    sim.per_env("geom_solimp")[env, geoms, :3] = row["solimp"]
    sim.per_env("geom_margin")[env, geoms] = row["margin"][0]
    sim.per_env("opt.gravity")[env] = row["gravity"]
    sim.per_env("opt.timestep")[env] = row["timestep"][0]


def draw_state(rng: np.random.Generator, k: int) -> tuple[Tensor, Tensor]:
    """Box near the fingertip, often in touch with it."""
    qpos = np.zeros((k, NQ))
    qpos[:, :3] = rng.uniform(-0.3, 0.3, (k, 3))
    qpos[:, 3:6] = np.array([0.15, 0, 0.03]) + rng.uniform(-0.01, 0.01, (k, 3))
    quat = rng.normal(size=(k, 4)) * 0.1 + [1, 0, 0, 0]
    qpos[:, 6:] = quat / np.linalg.norm(quat, axis=1, keepdims=True)
    return torch.from_numpy(qpos), torch.from_numpy(rng.normal(size=(k, NV)) * 0.1)


def random_steps(sim: BatchSim, seed: int, count: int = 10) -> None:
    gen = torch.Generator().manual_seed(seed)
    for _ in range(count):
        ctrl = torch.rand(sim.num_envs, 3, NU, generator=gen) - 0.5
        sim.step(ctrl.to(sim.device))


class PlainLoop:
    """One compiled model and one MjData for each environment: the independent truth."""

    def __init__(self, n: int, sensors: str = "velocity") -> None:
        self.sensors = sensors
        self.models = [compile_model(sensors=sensors) for _ in range(n)]
        self.datas = [mujoco.MjData(m) for m in self.models]
        self.touched = 0

    def reset(self, env: int, values: Values, qpos: Any, qvel: Any) -> None:
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

    def now(self) -> dict[str, np.ndarray]:
        """qpos, qvel and sensordata of the same instant, (n, ...) each."""
        looks = [copy.copy(data) for data in self.datas]  # so that looking changes nothing
        for model, data in zip(self.models, looks, strict=True):
            mujoco.mj_forward(model, data)
        return {
            name: np.array([getattr(data, name) for data in looks])
            for name in ("qpos", "qvel", "sensordata")
        }


def on(sim: BatchSim, *arrays: Any) -> list[Tensor]:
    return [torch.as_tensor(array).to(sim.device) for array in arrays]


def everyone(sim: BatchSim) -> Tensor:
    return torch.ones(sim.num_envs, dtype=torch.bool, device=sim.device)


def begin(sim: BatchSim, seed: int = 0) -> None:
    """Every environment at a drawn state and with drawn values, often in contact."""
    rng = np.random.default_rng(seed)
    for env in range(sim.num_envs):
        write_values(sim, env, draw_values(rng))
    sim.commit(everyone(sim))
    sim.reset(everyone(sim), *on(sim, *draw_state(rng, sim.num_envs)))


def same(backend: str, found: BatchSim, expected: BatchSim, envs: Any = slice(None)) -> None:
    """Equal to the last digit, but for a GPU, which adds in no fixed order."""
    for name in TOLERANCE:
        x, y = getattr(found, name)[envs], getattr(expected, name)[envs]
        torch.testing.assert_close(x, y, rtol=0, atol=TOLERANCE[name] if backend == "cuda" else 0)


def twins(backend: str, **more: Any) -> tuple[BatchSim, BatchSim]:
    """Two simulations that have come the same way."""
    model = compile_model()
    sims = sim_of(backend, model, N, **more), sim_of(backend, model, N, **more)
    for sim in sims:
        begin(sim)
        random_steps(sim, 1, 4)
    return sims

"""The catalogue's parameters on every backend, against models compiled with their values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import mujoco
import numpy as np
import pytest
import torch
from finger_model import (
    BACKENDS,
    NOMINAL,
    NQ,
    TOLERANCE,
    N,
    PlainLoop,
    Values,
    compile_model,
    draw_state,
    everyone,
    on,
    random_steps,
    same,
    sim_of,
)
from torch import Tensor

from widen.randomization.parameter import Parts
from widen.randomization.parameters import CATALOGUE


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def turned(gravity: list[float], axis: list[float], angle: float) -> list[float]:
    quat, result = np.zeros(4), np.zeros(3)
    mujoco.mju_axisAngle2Quat(quat, np.array(axis), angle)
    mujoco.mju_rotVecQuat(result, np.array(gravity), quat)
    return result.tolist()


def scaled(*names: str, by: float, power: int = 1) -> Values:
    return {name: [x * by**power for x in NOMINAL[name]] for name in names}


ROWS = np.random.default_rng(5).normal(size=(N, 3))
"""Standard normal samples of each environment, for three joints or three axes."""
# Worlds in which a parameter shows.
STOPS: Values = {"range": [-0.3, 0.3, -0.6, 0.5, -0.8, 0.4]}
DIMS_4 = {"dims": [4], "friction": [0.8, 0.01, 1e-4], "grip": [0.5, 0.008, 1e-4]}
DIMS_6 = {"dims": [6], "friction": [0.8, 0.005, 0.004], "grip": [0.5, 0.005, 0.003]}


@dataclasses.dataclass(frozen=True)
class Case:
    """A value of a parameter, and what a model has that was compiled with it."""

    value: float
    changed: Values | Callable[[np.ndarray], Values]
    world: Values = dataclasses.field(default_factory=dict)

    def compiled(self, normal: np.ndarray) -> Values:
        """Of the environment with these samples (3,)."""
        changed = self.changed(normal) if callable(self.changed) else self.changed
        return NOMINAL | self.world | changed


def spread(*names: str, by: float) -> Callable[[np.ndarray], Values]:
    def changed(normal: np.ndarray) -> Values:
        factors = np.exp(by * normal)
        return {name: (factors * NOMINAL[name]).tolist() for name in names}

    return changed


CASES = {
    "object_mass": Case(2.5, scaled("mass", "inertia", by=2.5)),
    "object_com": Case(0.006, lambda normal: {"com": (0.006 * normal).tolist()}),
    "object_size": Case(1.2, scaled("size", by=1.2) | scaled("inertia", by=1.2, power=2)),
    "hand_mass": Case(2.5, scaled("link_mass", "link_inertia", by=2.5)),
    "hand_friction": Case(2.4, {"grip": [0.5 * 2.4, 0.005, 0.0001]}),
    "object_friction": Case(0.4, {"friction": [0.8 * 0.4, 0.005, 0.0001]}),
    "hand_spin_friction": Case(4.0, {"grip": [0.5, 0.032, 1e-4]}, DIMS_4),
    "object_spin_friction": Case(4.0, {"friction": [0.8, 0.04, 1e-4]}, DIMS_4),
    "hand_roll_friction": Case(4.0, {"grip": [0.5, 0.005, 0.012]}, DIMS_6),
    "object_roll_friction": Case(4.0, {"friction": [0.8, 0.005, 0.016]}, DIMS_6),
    "contact_time": Case(2.5, {"solref": [0.05, 1.0]}),
    "contact_damping": Case(0.5, {"solref": [0.02, 0.5]}),
    "contact_impedance": Case(4.0, {"solimp": [0.6, 0.8, 0.001]}),
    "contact_width": Case(5.0, {"solimp": [0.9, 0.95, 0.005]}),
    "contact_margin": Case(0.004, {"margin": [0.002]}),
    "joint_damping": Case(2.5, scaled("damping", by=2.5)),
    "joint_damping_spread": Case(0.5, spread("damping", by=0.5)),
    "joint_armature": Case(2.5, scaled("armature", by=2.5)),
    "joint_armature_spread": Case(0.4, spread("armature", by=0.4)),
    "joint_frictionloss": Case(0.06, {"loss": [0.06] * 3}),
    "joint_limits": Case(
        0.2,
        lambda normal: {"range": (np.array(STOPS["range"]) + np.repeat(0.2 * normal, 2)).tolist()},
        STOPS,
    ),
    "actuator_gain": Case(2.0, scaled("gain", by=2.0)),
    "actuator_gain_spread": Case(0.4, spread("gain", by=0.4)),
    "actuator_damping": Case(3.0, scaled("kv", by=3.0)),
    "actuator_damping_spread": Case(0.6, spread("kv", by=0.6)),
    "force_limit": Case(0.5, scaled("force", "joint_force", by=0.5)),
    "force_limit_spread": Case(
        0.3,
        lambda normal: {
            "force": (NOMINAL["force"][0] * np.exp(0.3 * normal)).tolist(),
            "joint_force": [NOMINAL["joint_force"][0] * np.exp(0.3 * normal[2])],
        },
    ),
    "gravity": Case(1.4, scaled("gravity", by=1.4)),
    "gravity_tilt_x": Case(0.4, {"gravity": turned(NOMINAL["gravity"], [1, 0, 0], 0.4)}),
    "gravity_tilt_y": Case(0.4, {"gravity": turned(NOMINAL["gravity"], [0, 1, 0], 0.4)}),
    "time_step": Case(0.7, {"timestep": [0.007]}),
}
MODEL_PARAMETERS = [name for name, what in CATALOGUE.items() if what.kind == "model"]


def finger_parts(model: mujoco.MjModel) -> Parts:
    box = model.geom("box").id
    return Parts(
        dofs=slice(0, 3),
        joints=slice(0, 3),
        hand_bodies=slice(1, 4),
        hand_geoms=slice(1, box),
        object_geoms=slice(box, box + 1),
        object_body=model.body("box").id,
        timestep=model.opt.timestep,
    )


def trajectory(backend: str, name: str, fields: tuple[str, ...]) -> np.ndarray:
    """(20, N, nq + nv) of simulations for which the catalogue wrote these fields."""
    case, what = CASES[name], CATALOGUE[name]
    model = compile_model(NOMINAL | case.world)
    sim = sim_of(backend, model, N, fields=what.fields)
    rows = {key: sim.per_env(key).clone().double() for key in what.fields}
    assert what.write is not None
    drawn, normal = (torch.as_tensor(x, device=sim.device) for x in (np.full(N, case.value), ROWS))
    what.write(rows, finger_parts(model), drawn, *(() if what.normals == "none" else (normal,)))
    for name in fields:
        sim.per_env(name).copy_(rows[name])
    sim.commit(everyone(sim))
    sim.reset(everyone(sim), *on(sim, *pressing()))
    states = []
    for ctrl in dragging():
        sim.step(*on(sim, ctrl))
        states.append(torch.cat((sim.qpos, sim.qvel), 1).cpu().numpy())
    return np.array(states)


def pressing() -> tuple[Tensor, Tensor]:
    """Boxes that slide and roll under a fingertip, which is in touch with each."""
    qpos, qvel = draw_state(np.random.default_rng(11), N)
    qpos[:, :3] = torch.tensor([0.0, 0.35, -0.5])
    qpos[:, 3:6] = torch.tensor([0.11, 0.0, 0.026])
    qvel[:, 4] += 0.3
    return qpos, qvel


def dragging() -> np.ndarray:
    """(20, N, 1, NU): the finger presses down and moves to either side."""
    t = np.linspace(0, 1, 20)[:, None]
    side = np.linspace(-1, 1, N)[None]
    ctrl = np.stack((1.5 * side * t, -0.4 + 0 * side - t, -0.9 + 0 * side + t), axis=2)
    return ctrl[:, :, None]


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest in units of TOLERANCE."""
    of_qpos, of_qvel = (np.abs(x).max() for x in np.split(found - expected, [NQ], axis=2))
    return max(of_qpos / TOLERANCE["qpos"], of_qvel / TOLERANCE["qvel"])


@pytest.mark.parametrize("name", MODEL_PARAMETERS)
def test_a_parameter_does_what_a_compiled_model_does(backend: str, name: str) -> None:
    truth, (qpos, qvel) = PlainLoop(N), pressing()
    for env in range(N):
        truth.reset(env, CASES[name].compiled(ROWS[env]), qpos[env], qvel[env])
    expected = []
    for ctrl in dragging():
        truth.step(ctrl, None)
        now = truth.now()
        expected.append(np.concatenate((now["qpos"], now["qvel"]), axis=1))
    expected = np.array(expected)
    fields = CATALOGUE[name].fields
    # where the compiler rounds a rotation otherwise than the catalogue, 1e-12
    most = 1e-6 if backend == "cpu" else 0.1
    assert difference(trajectory(backend, name, fields), expected) < most
    for left_out in fields:  # each field shows: leaving one as it was is far off
        others = tuple(field for field in fields if field != left_out)
        assert difference(trajectory("cpu", name, others), expected) > 1, left_out


@pytest.mark.parametrize("name", ["object_mass", "gravity", "force_limit"])
def test_values_written_after_a_first_step_count(backend: str, name: str) -> None:
    """A recorded step reads them anew."""
    value, model = CASES[name].value, compile_model()
    early, late = sim_of(backend, model, N), sim_of(backend, model, N)
    late.reset(everyone(late), *on(late, *pressing()))
    random_steps(late, 0)
    for sim in (early, late):
        for field in CATALOGUE[name].fields:
            sim.per_env(field).mul_(value)
        sim.commit(everyone(sim))
        sim.reset(everyone(sim), *on(sim, *pressing()))
        random_steps(sim, 1)
    same(backend, late, early)

"""The catalogue's parameters on every backend, against models compiled with their values."""

from __future__ import annotations

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


# A value of every parameter of the catalogue, and what the compiled model has then.
PARAMETERS: dict[str, tuple[float, Values]] = {
    "object_mass": (2.5, scaled("mass", "inertia", by=2.5)),
    "object_size": (1.2, scaled("size", by=1.2) | scaled("inertia", by=1.2, power=2)),
    "hand_friction": (2.4, {"grip": [0.5 * 2.4, 0.005, 0.0001]}),
    "object_friction": (0.4, {"friction": [0.8 * 0.4, 0.005, 0.0001]}),
    "joint_damping": (2.5, scaled("damping", by=2.5)),
    "joint_armature": (2.5, scaled("armature", by=2.5)),
    "actuator_gain": (2.0, scaled("gain", by=2.0)),
    "force_limit": (0.5, scaled("force", "joint_force", by=0.5)),
    "gravity": (1.4, scaled("gravity", by=1.4)),
    "gravity_tilt_x": (0.4, {"gravity": turned(NOMINAL["gravity"], [1, 0, 0], 0.4)}),
    "gravity_tilt_y": (0.4, {"gravity": turned(NOMINAL["gravity"], [0, 1, 0], 0.4)}),
}


def finger_parts(model: mujoco.MjModel) -> Parts:
    box = model.geom("box").id
    return Parts(
        dofs=slice(0, 3),
        joints=slice(0, 3),
        hand_geoms=slice(1, box),
        object_geoms=slice(box, box + 1),
        object_body=model.body("box").id,
    )


def trajectory(backend: str, name: str, value: float, fields: tuple[str, ...]) -> np.ndarray:
    """(20, N, nq + nv) of simulations for which the catalogue wrote these fields."""
    model = compile_model()
    sim = sim_of(backend, model, N, fields=CATALOGUE[name].fields)
    rows = {field: sim.per_env(field).clone() for field in CATALOGUE[name].fields}
    write = CATALOGUE[name].write
    assert write is not None
    drawn = torch.full((N,), value, dtype=torch.float64, device=sim.device)
    write(rows, finger_parts(model), drawn)
    for field in fields:
        sim.per_env(field).copy_(rows[field])
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


@pytest.mark.parametrize("name", [n for n, what in CATALOGUE.items() if what.kind == "model"])
def test_a_parameter_does_what_a_compiled_model_does(backend: str, name: str) -> None:
    value, changed = PARAMETERS[name]
    truth, (qpos, qvel) = PlainLoop(N), pressing()
    for env in range(N):
        truth.reset(env, NOMINAL | changed, qpos[env], qvel[env])
    expected = []
    for ctrl in dragging():
        truth.step(ctrl, None)
        now = truth.now()
        expected.append(np.concatenate((now["qpos"], now["qvel"]), axis=1))
    expected = np.array(expected)
    fields = CATALOGUE[name].fields
    # where the compiler rounds a rotation otherwise than the catalogue, 1e-12
    most = 1e-6 if backend == "cpu" else 0.1
    assert difference(trajectory(backend, name, value, fields), expected) < most
    for left_out in fields:  # each field shows: leaving one as it was is far off
        others = tuple(field for field in fields if field != left_out)
        assert difference(trajectory("cpu", name, value, others), expected) > 1, left_out


@pytest.mark.parametrize("name", ["object_mass", "gravity", "force_limit"])
def test_values_written_after_a_first_step_count(backend: str, name: str) -> None:
    """A recorded step reads them anew."""
    value, _ = PARAMETERS[name]
    model = compile_model()
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

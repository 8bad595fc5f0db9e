"""WarpSim: contacts and scenes as MuJoCo has them, room, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from finger_model import (
    NOMINAL,
    ON_WARP,
    N,
    Values,
    begin,
    compile_model,
    everyone,
    on,
    random_steps,
    same,
    sim_of,
    xml,
)

from widen.envs.hand import load_hand
from widen.envs.scene import Scene, build_scene
from widen.envs.sim import BatchSim
from widen.envs.sim_cpu import CpuSim

pytestmark = pytest.mark.warp

ENV = os.environ | {"PYTHONPATH": str(Path(__file__).parent / "support")}
CONSTANTS = (
    *("body_subtreemass", "geom_aabb", "geom_rbound"),
    *("dof_invweight0", "body_invweight0", "actuator_acc0"),
)
BOXES = """
<mujoco>
  <option timestep="0.002"/>
  <worldbody>
    <body><freejoint/><geom type="box" size=".05 .04 .03" mass="1"/></body>
    <body><freejoint/><geom type="box" size=".03 .03 .03" mass="1"/></body>
  </worldbody>
</mujoco>"""


@pytest.fixture(params=ON_WARP)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def leap() -> Scene:
    return build_scene(load_hand("leap"), "cube", timestep=1 / 60)


def nested(scene: Scene, n: int, seed: int) -> torch.Tensor:
    """(n, nq): hands a little open, a cube askew in each nest."""
    rng = np.random.default_rng(seed)
    qpos = np.tile(scene.model.qpos0, (n, 1))
    joints, at = len(scene.hand.home), scene.object_qpos
    qpos[:, scene.joint_qpos] = scene.hand.home + rng.uniform(-0.1, 0.1, (n, joints))
    qpos[:, at : at + 3] = scene.hand.nest + rng.uniform(-0.004, 0.004, (n, 3))
    quat = rng.normal(size=(n, 4)) * 0.05 + [1, 0, 0, 0]
    qpos[:, at + 3 : at + 7] = quat / np.linalg.norm(quat, axis=1, keepdims=True)
    return torch.from_numpy(qpos)


def contacts_of(sim: Any, env: int) -> np.ndarray:
    """(ncon, 4) distances and positions of a WarpSim, sorted."""
    contact = sim._d.contact
    here = contact.worldid.numpy()[: sim._d.nacon.numpy()[0]] == env
    dist, pos = contact.dist.numpy()[: len(here)][here], contact.pos.numpy()[: len(here)][here]
    return sorted_rows(np.hstack((dist[:, None], pos)))


def sorted_rows(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(np.round(rows[:, 1:], 4).T)]


def test_boxes_touch_where_mujoco_says(device: str) -> None:
    """Faces, edges and corners: the same points, or a cube in a hand would not rest alike."""
    model = mujoco.MjModel.from_xml_string(BOXES)
    rng, n = np.random.default_rng(0), 64
    qpos = np.tile(model.qpos0, (n, 1))
    qpos[:, :3] = np.array([0, 0, 0.058]) + rng.uniform(-0.02, 0.02, (n, 3))
    quats = rng.normal(size=(n, 2, 4)) * np.where(rng.random(n) < 0.5, 0.02, 0.5)[:, None, None]
    quats[..., 0] += 1
    quats /= np.linalg.norm(quats, axis=2, keepdims=True)
    qpos[:, 3:7], qpos[:, 10:14] = quats[:, 0], quats[:, 1]
    sim = sim_of(device, model, n, (), wrench_body=None)
    sim.reset(everyone(sim), *on(sim, qpos, np.zeros((n, model.nv))))
    sim.step(torch.zeros(n, 1, 0, device=sim.device))
    data, equal = mujoco.MjData(model), []
    for env in range(n):
        data.qpos[:] = qpos[env]
        mujoco.mj_forward(model, data)
        expected = sorted_rows(np.hstack((data.contact.dist[:, None], data.contact.pos)))
        found = contacts_of(sim, env)
        equal.append(len(found) == len(expected) and np.allclose(found, expected, atol=1e-5))
    assert sum(equal) >= 0.95 * n  # where an edge is as near as a face, rounding decides
    assert sim.qpos.isfinite().all()


def test_a_cube_in_the_leap_hand_moves_as_on_the_cpu(device: str) -> None:
    """Random targets, a cube in touch with palm and fingers, 20 steps.

    Contact makes some of these chaotic: a corner that rounding puts on the other side of an
    edge. So three quarters of the hands are compared, to 1e-4 rad and m. With Warp's own
    collision of boxes not one in ten is that close.
    """
    scene, n, substeps = leap(), 16, 20
    cpu = CpuSim(scene.model, n, threads=1)
    sim = sim_of(device, scene.model, n, (), 64, 160, wrench_body=None)
    rng, home = np.random.default_rng(1), torch.tensor(scene.hand.home)
    cpu.reset(torch.arange(n), nested(scene, n, 0), torch.zeros(n, scene.model.nv))
    cpu.step(home.expand(n, 30, -1))  # until it lies still
    start = cpu.qpos.clone(), cpu.qvel.clone()
    cpu.reset(torch.arange(n), *start)
    sim.reset(everyone(sim), *on(sim, *start))
    ctrl = home + torch.from_numpy(rng.uniform(-0.3, 0.3, (n, substeps, len(home))).cumsum(1) / 4)
    touching = 0.0
    for now in ctrl.split(1, dim=1):
        cpu.step(now)
        sim.step(*on(sim, now))
        touching += float((cpu.ncon > 2).double().mean()) / substeps
    assert touching > 0.9
    error = (sim.qpos.cpu().double() - cpu.qpos).abs().amax(1)
    moved = (cpu.qpos - start[0]).abs().amax(1)
    assert moved.min() > 0.05
    assert error.quantile(0.75) < 1e-4, error
    assert error.quantile(0.5) < 1e-5, error


def test_a_cube_rests_in_the_leap_hand_as_on_the_cpu(device: str) -> None:
    scene, n = leap(), 16
    cpu = CpuSim(scene.model, n, threads=1)
    sim = sim_of(device, scene.model, n, (), 64, 160, wrench_body=None)
    start = nested(scene, n, 2), torch.zeros(n, scene.model.nv)
    home, at = torch.tensor(scene.hand.home), scene.object_qpos
    cpu.reset(torch.arange(n), *start)
    sim.reset(everyone(sim), *on(sim, *start))
    for _ in range(4):  # two seconds
        cpu.step(home.expand(n, 30, -1))
        sim.step(home.expand(n, 30, -1).to(sim.device))
    found, expected = sim.qpos.cpu().double()[:, at : at + 7], cpu.qpos[:, at : at + 7]
    assert (found - expected)[:, :3].abs().median() < 1e-4
    assert (found - expected)[:, :3].abs().max() < 5e-3  # the cube is 65 mm wide
    each = [len(contacts_of(sim, env)) for env in range(n)]
    assert abs(np.mean(each) - float(cpu.ncon.double().mean())) < 1.0
    assert min(each) >= 3  # it lies on faces, not on a point


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("body_mass", {"mass": [0.2]}),
        ("body_inertia", {"inertia": [2e-4, 1e-4, 3e-4]}),
        ("body_ipos", {"com": [0.004, -0.003, 0.002]}),
        ("dof_armature", {"armature": [0.004, 0.001, 0.003]}),
        ("geom_size", {"size": [0.05, 0.02, 0.03], "tip": [0.013]}),
    ],
)
def test_constants_follow_from_each_field_alone(device: str, field: str, changed: Values) -> None:
    model, truth = compile_model(), compile_model(NOMINAL | changed)
    sim: Any = sim_of(device, model, N, fields=(field,))
    sim.per_env(field)[2] = torch.as_tensor(getattr(truth, field), dtype=torch.float32)
    sim.commit(everyone(sim))
    followed = 0
    for name in CONSTANTS:
        array = getattr(sim._m, name).numpy()
        array = array.reshape(len(array), *getattr(model, name).shape)
        for env in range(N):
            expected = getattr(truth if env == 2 else model, name)
            found = array[env % len(array)]  # Warp keeps one row for all where nothing varies
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7, err_msg=name)
        followed += (getattr(truth, name) != getattr(model, name)).any()
    assert followed


def crowd(sim: BatchSim) -> None:
    begin(sim)
    random_steps(sim, 0, 3)


def suggested(error: pytest.ExceptionInfo[ValueError]) -> int:
    return int(str(error.value).split()[-3])


def test_want_of_constraint_rows_is_reported(device: str) -> None:
    sim = sim_of(device, compile_model(), N, njmax=8)
    crowd(sim)
    assert sim.overflow.any()
    with pytest.raises(
        ValueError, match=r"^sim\.njmax: 8 constraint rows .* expected \d+ or more$"
    ) as error:
        sim.check()
    assert not sim.overflow.any()
    sim.check()  # has been told
    enough = sim_of(device, compile_model(), N, njmax=suggested(error))
    crowd(enough)
    enough.check()
    assert not enough.overflow.any()


def test_want_of_contacts_is_reported(device: str) -> None:
    sim = sim_of(device, compile_model(), N, nconmax=1)
    crowd(sim)
    assert sim.overflow.all()  # one array holds the contacts of all
    with pytest.raises(
        ValueError, match=r"^sim\.nconmax: 1 contacts .* expected \d+ or more$"
    ) as error:
        sim.check()
    enough = sim_of(device, compile_model(), N, nconmax=suggested(error))
    crowd(enough)
    enough.check()


def test_no_room_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=r"^sim\.nconmax: expected 1 or more, got 0$"):
        sim_of(device, compile_model(), N, nconmax=0)
    with pytest.raises(ValueError, match=r"^sim\.njmax: expected 1 or more, got 0$"):
        sim_of(device, compile_model(), N, njmax=0)


OPTION = '<option timestep="0.01"'
LACKING = {
    "PGS": (OPTION, OPTION + ' solver="PGS"'),
    "sleeping": (OPTION, '<option><flag sleep="enable"/></option>' + OPTION),
    "delayed sensors": ("<framepos ", '<framepos nsample="3" delay="0.02" '),
    "flexible bodies": (
        '<body name="box"',
        '<flexcomp name="cloth" type="grid" count="3 3 1" spacing=".1 .1 .1" pos="1 1 1"/>'
        '<body name="box"',
    ),
}


@pytest.mark.parametrize("feature", LACKING)
def test_what_warp_lacks_is_refused_by_name(device: str, feature: str) -> None:
    model = mujoco.MjModel.from_xml_string(xml(NOMINAL).replace(*LACKING[feature], 1))
    with pytest.raises(ValueError, match=rf"^sim\.backend: warp .*{feature}.*backend cpu"):
        sim_of(device, model, N)


def test_fields_that_warp_cannot_vary_are_refused(device: str) -> None:
    model = compile_model()
    for field, reason in {
        "geom_pos": "fixed to the world",
        "opt.density": "zero in the model",
        "geom_contype": "",
        "opt.gravty": "'opt.gravity'",
    }.items():
        with pytest.raises(ValueError, match=rf"^model_fields: .*{field}.*{reason}"):
            sim_of(device, model, N, fields=(field,))


def test_the_state_of_the_other_backend_is_refused(device: str) -> None:
    model = compile_model()
    sim, cpu = sim_of(device, model, N), sim_of("cpu", model, N)
    before = sim.state_dict()
    with pytest.raises(ValueError, match=r"state: expected one of sim\.backend warp"):
        sim.load_state_dict(cpu.state_dict())
    assert all((sim.state_dict()["arrays"][k] == v).all() for k, v in before["arrays"].items())
    with pytest.raises(ValueError, match=r"state: expected one of sim\.backend cpu"):
        cpu.load_state_dict(before)


def test_a_world_that_ran_out_of_room_does_not_stay_ill(device: str) -> None:
    """What was too much is forgotten with a reset: nothing hides in Warp's arrays."""
    sim, new = (sim_of(device, compile_model(), N, njmax=8) for _ in range(2))
    crowd(sim)
    free = torch.from_numpy(np.tile(compile_model().qpos0, (N, 1)))
    free[:, 5] = 1.0  # the box falls from a metre
    for each in (sim, new):
        begin(each)
        each.reset(everyone(each), *on(each, free, np.zeros((N, 9))))
        random_steps(each, 1, 3)
    same(device, sim, new)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_the_cpu_device_says_one_line() -> None:
    code = """
from finger_model import compile_model, sim_of, random_steps
for _ in range(2):
    random_steps(sim_of("warp", compile_model(), 5), 0)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert ran.returncode == 0
    assert ran.stdout == ""
    assert ran.stderr.startswith("note: MuJoCo Warp runs on the CPU")
    assert ran.stderr.count("\n") == 1

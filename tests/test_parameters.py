"""Every physics parameter against a model that was compiled with its value.

The references are plain mj_step loops over models from XML, so nothing derived can be forgotten:
inverse weights, subtree masses, bounding volumes.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import torch

from widen.envs import scene as scene_module
from widen.envs.hand import Hand, load_hand
from widen.envs.scene import OBJECTS, Scene, build_scene
from widen.envs.sim import SimConfig, make_sim
from widen.randomization.config import RandomizationConfig
from widen.randomization.parameters import CATALOGUE
from widen.randomization.randomizer import Randomizer

STEPS = 60
MODEL_PARAMETERS = [name for name, what in CATALOGUE.items() if what.kind == "model"]
VALUES = {name: 1.6 for name in MODEL_PARAMETERS} | {
    "object_mass": 2.0,  # doubling rounds nothing
    "object_size": 1.15,
    "gravity": 1.4,
    "gravity_tilt_x": 0.3,
    "gravity_tilt_y": -0.2,
    "force_limit": 0.5,
}
# The compiler computes a box's inertia, and numpy a rotated gravity, with other roundings than a
# product with the nominal value: relative errors of 1e-16 that sixty steps in contact amplify.
ROUNDED = {"object_size", "gravity_tilt_x", "gravity_tilt_y"}

# A finger of two joints presses and drags a box on a palm.
XML = """
<mujoco>
  <option timestep=".005" gravity="{gravity}" integrator="implicitfast" iterations="20"/>
  <worldbody>
    <geom name="palm" type="box" size=".2 .2 .01" pos="0 0 -.01" friction="{palm}"/>
    <body pos="0 0 .11">
      <joint name="j0" axis="0 1 0" damping="{d0}" armature="{a0}" {jnt}/>
      <geom name="link" type="capsule" size=".008" fromto="0 0 0 -.06 0 0" friction="{link}"/>
      <body pos="-.06 0 0">
        <joint name="j1" axis="0 1 0" damping="{d1}" armature="{a1}" {jnt}/>
        <geom name="tip" type="capsule" size=".01" fromto="0 0 0 0 0 -.05" friction="{link}"/>
      </body>
    </body>
    <body name="box" pos="-.06 0 .02">
      <freejoint name="box"/>
      <geom name="box" type="box" size="{size}" mass="{mass}" friction="{box}"/>
    </body>
  </worldbody>
  <actuator>
    <general joint="j0" biastype="affine" gainprm="{k0}" biasprm="0 {b0} -.05" {act}/>
    <general joint="j1" biastype="affine" gainprm="{k1}" biasprm="0 {b1} -.05" {act}/>
  </actuator>
</mujoco>
"""


def text(*values: float) -> str:
    return " ".join(f"{float(v):.17g}" for v in values)


def turned(gravity: np.ndarray, about_x: float, about_y: float) -> np.ndarray:
    """Gravity turned about x, then about y, by rotation matrices."""
    c, s = np.cos(about_x), np.sin(about_x)
    x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    c, s = np.cos(about_y), np.sin(about_y)
    y = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return y @ x @ gravity


def finger(values: dict[str, float], limit_on: str = "actuator") -> mujoco.MjModel:
    """The model compiled with these values of the catalogue's parameters."""
    v = {name: CATALOGUE[name].nominal for name in MODEL_PARAMETERS} | values
    limit = text(-0.12 * v["force_limit"], 0.12 * v["force_limit"])
    gravity = np.array([0.3, 0.1, -9.81]) * v["gravity"]
    if v["gravity_tilt_x"] or v["gravity_tilt_y"]:
        gravity = turned(gravity, v["gravity_tilt_x"], v["gravity_tilt_y"])
    gain, damping, armature = (
        v["actuator_gain"],
        v["joint_damping"],
        v["joint_armature"],
    )
    return mujoco.MjModel.from_xml_string(
        XML.format(
            gravity=text(*gravity),
            palm=text(0.35 * v["hand_friction"], 0.005, 0.0001),
            link=text(0.45 * v["hand_friction"], 0.005, 0.0001),
            box=text(0.4 * v["object_friction"], 0.005, 0.0001),
            size=text(*(half * v["object_size"] for half in (0.03, 0.025, 0.02))),
            mass=text(0.08 * v["object_mass"]),
            **{f"d{i}": text(d * damping) for i, d in enumerate((0.01, 0.008))},
            **{f"a{i}": text(a * armature) for i, a in enumerate((0.002, 0.001))},
            **{f"k{i}": text(k * gain) for i, k in enumerate((1.5, 1.2))},
            **{f"b{i}": text(-k * gain) for i, k in enumerate((1.5, 1.2))},
            act=f'forcerange="{limit}"' if limit_on == "actuator" else "",
            jnt=f'actuatorfrcrange="{limit}"' if limit_on == "joint" else "",
        )
    )


def finger_scene(model: mujoco.MjModel) -> Scene:
    hand = Hand("finger", "", Path(), ("j0", "j1"), ("", ""), (), (0.0, 0.0), 0.0, (0, 0, 0))
    names = [model.geom(i).name for i in range(model.ngeom)]
    return Scene(
        model=model,
        hand=hand,
        joint_qpos=np.array([0, 1]),
        joint_dof=np.array([0, 1]),
        lower=np.array([-3.0, -3.0]),
        upper=np.array([3.0, 3.0]),
        object_body="box",
        object_qpos=2,
        object_dof=2,
        hand_geoms=np.array([i for i, name in enumerate(names) if name != "box"]),
        object_geoms=np.array([names.index("box")]),
    )


def finger_ctrl() -> np.ndarray:
    """(STEPS, 2): the tip goes down on the box and drags it."""
    t = np.linspace(0, 1, STEPS)[:, None]
    return np.hstack((-0.45 * t - 0.3, 0.5 * np.sin(9 * t)))


def reference(model: mujoco.MjModel, start: np.ndarray, ctrl: np.ndarray) -> np.ndarray:
    """(STEPS, nq + nv) of a plain mj_step loop that has hand-object contact for a while."""
    data = mujoco.MjData(model)
    data.qpos[:] = start
    states, object_geom = [], model.ngeom - 1
    touched = np.zeros(model.ngeom, dtype=int)
    for row in ctrl:
        data.ctrl[:] = row
        mujoco.mj_step(model, data)
        states.append(np.concatenate((data.qpos, data.qvel)))
        for contact in data.contact:
            if object_geom in contact.geom:
                touched[contact.geom] += 1
    assert (np.delete(touched, object_geom) > 5).sum() >= 2  # a finger and the palm
    return np.array(states)


def randomizer(values: dict[str, float]) -> Randomizer:
    entries = {name: {"range": (value, value)} for name, value in values.items()}
    return Randomizer(
        RandomizationConfig.model_validate({"curriculum": "uniform", "parameters": entries})
    )


def randomized(
    scene: Scene, values: dict[str, float], start: np.ndarray, ctrl: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(STEPS, nq + nv) of a simulation that began three times, and of one that never did."""
    perturbation = randomizer(values)
    sim = make_sim(scene.model, 3, SimConfig(threads=1), model_fields=perturbation.model_fields)
    perturbation.attach(sim, scene, 0.05)
    for env_ids in ([1], [1, 2], [1]):
        perturbation.begin(torch.tensor(env_ids))
    qpos = torch.from_numpy(np.tile(start, (3, 1)))
    sim.reset(torch.arange(3), qpos, torch.zeros(3, scene.model.nv))
    states = []
    for row in ctrl:
        sim.step(torch.from_numpy(row).expand(3, 1, -1))
        states.append(np.concatenate((sim.qpos.numpy(), sim.qvel.numpy()), axis=1))
    history = np.array(states)
    np.testing.assert_array_equal(history[:, 1], history[:, 2])
    return history[:, 1], history[:, 0]


def compare(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    if name in ROUNDED:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", MODEL_PARAMETERS)
def test_a_finger_and_a_box(name: str) -> None:
    nominal, compiled = finger({}), finger({name: VALUES[name]})
    start, ctrl = nominal.qpos0.copy(), finger_ctrl()
    found, untouched = randomized(finger_scene(nominal), {name: VALUES[name]}, start, ctrl)
    expected, ordinary = reference(compiled, start, ctrl), reference(nominal, start, ctrl)
    assert np.abs(expected - ordinary).max() > 0.1  # the parameter matters here
    np.testing.assert_array_equal(untouched, ordinary)
    compare(name, found, expected)


def test_force_limits_of_joints_are_scaled_as_well() -> None:
    nominal, values = finger({}, limit_on="joint"), {"force_limit": 0.5}
    start, ctrl = nominal.qpos0.copy(), finger_ctrl()
    found, untouched = randomized(finger_scene(nominal), values, start, ctrl)
    compiled = finger(values, limit_on="joint")
    np.testing.assert_array_equal(untouched, reference(nominal, start, ctrl))
    np.testing.assert_array_equal(found, reference(compiled, start, ctrl))
    assert np.abs(found - untouched).max() > 0.1


def test_parameters_that_share_fields_combine() -> None:
    nominal = finger({})
    start, ctrl = nominal.qpos0.copy(), finger_ctrl()
    found, _ = randomized(finger_scene(nominal), VALUES, start, ctrl)
    expected = reference(finger(VALUES), start, ctrl)  # rounded as ROUNDED says
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


def leap_compiled(
    name: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Scene:
    """The LEAP scene built from a hand file and an object with this value written into them."""
    hand = load_hand("leap")
    hand_edits = {
        "hand_friction": r'(?<=friction=")([.\d]+)',
        "joint_damping": r'(?<= damping=")([.\d]+)',
        "joint_armature": r'(?<=armature=")([.\d]+)',
        "actuator_gain": r'(?<=<position kp=")([.\d]+)',
        "force_limit": r'(?:(?<=forcerange=")|(?<=forcerange="-.27 ))(-?[.\d]+)',
    }
    cube = OBJECTS["cube"]
    object_edits = {
        "object_mass": {"mass": cube.mass * value},
        "object_size": {"half_size": tuple(half * value for half in cube.half_size)},
        "object_friction": {"friction": cube.friction * value},
    }
    downward = scene_module.gravity_of(hand.tilt)
    gravity_edits = {
        "gravity": downward * value,
        "gravity_tilt_x": turned(downward, value, 0.0),
        "gravity_tilt_y": turned(downward, 0.0, value),
    }
    if name in hand_edits:
        source, scale = hand.mjcf.read_text(), lambda found: text(float(found[1]) * value)
        changed, count = re.subn(hand_edits[name], scale, source)
        assert count > 0
        file = tmp_path / "hand.xml"
        file.write_text(changed)
        hand = dataclasses.replace(hand, mjcf=file)
    elif name in object_edits:
        edited: Any = dataclasses.replace(cube, **object_edits[name])
        monkeypatch.setitem(OBJECTS, "cube", edited)
    else:
        monkeypatch.setattr(scene_module, "gravity_of", lambda tilt: gravity_edits[name])
    return build_scene(hand, "cube", timestep=1 / 60)


def leap_run(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """A start with the cube just over the nest, and fingers that close on it hard."""
    start = scene.model.qpos0.copy()
    start[scene.joint_qpos] = scene.hand.home
    start[scene.object_qpos : scene.object_qpos + 3] = scene.hand.nest
    t = np.linspace(0, 1, STEPS)[:, None]
    wave = np.sin(7 * t + np.arange(len(scene.hand.home)))
    return start, np.array(scene.hand.home) + 0.8 * t + 0.3 * t * wave


@pytest.mark.parametrize("name", MODEL_PARAMETERS)
def test_the_leap_hand_and_a_cube(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, value = build_scene(load_hand("leap"), "cube", timestep=1 / 60), VALUES[name]
    start, ctrl = leap_run(scene)
    found, untouched = randomized(scene, {name: value}, start, ctrl)
    ordinary = reference(scene.model, start, ctrl)
    compiled = leap_compiled(name, value, tmp_path, monkeypatch)
    expected = reference(compiled.model, start, ctrl)
    assert np.abs(expected - ordinary).max() > 1e-2
    np.testing.assert_array_equal(untouched, ordinary)
    compare(name, found, expected)


def test_every_parameter_says_what_it_is() -> None:
    for name, what in CATALOGUE.items():
        low, high = what.limits
        assert what.name == name
        assert what.summary
        assert what.source
        assert low <= what.nominal < high
        assert 30 <= (high - low) / what.step <= 200
        assert (what.write is not None) == bool(what.fields) == (what.kind == "model")


def test_object_parameters_need_an_object() -> None:
    scene = build_scene(load_hand("leap"), None, timestep=1 / 60)
    perturbation = randomizer({"object_mass": 1.2, "object_delay": 1.0, "gravity": 1.1})
    sim = make_sim(scene.model, 1, SimConfig(threads=1), model_fields=perturbation.model_fields)
    with pytest.raises(ValueError, match="object_mass, object_delay: this task has no object"):
        perturbation.attach(sim, scene, 0.05)


def test_a_lopsided_object_cannot_be_scaled() -> None:
    model = finger({})
    model.geom_pos[model.geom("box").id] = [0.01, 0, 0]
    perturbation = randomizer({"object_size": 1.1})
    sim = make_sim(model, 1, SimConfig(threads=1), model_fields=perturbation.model_fields)
    with pytest.raises(ValueError, match="object_size needs an object of primitive shapes"):
        perturbation.attach(sim, finger_scene(model), 0.05)

"""Every physics parameter on the LEAP hand and the cube, as the environment builds them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from dragged_box import (
    DRAWN,
    MODEL_PARAMETERS,
    STEPS,
    VALUES,
    Row,
    compare,
    randomized,
    reference,
    text,
    turned,
)

from widen.envs import scene as scene_module
from widen.envs.hand import Hand, load_hand
from widen.envs.scene import OBJECTS, Scene, build_scene
from widen.randomization.parameters import CATALOGUE


def leap_scene(name: str, hand: Hand) -> Scene:
    """As the environment builds it for this parameter."""
    what = CATALOGUE[name]
    return build_scene(
        hand,
        "cube",
        timestep=1 / 60,
        contact_dims=what.contact_dims,
        movable_centre="body_ipos" in what.fields,
    )


def leap_compiled(
    name: str, value: float, row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Scene:
    """The LEAP scene built from a hand file, an object or a spec with this value in it."""
    hand = load_hand("leap")
    hand_edits = {
        "hand_friction": r'(?<=friction=")([.\d]+)',
        "joint_damping": r'(?<= damping=")([.\d]+)',
        "joint_armature": r'(?<=armature=")([.\d]+)',
        "joint_frictionloss": r'(?<=frictionloss=")([.\d]+)',
        "actuator_gain": r'(?<=<position kp=")([.\d]+)',
        "actuator_damping": r'(?<= kv=")([.\d]+)',
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

        def change(found: re.Match[str]) -> str:
            nominal = float(found[1])
            return text(value + nominal if name == "joint_frictionloss" else value * nominal)

        changed, count = re.subn(hand_edits[name], change, hand.mjcf.read_text())
        assert count > 0
        file = tmp_path / "hand.xml"
        file.write_text(changed)
        hand = dataclasses.replace(hand, mjcf=file)
    elif name in object_edits:
        edited: Any = dataclasses.replace(cube, **object_edits[name])
        monkeypatch.setitem(OBJECTS, "cube", edited)
    elif name in gravity_edits:
        monkeypatch.setattr(scene_module, "gravity_of", lambda tilt, roll: gravity_edits[name])
    else:
        add_view = scene_module._add_view  # the last thing before a scene is compiled

        def edit(spec: mujoco.MjSpec, hand: Hand) -> None:
            add_view(spec, hand)
            edit_spec(spec, name, value, row)

        monkeypatch.setattr(scene_module, "_add_view", edit)
    return leap_scene(name, hand)


def edit_spec(spec: mujoco.MjSpec, name: str, value: float, row: Row) -> None:
    """Write a value, or what an episode drew, into the parts of a scene before they compile."""
    if name == "time_step":
        spec.option.timestep *= value
    elif name == "hand_mass":
        for body in spec.bodies:
            if body.name not in ("world", "object"):
                body.mass, body.inertia = body.mass * value, np.multiply(body.inertia, value)
    elif name == "object_com":
        spec.body("object").ipos = row["body_ipos"][-1]
    elif name in DRAWN:
        for i, motor in enumerate(spec.actuators):
            edit_motor(name, motor, spec.joint(motor.target), {key: v[i] for key, v in row.items()})
    else:
        for geom in spec.geoms:
            if geom.contype or geom.conaffinity:
                edit_geom(name, value, geom)


def edit_motor(name: str, motor: Any, joint: Any, row: Row) -> None:
    """row: of this motor or its joint; the hand's joints come first in the scene."""
    if name == "joint_limits":
        motor.inheritrange, motor.ctrlrange, joint.range = 0, joint.range, row["jnt_range"]
    elif name == "force_limit_spread":
        motor.forcerange = row["actuator_forcerange"]
    elif name in ("actuator_gain_spread", "actuator_damping_spread"):
        motor.gainprm[0] = row.get("actuator_gainprm", motor.gainprm)[0]
        motor.biasprm[1:3] = row["actuator_biasprm"][1:3]
    elif name == "joint_damping_spread":
        joint.damping[0] = row["dof_damping"]
    else:
        assert name == "joint_armature_spread"
        joint.armature = row["dof_armature"]


def edit_geom(name: str, value: float, geom: Any) -> None:
    if "friction" in name:
        column = 1 if "spin" in name else 2
        if (geom.name == "object") == name.startswith("object"):
            geom.friction[column] *= value
    elif name == "contact_time":
        geom.solref[0] = value * max(geom.solref[0], 2 / 60)  # which is what MuJoCo takes
    elif name == "contact_damping":
        geom.solref[1] *= value
    elif name == "contact_impedance":
        geom.solimp[:2] = 1 - value * (1 - geom.solimp[:2])
    elif name == "contact_width":
        geom.solimp[2] *= value
    else:
        assert name == "contact_margin"
        geom.margin += 0.5 * value


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
    scene, value = leap_scene(name, load_hand("leap")), VALUES[name]
    start, ctrl = leap_run(scene)
    if name == "joint_limits":
        ctrl = ctrl + 0.8  # as far as the stops
    found, untouched, row = randomized(scene, {name: value}, start, ctrl)
    ordinary = reference(scene.model, start, ctrl)
    compiled = leap_compiled(name, value, row, tmp_path, monkeypatch)
    expected = reference(compiled.model, start, ctrl)
    assert np.abs(expected - ordinary).max() > 1e-2
    np.testing.assert_array_equal(untouched, ordinary)
    compare(name, found, expected)

"""A finger that drags a box on a palm, compiled with any values of the catalogue's parameters.

The references are plain mj_step loops over models from XML, so nothing derived can be forgotten:
inverse weights, subtree masses, bounding volumes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch

from widen.envs.hand import Hand
from widen.envs.scene import Scene
from widen.envs.sim import SimConfig, make_sim
from widen.randomization.config import RandomizationConfig
from widen.randomization.parameters import CATALOGUE
from widen.randomization.randomizer import Randomizer

STEPS = 60
MODEL_PARAMETERS = [name for name, what in CATALOGUE.items() if what.kind == "model"]
DRAWN = [name for name in MODEL_PARAMETERS if CATALOGUE[name].normals != "none"]
"""Whose effect also depends on samples of the episode."""
VALUES = {name: 1.6 for name in MODEL_PARAMETERS} | {
    "object_mass": 2.0,  # doubling rounds nothing
    "hand_mass": 2.0,
    "object_size": 1.15,
    "gravity": 1.4,
    "gravity_tilt_x": 0.3,
    "gravity_tilt_y": -0.2,
    "force_limit": 0.5,
    "contact_time": 2.5,
    "contact_impedance": 3.0,
    "contact_width": 4.0,
    "contact_margin": 0.004,
    "joint_frictionloss": 0.05,
    "joint_limits": 0.3,
    "object_com": 0.008,
    "time_step": 0.75,
    **{name: 4.0 for name in MODEL_PARAMETERS if "spin" in name or "roll" in name},
    **{name: 0.3 for name in MODEL_PARAMETERS if name.endswith("_spread")},
}
# The compiler computes a box's inertia, and numpy a rotated gravity, with other roundings than a
# product with the nominal value: relative errors of 1e-16 that sixty steps in contact amplify.
ROUNDED = {"object_size", "gravity_tilt_x", "gravity_tilt_y", "contact_impedance"}

# A finger of two joints presses and drags a box on a palm.
XML = """
<mujoco>
  <compiler angle="radian"/>
  <option timestep="{timestep}" gravity="{gravity}" integrator="implicitfast" iterations="20"/>
  <default>
    <geom condim="{dims}" solref="{solref}" solimp="{solimp}" margin="{margin}"/>
  </default>
  <worldbody>
    <geom name="palm" type="box" size=".2 .2 .01" pos="0 0 -.01" friction="{palm}"/>
    <body pos="0 {y} .11">
      <joint name="j0" axis="0 1 0" damping="{d0}" armature="{a0}" frictionloss="{loss}"
          range="{r0}" {jnt0}/>
      <geom name="link" type="capsule" size=".008" fromto="0 0 0 -.06 0 0" friction="{link}"
          mass="{m0}"/>
      <body pos="-.06 0 0">
        <joint name="j1" axis="0 1 0" damping="{d1}" armature="{a1}" frictionloss="{loss}"
            range="{r1}" {jnt1}/>
        <geom name="tip" type="capsule" size=".01" fromto="0 0 0 0 0 -.05" friction="{link}"
            mass="{m1}"/>
      </body>
    </body>
    <body name="box" pos="-.06 0 .02" simple="false">
      <freejoint name="box"/>{inertial}
      <geom name="box" type="box" size="{size}" mass="{mass}" friction="{box}"/>
    </body>
  </worldbody>
  <actuator>
    <general joint="j0" biastype="affine" gainprm="{k0}" biasprm="0 {b0} {v0}" {act0}/>
    <general joint="j1" biastype="affine" gainprm="{k1}" biasprm="0 {b1} {v1}" {act1}/>
  </actuator>
</mujoco>
"""
# Worlds in which a parameter shows: what of the XML differs from the ordinary one.
WORLDS = {"joint_limits": {"r0": "-.2 1", "r1": "-.1 .2"}} | {
    name: {"dims": CATALOGUE[name].contact_dims, "y": 0.015}
    for name in MODEL_PARAMETERS
    if CATALOGUE[name].contact_dims > 3
}


def text(*values: float) -> str:
    return " ".join(f"{float(v):.17g}" for v in values)


def turned(gravity: np.ndarray, about_x: float, about_y: float) -> np.ndarray:
    """Gravity turned about x, then about y, by rotation matrices."""
    c, s = np.cos(about_x), np.sin(about_x)
    x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    c, s = np.cos(about_y), np.sin(about_y)
    y = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return y @ x @ gravity


def finger(values: dict[str, float], limit_on: str = "actuator", **changed: Any) -> mujoco.MjModel:
    """The model compiled with these values of the catalogue's parameters.

    limit_on: whether actuators or joints state the largest torque. changed: placeholders of XML.
    """
    v = {name: CATALOGUE[name].nominal for name in MODEL_PARAMETERS} | values
    limit = text(-0.12 * v["force_limit"], 0.12 * v["force_limit"])
    act = f'forcerange="{limit}"' if limit_on == "actuator" else ""
    jnt = f'actuatorfrcrange="{limit}"' if limit_on == "joint" else ""
    gravity = np.array([0.3, 0.1, -9.81]) * v["gravity"]
    if v["gravity_tilt_x"] or v["gravity_tilt_y"]:
        gravity = turned(gravity, v["gravity_tilt_x"], v["gravity_tilt_y"])
    hand = [v[f"hand_{kind}friction"] for kind in ("", "spin_", "roll_")]
    box = [v[f"object_{kind}friction"] for kind in ("", "spin_", "roll_")]
    soft = v["contact_impedance"]
    placeholders = {
        "timestep": text(0.005 * v["time_step"]),
        "gravity": text(*gravity),
        "dims": 3,
        "y": 0,
        "solref": text(0.02 * v["contact_time"], 1.0 * v["contact_damping"]),
        "solimp": text(1 - 0.1 * soft, 1 - 0.05 * soft, 0.001 * v["contact_width"]),
        "margin": text(0.5 * v["contact_margin"]),
        "palm": text(*np.multiply((0.35, 0.02, 0.004), hand)),
        "link": text(*np.multiply((0.45, 0.02, 0.004), hand)),
        "box": text(*np.multiply((0.4, 0.02, 0.004), box)),
        "size": text(*(half * v["object_size"] for half in (0.03, 0.025, 0.02))),
        "mass": text(0.08 * v["object_mass"]),
        "inertial": "",
        "loss": text(v["joint_frictionloss"]),
        **{f"m{i}": text(m * v["hand_mass"]) for i, m in enumerate((0.013, 0.02))},
        **{f"d{i}": text(d * v["joint_damping"]) for i, d in enumerate((0.01, 0.008))},
        **{f"a{i}": text(a * v["joint_armature"]) for i, a in enumerate((0.002, 0.001))},
        **{f"k{i}": text(k * v["actuator_gain"]) for i, k in enumerate((1.5, 1.2))},
        **{f"b{i}": text(-k * v["actuator_gain"]) for i, k in enumerate((1.5, 1.2))},
        **{f"v{i}": text(-0.05 * v["actuator_damping"]) for i in range(2)},
        **{f"r{i}": "-3 3" for i in range(2)},
        **{f"act{i}": act for i in range(2)},
        **{f"jnt{i}": jnt for i in range(2)},
    }
    return mujoco.MjModel.from_xml_string(XML.format(**placeholders | changed))


def as_drawn(name: str, row: dict[str, np.ndarray]) -> dict[str, str]:
    """Placeholders of XML for what an episode drew, read back from the simulation's fields."""

    def both(key: str, values: np.ndarray) -> dict[str, str]:
        return {f"{key}{i}": text(*np.atleast_1d(values[i])) for i in range(2)}

    if name == "object_com":
        box = finger({}).body("box")
        moved = f'pos="{text(*row["body_ipos"][-1])}" mass="{text(*box.mass)}"'
        return {"inertial": f'<inertial {moved} diaginertia="{text(*box.inertia)}"/>'}
    if name == "force_limit_spread":
        ranges = both("act", row["actuator_forcerange"])
        return {key: f'forcerange="{values}"' for key, values in ranges.items()}
    if name == "actuator_gain_spread":
        gains, biases = row["actuator_gainprm"][:, 0], row["actuator_biasprm"][:, 1]
        return both("k", gains) | both("b", biases)
    if name == "actuator_damping_spread":
        return both("v", row["actuator_biasprm"][:, 2])
    key, field = {
        "joint_damping_spread": ("d", "dof_damping"),
        "joint_armature_spread": ("a", "dof_armature"),
        "joint_limits": ("r", "jnt_range"),
    }[name]
    return both(key, row[field])


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


Row = dict[str, np.ndarray]
"""Values of an environment by MjModel field."""


def randomized(
    scene: Scene, values: dict[str, float], start: np.ndarray, ctrl: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Row]:
    """(STEPS, nq + nv) of a simulation that began three times, and of one that never did.

    And the first one's model fields.
    """
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
    if set(values) & set(DRAWN):  # every episode draws its own
        assert np.abs(history[:, 1] - history[:, 2]).max() > 1e-4
    else:
        np.testing.assert_array_equal(history[:, 1], history[:, 2])
    fields = {name: sim.per_env(name)[1].numpy() for name in perturbation.model_fields}
    return history[:, 1], history[:, 0], fields


def compare(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    if name in ROUNDED:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)
    else:
        np.testing.assert_array_equal(found, expected)

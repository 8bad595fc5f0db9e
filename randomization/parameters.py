"""The catalogue of everything that can be randomized.

A parameter of kind "model" is one entry and one function that scales rows of nominal MjModel
values; the effects of "actuation" and "observation" parameters live in the modules of those names.
Multiplicative parameters have the unit "x" and the nominal 1. A noise or bias parameter is the
standard deviation of normal samples, and its nominal 0 is also its low limit.

Where limits come from: [R] arXiv 1910.07113, [D] arXiv 1808.00177, [X] arXiv 2210.13702,
[P] arXiv 2502.08844 (MuJoCo Playground). Steps are about a fiftieth of the useful range, the
published 0.02 in normalised units.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import mujoco
import numpy as np
import torch
from torch import Tensor

from widen.envs.scene import Scene

from .curriculum import Range

STEPS_PER_UNIT = 50
"""Default steps that make a width of 1 in npd: the published step is 0.02 of a normalised unit."""

Index = Tensor | slice
"""Rows of a field; a tensor is on the sim's device."""

Rows = dict[str, Tensor]
"""MjModel fields, (K, ...) each: a row of nominal values for every environment that begins."""


@dataclass(frozen=True)
class Parts:
    """Where the hand and the object are in a model."""

    dofs: Index
    joints: Index
    hand_geoms: Index
    object_geoms: Index
    object_body: int

    @classmethod
    def of(cls, scene: Scene, device: torch.device) -> Parts:
        def index(ids: np.ndarray) -> Index:
            # where numbers follow each other, which is the rule, a slice saves two copies
            if len(ids) and (np.diff(ids) == 1).all():
                return slice(int(ids[0]), int(ids[-1]) + 1)
            return torch.as_tensor(ids, dtype=torch.long, device=device)

        return cls(
            dofs=index(scene.joint_dof),
            joints=index(scene.model.dof_jntid[scene.joint_dof]),
            hand_geoms=index(scene.hand_geoms),
            object_geoms=index(scene.object_geoms),
            object_body=scene.model.body(scene.object_body).id if scene.object_body else -1,
        )


def object_mass(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Mass and, in proportion, rotational inertia."""
    rows["body_mass"][:, parts.object_body] *= value
    rows["body_inertia"][:, parts.object_body] *= value[:, None]


def object_size(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Every length of the object at constant mass: inertia goes with the square."""
    rows["geom_size"][:, parts.object_geoms] *= value[:, None, None]
    rows["body_inertia"][:, parts.object_body] *= value[:, None].square()


def hand_friction(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Sliding friction of the hand. In a contact MuJoCo takes the larger of the two geoms'."""
    rows["geom_friction"][:, parts.hand_geoms, 0] *= value[:, None]


def object_friction(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Sliding friction of the object. In a contact MuJoCo takes the larger of the two geoms'."""
    rows["geom_friction"][:, parts.object_geoms, 0] *= value[:, None]


def joint_damping(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Viscous friction of the hand's joints, the part that is not in the motor's servo."""
    rows["dof_damping"][:, parts.dofs] *= value[:, None]


def joint_armature(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Inertia of rotors and gears as felt at the hand's joints."""
    rows["dof_armature"][:, parts.dofs] *= value[:, None]


def actuator_gain(rows: Rows, parts: Parts, value: Tensor) -> None:
    """kp of the position servos: torque = kp (ctrl - q) - kv qdot, so two numbers move together.

    kv stays: it is a gain of its own on real motors, and `joint_damping` is its stand-in.
    """
    rows["actuator_gainprm"][..., 0] *= value[:, None]
    rows["actuator_biasprm"][..., 1] *= value[:, None]


def force_limit(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Largest motor torque, whether the model states it for actuators or for joints.

    The unused one is all zeros and stays so.
    """
    rows["actuator_forcerange"] *= value[:, None, None]
    rows["jnt_actfrcrange"][:, parts.joints] *= value[:, None, None]


def gravity(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Strength of gravity."""
    rows["opt.gravity"] *= value[:, None]


def gravity_tilt_x(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Direction of gravity, turned about the hand base's x axis."""
    y, z = rows["opt.gravity"][:, 1].clone(), rows["opt.gravity"][:, 2].clone()
    rows["opt.gravity"][:, 1] = value.cos() * y - value.sin() * z
    rows["opt.gravity"][:, 2] = value.sin() * y + value.cos() * z


def gravity_tilt_y(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Direction of gravity, turned about the hand base's y axis (after x)."""
    x, z = rows["opt.gravity"][:, 0].clone(), rows["opt.gravity"][:, 2].clone()
    rows["opt.gravity"][:, 0] = value.cos() * x + value.sin() * z
    rows["opt.gravity"][:, 2] = value.cos() * z - value.sin() * x


@dataclass(frozen=True)
class Parameter:
    """One entry of the catalogue.

    Attributes:
        name: as typed in a config.
        summary: one line for `widen list parameters`.
        unit: "x" for a factor on the nominal model, else rad, m, 1 or control steps.
        nominal: value of the nominal world.
        limits: low and high that no config may leave.
        step: by how much a bound moves unless the config says otherwise.
        source: where nominal or limits come from.
        kind: what it acts upon.
        write: applies drawn values (K,) to nominal rows; for kind "model".
        fields: MjModel fields that `write` changes.
    """

    name: str
    summary: str
    unit: str
    nominal: float
    limits: tuple[float, float]
    step: float
    source: str
    kind: Literal["model", "actuation", "observation"]
    write: Callable[[Rows, Parts, Tensor], None] | None = None
    fields: tuple[str, ...] = ()

    @property
    def needs_object(self) -> bool:
        return self.name.startswith("object_")

    def range(self, step: float | None = None, limits: tuple[float, float] | None = None) -> Range:
        """As a curriculum sees it; a config's step does not change the unit of npd."""
        return Range(
            self.name,
            self.nominal,
            self.step if step is None else step,
            *(self.limits if limits is None else limits),
            scale=STEPS_PER_UNIT * self.step,
        )


def _physics(
    write: Callable[[Rows, Parts, Tensor], None],
    fields: tuple[str, ...],
    limits: tuple[float, float],
    step: float,
    summary: str,
    source: str,
    unit: str = "x",
) -> Parameter:
    nominal = 1.0 if unit == "x" else 0.0
    name = write.__name__
    return Parameter(name, summary, unit, nominal, limits, step, source, "model", write, fields)


def _effect(
    kind: Literal["actuation", "observation"],
    name: str,
    unit: str,
    most: float,
    step: float,
    summary: str,
    source: str,
    nominal: float = 0.0,
) -> Parameter:
    return Parameter(name, summary, unit, nominal, (nominal, most), step, source, kind)


_MASS, _FRICTION = ("body_mass", "body_inertia"), ("geom_friction",)
_GAIN = ("actuator_gainprm", "actuator_biasprm")
_FORCE, _GRAVITY = ("actuator_forcerange", "jnt_actfrcrange"), ("opt.gravity",)

# ruff format would give every argument a line and hide the table
# fmt: off
_ALL = (
    _physics(object_mass, _MASS, (0.2, 4.0), 0.02,
             "mass of the object, inertia in proportion", "[R] found .29 to 2.3, [X] .4 to 1.6"),
    _physics(object_size, ("geom_size", "body_inertia"), (0.8, 1.25), 0.005,
             "size of the object at constant mass", "[R] found .84 to 1.16, [D] .95 to 1.05"),
    _physics(hand_friction, _FRICTION, (0.2, 3.0), 0.02,
             "sliding friction of the hand", "[X] found .54 to 1.58"),
    _physics(object_friction, _FRICTION, (0.05, 3.0), 0.02,
             "sliding friction of the object", "[X] found .01 to 1.6"),
    _physics(joint_damping, ("dof_damping",), (0.3, 3.0), 0.02,
             "damping of the hand's joints", "[D] .3 to 3"),
    _physics(joint_armature, ("dof_armature",), (0.3, 3.0), 0.02,
             "rotor inertia of the hand's joints", "[X] found .31 to 1.24"),
    _physics(actuator_gain, _GAIN, (0.3, 3.5), 0.02,
             "kp of the position servos", "[X] found .3 to 3.52, [D] .75 to 1.5"),
    _physics(force_limit, _FORCE, (0.4, 2.5), 0.02,
             "largest motor torque", "[X] found .9 to 2.49"),
    _physics(gravity, _GRAVITY, (0.6, 1.5), 0.01,
             "strength of gravity", "[R] found 6 to 14 m/s^2"),
    _physics(gravity_tilt_x, _GRAVITY, (-0.5, 0.5), 0.01,
             "direction of gravity, about the base's x", "[D] N(0, .4 m/s^2) per axis", "rad"),
    _physics(gravity_tilt_y, _GRAVITY, (-0.5, 0.5), 0.01,
             "direction of gravity, about the base's y", "[D] N(0, .4 m/s^2) per axis", "rad"),
    _effect("actuation", "action_latency", "control steps", 3.0, 0.05,
            "delay from policy to motors, in fractions down to one simulation step",
            "[X] found 1.5, [R] milliseconds per actuator"),
    _effect("actuation", "action_noise", "rad", 0.2, 0.003,
            "std of noise on joint targets, new in every step", "[X] found .32 of an action"),
    _effect("actuation", "action_bias", "rad", 0.2, 0.003,
            "std of each joint target's offset, new in every episode", "[X] found .48 of an action"),
    _effect("observation", "joint_bias", "rad", 0.15, 0.003,
            "std of each joint reading's offset, new in every episode", "[D] zero offsets N(0, .15)"),
    _effect("observation", "joint_noise", "rad", 0.15, 0.002,
            "std of noise on joint readings, new in every step", "[P] .05, [X] found .12"),
    _effect("observation", "object_pos_bias", "m", 0.03, 0.0005,
            "std of the object position's offset, new in every episode", "[D] .005"),
    _effect("observation", "object_pos_noise", "m", 0.03, 0.0005,
            "std of noise on the object's position, new in every frame", "[D] .001, [P] .02"),
    _effect("observation", "object_rot_bias", "rad", 0.4, 0.006,
            "std about each axis of the object rotation's offset, new in every episode", "[D] .1"),
    _effect("observation", "object_rot_noise", "rad", 0.4, 0.006,
            "std about each axis of noise on the object's rotation, new in every frame",
            "[D] .1, [P] .1"),
    _effect("observation", "object_delay", "control steps", 3.0, 0.05,
            "age of the object's pose when it is reported", "[X] late with probability up to .47"),
    _effect("observation", "object_refresh", "control steps", 6.0, 0.1,
            "time from one frame of the object tracker to the next", "[X] found 6", 1.0),
)
# fmt: on

CATALOGUE = {parameter.name: parameter for parameter in _ALL}


def find(name: str) -> Parameter:
    """The catalogue's entry of this name.

    Raises:
        ValueError: there is none; the message gives the nearest.
    """
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, CATALOGUE, 3, 0.4) or list(CATALOGUE)
        raise ValueError(f"parameters: unknown parameter {name!r}; expected {' or '.join(near)}")
    return CATALOGUE[name]


def check_scene(names: Iterable[str], scene: Scene) -> None:
    """Refuse parameters that a scene cannot have.

    Raises:
        ValueError: there is no object for object_ parameters, or its size cannot be scaled.
    """
    about_object = [name for name in names if find(name).needs_object]
    if not about_object:
        return
    if scene.object_body is None:
        raise ValueError(
            f"randomization.parameters: {', '.join(about_object)}: this task has no object"
        )
    model, geoms = scene.model, scene.object_geoms
    meshes = model.geom_type[geoms] == int(mujoco.mjtGeom.mjGEOM_MESH)
    offsets = model.geom_pos[geoms].any() or model.body(scene.object_body).ipos.any()
    if "object_size" in about_object and (meshes.any() or offsets):
        raise ValueError(
            "randomization.parameters: object_size needs an object of primitive shapes centred"
            f" on its body; {scene.object_body!r} is not"
        )

"""Parameters of the physics: each is one entry and one function that scales nominal MjModel values.

Multiplicative parameters have the unit "x" and the nominal 1.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .parameter import Parameter, Parts, Rows


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


_MASS, _FRICTION = ("body_mass", "body_inertia"), ("geom_friction",)
_GAIN = ("actuator_gainprm", "actuator_biasprm")
_FORCE, _GRAVITY = ("actuator_forcerange", "jnt_actfrcrange"), ("opt.gravity",)

# ruff format would give every argument a line and hide the table
# fmt: off
PHYSICS = (
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
)
# fmt: on

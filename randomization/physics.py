"""Parameters of the physics: each is one entry and one function that changes nominal MjModel values.

Every function gets rows of nominal values and the drawn ones, and changes the rows in place. It
only ever multiplies, adds or turns, so parameters that share a field combine; in the order of the
catalogue, which matters to nothing but the two tilts.

What differs motor by motor has two parameters: a factor that all joints share, and its spread, the
standard deviation of the logarithm of a further factor, independent for every joint.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .parameter import Parameter, Parts, Rows, model_entry, multiply
from .physics_contact import FRICTION, SOFTNESS


def object_mass(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Mass and, in proportion, rotational inertia."""
    multiply(rows["body_mass"], (parts.object_body,), value)
    multiply(rows["body_inertia"], (parts.object_body,), value[:, None])


def object_com(rows: Rows, parts: Parts, value: Tensor, normal: Tensor) -> None:
    """Centre of mass, moved along the object's axes; the inertia about it stays."""
    rows["body_ipos"][:, parts.object_body] += value[:, None] * normal


def object_size(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Every length of the object at constant mass: inertia goes with the square."""
    multiply(rows["geom_size"], (parts.object_geoms,), value[:, None, None])
    multiply(rows["body_inertia"], (parts.object_body,), value[:, None].square())


def hand_mass(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Masses of all the hand's bodies and, in proportion, their inertias."""
    multiply(rows["body_mass"], (parts.hand_bodies,), value[:, None])
    multiply(rows["body_inertia"], (parts.hand_bodies,), value[:, None, None])


# What follows takes a factor (K, 1) for all joints, or (K, J), one for each.


def _joint_damping(rows: Rows, parts: Parts, factor: Tensor) -> None:
    """Viscous friction of the hand's joints, the part that is not in the motor's servo."""
    multiply(rows["dof_damping"], (parts.dofs,), factor)


def _joint_armature(rows: Rows, parts: Parts, factor: Tensor) -> None:
    """Inertia of rotors and gears as felt at the hand's joints."""
    multiply(rows["dof_armature"], (parts.dofs,), factor)


def _actuator_gain(rows: Rows, parts: Parts, factor: Tensor) -> None:
    """kp of the position servos: torque = kp (ctrl - q) - kv qdot, so two numbers move together.

    kv stays: it is a gain of its own on real motors, see `_actuator_damping`.
    """
    multiply(rows["actuator_gainprm"], (..., 0), factor)
    multiply(rows["actuator_biasprm"], (..., 1), factor)


def _actuator_damping(rows: Rows, parts: Parts, factor: Tensor) -> None:
    """kv of the position servos."""
    multiply(rows["actuator_biasprm"], (..., 2), factor)


def _force_limit(rows: Rows, parts: Parts, factor: Tensor) -> None:
    """Largest motor torque, whether the model states it for actuators or for joints.

    The unused one is all zeros and stays so.
    """
    rows["actuator_forcerange"].mul_(factor[..., None])
    multiply(rows["jnt_actfrcrange"], (parts.joints,), factor[..., None])


def joint_frictionloss(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Dry friction of the hand's joints, which a joint without any does not pay for."""
    rows["dof_frictionloss"][:, parts.dofs] += value[:, None]


def joint_limits(rows: Rows, parts: Parts, value: Tensor, normal: Tensor) -> None:
    """Where the joints' stops are: both ends of a joint's range move by the same angle.

    Targets keep the nominal range, as on a robot whose stops nobody measured.
    """
    rows["jnt_range"][:, parts.joints] += (value[:, None] * normal)[..., None]


def gravity(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Strength of gravity."""
    rows["opt.gravity"].mul_(value[:, None])


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


def time_step(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Seconds of a simulation step. A control step keeps their number, so it stretches as well."""
    rows["opt.timestep"].mul_(value)


_Scale = Callable[[Rows, Parts, Tensor], None]


def _per_motor(
    scale: _Scale,
    fields: tuple[str, ...],
    limits: tuple[float, float],
    summary: str,
    source: str,
    most_spread: float,
    spread_source: str,
) -> tuple[Parameter, Parameter]:
    """The entries of a factor that all joints share and of its spread from joint to joint."""

    def common(rows: Rows, parts: Parts, value: Tensor) -> None:
        scale(rows, parts, value[:, None])

    def spread(rows: Rows, parts: Parts, value: Tensor, normal: Tensor) -> None:
        scale(rows, parts, (value[:, None] * normal).exp())

    name = scale.__name__.removeprefix("_")
    return (
        model_entry(name, common, fields, limits, 0.02, summary, source),
        model_entry(
            f"{name}_spread",
            spread,
            fields,
            (0.0, most_spread),
            most_spread / 50,
            f"std of the logarithm of each joint's own factor on {name}",
            spread_source,
            unit="1",
            normals="joints",
        ),
    )


_MASS = ("body_mass", "body_inertia")
_GAIN = ("actuator_gainprm", "actuator_biasprm")
_FORCE, _GRAVITY = ("actuator_forcerange", "jnt_actfrcrange"), ("opt.gravity",)

# ruff format would give every argument a line and hide the table
# fmt: off
BODIES = (
    model_entry("object_mass", object_mass, _MASS, (0.2, 4.0), 0.02,
                "mass of the object, inertia in proportion",
                "[R] found .29 to 2.3, [X] .4 to 1.6"),
    model_entry("object_com", object_com, ("body_ipos",), (0.0, 0.01), 0.0002,
                "std of the displacement of the object's centre of mass along each axis",
                "a sixth of the cube's edge at most; not published", "m", "axes"),
    model_entry("object_size", object_size, ("geom_size", "body_inertia"), (0.8, 1.25), 0.005,
                "size of the object at constant mass",
                "[R] found .84 to 1.16, [D] .95 to 1.05"),
    model_entry("hand_mass", hand_mass, _MASS, (0.5, 2.0), 0.02,
                "masses of the hand's bodies, inertias in proportion", "[D] .5 to 1.5 for links and object"),
)
DAMPING, DAMPING_SPREAD = _per_motor(
    _joint_damping, ("dof_damping",), (0.3, 3.0),
    "damping of the hand's joints", "[D] .3 to 3",
    1.0, "[D] logU(.3, 3) has .66; ADR draws from 0 up to the bound")
ARMATURE, ARMATURE_SPREAD = _per_motor(
    _joint_armature, ("dof_armature",), (0.3, 3.0),
    "rotor inertia of the hand's joints", "[X] found .31 to 1.24",
    0.4, "[X]'s .31 to 1.24, if logU, has .4")
GAIN, GAIN_SPREAD = _per_motor(
    _actuator_gain, _GAIN, (0.3, 3.5),
    "kp of the position servos", "[X] found .3 to 3.52, [D] .75 to 1.5",
    0.4, "[D] logU(.75, 1.5) has .2, [G] .5 to 2 has .4")
SERVO_DAMPING, SERVO_DAMPING_SPREAD = _per_motor(
    _actuator_damping, ("actuator_biasprm",), (0.3, 3.0),
    "kv of the position servos", "as joint_damping: [D] .3 to 3",
    0.6, "as joint_damping: [D] logU(.3, 3) has .66")
FORCE, FORCE_SPREAD = _per_motor(
    _force_limit, _FORCE, (0.4, 2.5),
    "largest motor torque", "[X] found .9 to 2.49",
    0.3, "[X]'s .9 to 2.49, if logU, has .29")
JOINTS = (
    DAMPING, DAMPING_SPREAD, ARMATURE, ARMATURE_SPREAD,
    model_entry("joint_frictionloss", joint_frictionloss, ("dof_frictionloss",), (0.0, 0.1), 0.002,
                "dry friction of the hand's joints, added to the model's",
                "[P] .5 to 2 of the model's; here up to a third of the motors' torque", "N m"),
    model_entry("joint_limits", joint_limits, ("jnt_range",), (0.0, 0.3), 0.005,
                "std of a shift of each joint's limits, both ends alike",
                "[D] N(0, .15 rad)", "rad", "joints"),
    GAIN, GAIN_SPREAD, SERVO_DAMPING, SERVO_DAMPING_SPREAD, FORCE, FORCE_SPREAD,
)
WORLD = (
    model_entry("gravity", gravity, _GRAVITY, (0.6, 1.5), 0.01,
                "strength of gravity", "[R] found 6 to 14 m/s^2"),
    model_entry("gravity_tilt_x", gravity_tilt_x, _GRAVITY, (-0.5, 0.5), 0.01,
                "direction of gravity, about the base's x", "[D] N(0, .4 m/s^2) per axis", "rad"),
    model_entry("gravity_tilt_y", gravity_tilt_y, _GRAVITY, (-0.5, 0.5), 0.01,
                "direction of gravity, about the base's y", "[D] N(0, .4 m/s^2) per axis", "rad"),
    model_entry("time_step", time_step, ("opt.timestep",), (0.6, 1.9), 0.01,
                "simulation step, and with it the control step",
                "[R] found .05 to .15 s from .08 s"),
)
# fmt: on

PHYSICS = (*BODIES, *FRICTION, *SOFTNESS, *JOINTS, *WORLD)

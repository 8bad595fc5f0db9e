"""Parameters of touch: friction of three kinds, and how soft and how far off surfaces push.

In a contact MuJoCo takes the larger of the two geoms' friction, component by component, and of
their condim; softness is the mean of the two; margins add up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import mujoco
import torch
from torch import Tensor

from .parameter import Parameter, Parts, Rows, model_entry, multiply

_SLIDE, _SPIN, _ROLL = 0, 1, 2
"""Columns of geom_friction."""
CONDIM = {_SLIDE: 3, _SPIN: 4, _ROLL: 6}
"""Smallest condim in which a kind of friction exists."""


def _friction(who: Literal["hand", "object"], column: int) -> Callable[..., None]:
    """Scales one column of geom_friction of the hand or of the object."""

    def write(rows: Rows, parts: Parts, value: Tensor) -> None:
        geoms = parts.hand_geoms if who == "hand" else parts.object_geoms
        multiply(rows["geom_friction"], (geoms, column), value[:, None])

    return write


def contact_time(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Time constant of contacts, solref[0] > 0: the larger the softer.

    MuJoCo takes two time steps at least. A factor on a smaller constant would do nothing at first,
    so it is one on what MuJoCo takes, and it cannot lie below 1.
    """
    for geoms in parts.geoms:
        nominal = rows["geom_solref"][:, geoms, 0]
        softer = nominal.clamp(min=2.0 * parts.timestep) * value[:, None]
        rows["geom_solref"][:, geoms, 0] = torch.where(value[:, None] > 1.0, softer, nominal)


def contact_damping(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Damping ratio of contacts, solref[1] where solref[0] > 0: below 1 they bounce."""
    for geoms in parts.geoms:
        multiply(rows["geom_solref"], (geoms, 1), value[:, None])


def contact_impedance(rows: Rows, parts: Parts, value: Tensor) -> None:
    """How far the impedances dmin and dmax lie from 1, which is a rigid contact.

    1 - d becomes value (1 - d), within what MuJoCo allows.
    """
    for geoms in parts.geoms:
        d = rows["geom_solimp"][:, geoms, :2]
        d = d + (1.0 - value[:, None, None]) * (1.0 - d)  # at value 1 the very same d
        rows["geom_solimp"][:, geoms, :2] = d.clamp(mujoco.mjMINIMP, mujoco.mjMAXIMP)


def contact_width(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Depth over which a contact's impedance goes from dmin to dmax, solimp[2]."""
    for geoms in parts.geoms:
        multiply(rows["geom_solimp"], (geoms, 2), value[:, None])


def contact_margin(rows: Rows, parts: Parts, value: Tensor) -> None:
    """Distance at which hand and object begin to push each other, half from either.

    geom_gap stays: it finds contacts earlier and exerts no force.
    """
    for geoms in parts.geoms:
        rows["geom_margin"][:, geoms] += 0.5 * value[:, None]


_FRICTION, _SOLREF, _SOLIMP = ("geom_friction",), ("geom_solref",), ("geom_solimp",)


def _friction_entry(
    who: Literal["hand", "object"],
    kind: str,
    column: int,
    limits: tuple[float, float],
    summary: str,
    source: str,
) -> Parameter:
    name = f"{who}_{kind}friction"
    step = 0.02 if column == _SLIDE else 0.05
    write = _friction(who, column)
    return model_entry(
        name, write, _FRICTION, limits, step, summary, source, contact_dims=CONDIM[column]
    )


# ruff format would give every argument a line and hide the table
# fmt: off
FRICTION = (
    _friction_entry("hand", "", _SLIDE, (0.2, 3.0),
                    "sliding friction of the hand", "[X] found .54 to 1.58"),
    _friction_entry("object", "", _SLIDE, (0.05, 3.0),
                    "sliding friction of the object", "[X] found .01 to 1.6"),
    _friction_entry("hand", "spin_", _SPIN, (0.2, 5.0),
                    "friction of the hand against spinning on the spot", "[G] .2 to 5"),
    _friction_entry("object", "spin_", _SPIN, (0.2, 5.0),
                    "friction of the object against spinning on the spot", "[G] .2 to 5"),
    _friction_entry("hand", "roll_", _ROLL, (0.2, 5.0),
                    "friction of the hand against rolling", "[G] .2 to 5"),
    _friction_entry("object", "roll_", _ROLL, (0.2, 5.0),
                    "friction of the object against rolling", "[G] .2 to 5"),
)
SOFTNESS = (
    model_entry("contact_time", contact_time, _SOLREF, (1.0, 4.0), 0.05,
                "time constant of contacts (solref)", "[R] by ADR, figures not published"),
    model_entry("contact_damping", contact_damping, _SOLREF, (0.3, 2.0), 0.02,
                "damping ratio of contacts (solref)", "[R] by ADR, figures not published"),
    model_entry("contact_impedance", contact_impedance, _SOLIMP, (0.2, 4.0), 0.04,
                "distance of contacts' impedance from rigid (solimp)",
                "[R] by ADR, figures not published"),
    model_entry("contact_width", contact_width, _SOLIMP, (0.2, 5.0), 0.05,
                "depth over which contacts stiffen (solimp)",
                "[R] by ADR, figures not published"),
    model_entry("contact_margin", contact_margin, ("geom_margin",), (0.0, 0.005), 0.0001,
                "distance at which hand and object begin to push each other",
                "[R] by ADR, figures not published", "m"),
)
# fmt: on

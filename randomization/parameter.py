"""What one randomized quantity is, and what its effect may know of the simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import EllipsisType
from typing import Literal

import mujoco
import numpy as np
import torch
from torch import Tensor

from widen.envs.scene import Scene
from widen.envs.sim import BatchSim

from .curriculum import Range

STEPS_PER_UNIT = 50
"""Default steps that make a width of 1 in npd: the published step is 0.02 of a normalised unit."""

Index = Tensor | slice
"""Rows of a field; a tensor is on the sim's device."""

Rows = dict[str, Tensor]
"""MjModel fields, (K, ...) each: a row of nominal values for every environment that begins."""


def multiply(field: Tensor, where: tuple[Index | int | EllipsisType, ...], factor: Tensor) -> None:
    """Multiply these columns of a field (K, ...) in place; `where` leaves out the first dimension.

    `field[:, where] *= factor` would also copy the view onto itself.
    """
    part = field[:, *where]
    part.mul_(factor)
    if any(isinstance(index, Tensor) for index in where):  # then the part is a copy
        field[:, *where] = part


def nominal_field(model: mujoco.MjModel, name: str) -> Tensor:
    """Values of an MjModel field such as "body_mass" or "opt.gravity", on the CPU."""
    owner, _, rest = name.rpartition(".")
    return torch.tensor(np.array(getattr(getattr(model, owner) if owner else model, rest)))


@dataclass(frozen=True)
class Parts:
    """Where the hand and the object are in a model.

    Attributes:
        dofs, joints: of the hand's actuators, in their order.
        hand_bodies: every body but the world and the object.
        hand_geoms: geoms that collide, those fixed to the world included.
        object_geoms: likewise.
        object_body: its id, or -1.
        timestep: nominal seconds of one simulation step.
    """

    dofs: Index
    joints: Index
    hand_bodies: Index
    hand_geoms: Index
    object_geoms: Index
    object_body: int
    timestep: float

    @cached_property
    def geoms(self) -> tuple[Index, ...]:
        """Those of hand and object; as one piece where they follow each other, which is the rule."""
        hand, item = self.hand_geoms, self.object_geoms
        if isinstance(hand, slice) and isinstance(item, slice) and hand.stop == item.start:
            return (slice(hand.start, item.stop),)
        return hand, item

    @classmethod
    def of(cls, scene: Scene, device: torch.device) -> Parts:
        def index(ids: np.ndarray) -> Index:
            # where numbers follow each other, which is the rule, a slice saves two copies
            if len(ids) and (np.diff(ids) == 1).all():
                return slice(int(ids[0]), int(ids[-1]) + 1)
            return torch.as_tensor(ids, dtype=torch.long, device=device)

        body = scene.model.body(scene.object_body).id if scene.object_body else -1
        bodies = np.arange(1, scene.model.nbody)
        return cls(
            dofs=index(scene.joint_dof),
            joints=index(scene.model.dof_jntid[scene.joint_dof]),
            hand_bodies=index(bodies[bodies != body]),
            hand_geoms=index(scene.hand_geoms),
            object_geoms=index(scene.object_geoms),
            object_body=body,
            timestep=float(scene.model.opt.timestep),
        )


Kind = Literal["model", "actuation", "adversary", "observation", "task"]


@dataclass(frozen=True)
class Parameter:
    """One entry of the catalogue.

    Attributes:
        name: as typed in a config.
        summary: one line for `widen list parameters`.
        unit: "x" for a factor on the nominal model, else rad, m, 1, control steps and the like.
        nominal: value of the nominal world.
        limits: low and high that no config may leave.
        step: by how much a bound moves unless the config says otherwise.
        source: where nominal or limits come from.
        kind: what it acts upon.
        write: applies drawn values to nominal rows, for kind "model": write(rows, parts, value),
            or write(rows, parts, value, normal) if it needs `normals`.
        fields: MjModel fields that the parameter changes, whatever its kind.
        normals: standard normal samples that `write` needs in every episode: one for each joint of
            the hand, normal (K, J), or for each axis, (K, 3).
        contact_dims: condim that the object needs at least, for friction of that kind to exist.
        ascends: a difficulty. A curriculum begins at the low limit, not at the nominal, and every
            episode takes the upper bound instead of a draw.
    """

    name: str
    summary: str
    unit: str
    nominal: float
    limits: tuple[float, float]
    step: float
    source: str
    kind: Kind
    write: Callable[..., None] | None = None
    fields: tuple[str, ...] = ()
    normals: Literal["none", "joints", "axes"] = "none"
    contact_dims: int = 3
    ascends: bool = False

    @property
    def needs_object(self) -> bool:
        return self.name.startswith(("object_", "adversary_wrench", "pulse_"))

    def range(
        self,
        step: float | None = None,
        limits: tuple[float, float] | None = None,
        widen_at: float | None = None,
        narrow_at: float | None = None,
    ) -> Range:
        """As a curriculum sees it; a config's step does not change the unit of npd."""
        low, high = self.limits if limits is None else limits
        return Range(
            self.name,
            low if self.ascends else self.nominal,
            self.step if step is None else step,
            low,
            high,
            scale=STEPS_PER_UNIT * self.step,
            at_top=self.ascends,
            widen_at=widen_at,
            narrow_at=narrow_at,
        )


def model_entry(
    name: str,
    write: Callable[..., None],
    fields: tuple[str, ...],
    limits: tuple[float, float],
    step: float,
    summary: str,
    source: str,
    unit: str = "x",
    normals: Literal["none", "joints", "axes"] = "none",
    contact_dims: int = 3,
) -> Parameter:
    """An entry with a model function; a factor has the nominal 1, all else 0."""
    return Parameter(
        name,
        summary,
        unit,
        1.0 if unit == "x" else 0.0,
        limits,
        step,
        source,
        "model",
        write,
        fields,
        normals,
        contact_dims,
    )


def effect(
    kind: Literal["actuation", "adversary", "observation"],
    name: str,
    unit: str,
    most: float,
    step: float,
    summary: str,
    source: str,
    nominal: float = 0.0,
    fields: tuple[str, ...] = (),
) -> Parameter:
    """An entry without a model function, which lies between its nominal and `most`."""
    limits = (nominal, most)
    return Parameter(name, summary, unit, nominal, limits, step, source, kind, fields=fields)


@dataclass(frozen=True)
class Plant:
    """What the effects of actuation, adversary and observation know of the simulation.

    Attributes:
        sim: whose declared fields may be read and written, per environment.
        scene: names and addresses.
        parts: ids in the model.
        control_dt: seconds of one control step.
        generator: draws every sample, on the simulation's device.
    """

    sim: BatchSim
    scene: Scene
    parts: Parts
    control_dt: float
    generator: torch.Generator

    @property
    def num_envs(self) -> int:
        return self.sim.num_envs

    @property
    def num_joints(self) -> int:
        """Actuators nu; every one drives a joint of the hand."""
        return len(self.scene.joint_qpos)

    @cached_property
    def joints(self) -> Tensor:
        """(nu,) addresses of the joints in qpos."""
        return torch.as_tensor(self.scene.joint_qpos, device=self.sim.device)

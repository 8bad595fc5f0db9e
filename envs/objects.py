"""Objects to be handled: shapes with their exact inertia and symmetries, and how a config says them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import mujoco
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

SMALLEST, LARGEST = 0.005, 0.5
"""Bounds of every length of an object [m]: what a hand can hold, and not centimetres by mistake."""
Shape = Literal["box", "cylinder", "ellipsoid", "capsule"]
ObjectChoice = str | dict[str, Any] | list[str | dict[str, Any]] | None
"""As a config has it, in plain values: a name of `OBJECTS`, a mapping with the keys of
`ObjectConfig`, or a list of these; None: the task's own."""

# the index of the axis of revolution among the object's own x, y, z
_AXIS = {"cylinder": 2, "capsule": 0}
_GEOM = {
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "ellipsoid": mujoco.mjtGeom.mjGEOM_ELLIPSOID,
    "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
}
_TURNS = 12
"""Of a shape of revolution, which looks the same at any angle, so many turns about its axis are
among its symmetries: as many with the flips as a cube has. A multiple of 4, so that those that it
shares with a cube are among them."""


@dataclass(frozen=True)
class ObjectSpec:
    """A solid of constant density, its centre at the origin of its own frame.

    Attributes:
        shape: a box; a cylinder about z; an ellipsoid; or a capsule along x, so that it lies flat
            where others stand.
        summary: one line.
        half_size: half of its lengths along its own x, y and z [m].
        mass: [kg].
        friction: sliding.
    """

    shape: Shape
    summary: str
    half_size: tuple[float, float, float]
    mass: float
    friction: float

    @property
    def geom_type(self) -> mujoco.mjtGeom:
        return _GEOM[self.shape]

    @property
    def geom_size(self) -> tuple[float, float, float]:
        """As MuJoCo has it for the type [m]; what is unused is 0."""
        x, y, z = self.half_size
        if self.shape == "cylinder":
            return x, z, 0.0
        return (y, x - y, 0.0) if self.shape == "capsule" else (x, y, z)

    @property
    def geom_quat(self) -> tuple[float, float, float, float]:
        """Of the geom in the object's frame (w, x, y, z): MuJoCo's capsules are along z."""
        half = float(np.sqrt(0.5))
        return (half, 0.0, half, 0.0) if self.shape == "capsule" else (1.0, 0.0, 0.0, 0.0)

    @property
    def inertia(self) -> np.ndarray:
        """(3,) about its own x, y and z [kg m^2]."""
        squares = np.square(self.half_size)
        if self.shape in ("box", "ellipsoid"):
            divisor = 3.0 if self.shape == "box" else 5.0
            return self.mass / divisor * (squares.sum() - squares)
        radius, half, _ = self.geom_size
        if self.shape == "cylinder":
            along = self.mass * radius**2 / 2
            across = self.mass * (radius**2 / 4 + half**2 / 3)
        else:  # a cylinder with half a ball at either end
            ends = self.mass * 2 * radius / (2 * radius + 3 * half)
            middle = self.mass - ends
            along = radius**2 * (middle / 2 + ends * 2 / 5)
            across = middle * (radius**2 / 4 + half**2 / 3)
            across += ends * (radius**2 * 2 / 5 + half**2 + radius * half * 3 / 4)
        inertia = np.full(3, across)
        inertia[_AXIS[self.shape]] = along
        return inertia

    @cached_property
    def symmetries(self) -> np.ndarray:
        """(S, 4) unit quaternions (w, x, y, z), float32, of turns that map it onto itself.

        A group, the identity first: 24 of a cube, 8 or 4 of another box; of a shape of revolution,
        which has no end of them, 24.
        """
        equal = [self.half_size[i - 2] == self.half_size[i - 1] for i in range(3)]
        axis = _AXIS.get(self.shape)
        if self.shape == "ellipsoid" and sum(equal) == 1:
            axis = equal.index(True)
        if axis is not None:
            return _dihedral(axis)
        # a turn of the cube puts axis i where axis j was; both must be of one length
        half = np.array(self.half_size)
        cube = _cube()
        moved = np.array([np.abs(_matrix(q)) @ half for q in cube])
        return cube[np.abs(moved - half).max(1) < 1e-6 * half.max()]


def _cube() -> np.ndarray:
    """`cube_symmetries` (24, 4)."""
    from .rotations import cube_symmetries

    return cube_symmetries().numpy()


def _dihedral(axis: int) -> np.ndarray:
    """(2 _TURNS, 4): turns about an axis, and each after half a turn about an axis across it."""
    angles = np.pi * np.arange(_TURNS) / _TURNS  # half of each turn
    found = np.zeros((2, _TURNS, 4))
    found[0, :, 0], found[0, :, 1 + axis] = np.cos(angles), np.sin(angles)
    found[1, :, 1 + (axis + 1) % 3] = np.cos(angles)
    found[1, :, 1 + (axis + 2) % 3] = np.sin(angles)
    return found.reshape(-1, 4).astype(np.float32)


def _matrix(quat: np.ndarray) -> np.ndarray:
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, quat.astype(np.float64))
    return matrix.reshape(3, 3)


def common_symmetries(objects: Sequence[ObjectSpec]) -> np.ndarray:
    """(S, 4): the turns that map every one of the objects onto itself, the identity first."""
    first, *others = (what.symmetries for what in objects)
    shared = [
        all(np.abs(symmetries @ quat).max() > 1.0 - 1e-6 for symmetries in others) for quat in first
    ]
    return first[shared]


OBJECTS = {
    "cube": ObjectSpec("box", "6.5 cm cube of 80 g", (0.0325, 0.0325, 0.0325), 0.08, 0.3),
    # the block of arXiv 1910.07113
    "cube_small": ObjectSpec("box", "5.5 cm cube of 78 g", (0.0275, 0.0275, 0.0275), 0.078, 0.3),
    "cylinder": ObjectSpec(
        "cylinder",
        "upright cylinder of 70 g",
        (0.0275, 0.0275, 0.0325),
        0.07,
        0.3,
    ),
    "egg": ObjectSpec(
        "ellipsoid",
        "upright ellipsoid of 65 g",
        (0.0275, 0.0275, 0.0375),
        0.065,
        0.3,
    ),
    "pen": ObjectSpec(
        "capsule",
        "lying rod of 30 g with round ends",
        (0.07, 0.01, 0.01),
        0.03,
        0.3,
    ),
}


class ObjectConfig(BaseModel):
    """An object of `OBJECTS`, changed."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    """whose shape, and all that is not given; `widen list objects`"""
    size: float | list[float] | None = None
    """largest length, the others in proportion, or all three along its x, y and z; an inertia of
    constant density follows [m]"""
    mass: float | None = Field(default=None, ge=1e-3, le=5.0)
    """[kg]"""
    friction: float | None = Field(default=None, ge=0.0, le=10.0)
    """sliding"""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        find_object(name)
        return name

    @field_validator("size", mode="before")
    @classmethod
    def _lengths(cls, size: Any) -> Any:
        several = isinstance(size, (list, tuple))
        given = list(size) if several else [] if size is None else [size]
        if several and len(given) != 3:
            raise ValueError(f"expected a length or three of them, got {size!r}")
        lengths = [_length(each) for each in given]
        return lengths if several else lengths[0] if lengths else None

    def spec(self) -> ObjectSpec:
        """The object itself.

        Raises:
            ValueError: lengths that the shape cannot have.
        """
        base = find_object(self.name)
        half = base.half_size
        if isinstance(self.size, list):
            x, y, z = (length / 2 for length in self.size)
            half = (x, y, z)
            if base.shape == "cylinder" and x != y:
                raise ValueError(f"size: expected the same x and y of a cylinder, got {self.size}")
            if base.shape == "capsule" and not x > y == z:
                raise ValueError(
                    f"size: expected x longer than y, and z as y, of a {self.name}, got {self.size}"
                )
        elif self.size is not None:
            scale = self.size / 2 / max(half)
            half = (scale * half[0], scale * half[1], scale * half[2])
            if 2 * min(half) < SMALLEST:
                raise ValueError(
                    f"size: expected no length below {SMALLEST:g} m, got a {self.name} of"
                    f" {' x '.join(f'{2 * each:.2g}' for each in half)} m"
                )
        mass = base.mass if self.mass is None else self.mass
        friction = base.friction if self.friction is None else self.friction
        return replace(base, half_size=half, mass=mass, friction=friction)


def _length(value: Any) -> float:
    try:
        length = float(value)
    except (TypeError, ValueError):
        length = np.nan
    if isinstance(value, bool) or not SMALLEST <= length <= LARGEST:
        raise ValueError(f"expected a length of {SMALLEST:g} to {LARGEST:g} m, got {value!r}")
    return length


def find_object(name: str) -> ObjectSpec:
    """The object of this name.

    Raises:
        ValueError: there is none; the message gives the nearest.
    """
    if name not in OBJECTS:
        near = difflib.get_close_matches(name, OBJECTS, 3, 0.3) or sorted(OBJECTS)
        raise ValueError(f"unknown object {name!r}; expected one of {', '.join(near)}")
    return OBJECTS[name]


def read_objects(choice: ObjectChoice | Sequence[Any]) -> tuple[ObjectSpec, ...]:
    """The objects that a choice means, () for None: environment i has the i-th, and so around.

    Raises:
        ValueError: an unknown object or key, or a value that cannot be; the message names the key
            from "object" on.
    """
    return tuple(spec for spec, _ in _read(choice))


def check_objects(choice: Any) -> ObjectChoice:
    """A choice in plain values with every number a number. Raises what `read_objects` raises."""
    plain = [plain for _, plain in _read(choice)]
    if choice is None or isinstance(choice, (str, Mapping)):
        return plain[0] if plain else None
    return plain


def _read(choice: Any) -> list[tuple[ObjectSpec, str | dict[str, Any]]]:
    if choice is None:
        return []
    if isinstance(choice, (str, Mapping)):
        return [_read_one(choice, "object")]
    if not isinstance(choice, (list, tuple)) or not choice:
        raise ValueError(
            f"object: expected a name, a mapping with a name, or a list of these, got {choice!r}"
        )
    return [_read_one(each, f"object.{i}") for i, each in enumerate(choice)]


def _read_one(choice: Any, key: str) -> tuple[ObjectSpec, str | dict[str, Any]]:
    if isinstance(choice, str):
        try:
            return find_object(choice), choice
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    if not isinstance(choice, Mapping):
        raise ValueError(f"{key}: expected a name or a mapping with a name, got {choice!r}")
    flags = [name for name, value in choice.items() if isinstance(value, bool)]
    if flags:  # in YAML also yes and no; pydantic takes them for 1 and 0
        raise ValueError(f"{key}.{flags[0]}: expected a number, got {choice[flags[0]]!r}")
    try:
        config = ObjectConfig.model_validate(dict(choice))
        return config.spec(), config.model_dump(exclude_none=True)
    except ValidationError as error:
        raise ValueError(f"{key}.{_first(error)}") from None
    except ValueError as error:
        raise ValueError(f"{key}.{error}") from None


def _first(error: ValidationError) -> str:
    """The first problem of an `ObjectConfig`, with the key inside it."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        names = list(ObjectConfig.model_fields)
        near = difflib.get_close_matches(name, names, 3, 0.5) or names
        expected = near[0] if len(near) == 1 else f"one of {', '.join(near)}"
        return f"{name}: unknown key; expected {expected}"
    if first["type"] == "missing":
        return f"{name}: missing; expected one of {', '.join(OBJECTS)}"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return f"{name}: {message}" + (
        "" if first["type"] == "value_error" else f", got {first['input']!r}"
    )

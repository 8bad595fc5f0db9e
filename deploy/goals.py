"""Goals by the contract's rule: a controller sets them as training did."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

Measured = dict[str, np.ndarray]


class Goals(Protocol):
    """Who says what to do next.

    Attributes:
        reading: name of the reading that carries the goal.
        reached: goals reached so far.
    """

    reading: str
    reached: int

    def update(self, measured: Measured, now: float) -> np.ndarray:
        """Judge the measured readings at `now` [s] and return the goal to work on, float32."""
        ...

    def restart(self) -> None:
        """The object was put back: choose the goal anew; `reached` stays."""
        ...


class RotationSequence:
    """Turn after turn about one axis, each by the same step; see envs/cube_rotate.py.

    The first goal is the turn about the axis that is nearest to the measured rotation, and one
    step; a goal counts when the measured rotation comes within an angle of it.
    """

    def __init__(self, rule: dict[str, Any]) -> None:
        self.reading: str = rule["reading"]
        self.reached = 0
        self._of: str = rule["of"]
        axis = np.array(rule["axis"], np.float64)
        self._axis = axis / np.linalg.norm(axis)
        half = 0.5 * float(rule["step"])
        self._turn = np.array([math.cos(half), *(math.sin(half) * self._axis)])
        self._within = float(rule["reached"])
        self._goal: np.ndarray | None = None

    def update(self, measured: Measured, now: float) -> np.ndarray:
        pose = np.asarray(measured[self._of], np.float64)
        if self._goal is None:
            self._goal = _quat_mul(self._turn, self._nearest_turn(pose))
        elif _quat_angle(pose, self._goal) < self._within:
            self.reached += 1
            self._goal = _quat_mul(self._turn, self._goal)
        return self._goal.astype(np.float32)

    def restart(self) -> None:
        self._goal = None

    def _nearest_turn(self, pose: np.ndarray) -> np.ndarray:
        """The part of a rotation that turns about the axis: its twist."""
        along = pose[1:] @ self._axis
        size = math.hypot(pose[0], along)
        if size < 1e-6:  # a half turn across the axis is as near to every turn: take none
            return np.array([1.0, 0.0, 0.0, 0.0])
        return np.array([pose[0], *(along * self._axis)]) / size


class RandomRotations:
    """Rotations uniform over all of them, one after another; see envs/cube_reorient.py.

    The next comes when the measured rotation is within an angle of the goal, which counts, or when
    the time for one is up.
    """

    def __init__(self, rule: dict[str, Any], seed: int | None = None) -> None:
        """seed: of the goals; None for others each time."""
        self.reading: str = rule["reading"]
        self.reached = 0
        self._of: str = rule["of"]
        self._within, self._seconds = float(rule["reached"]), float(rule["seconds"])
        self._rng = np.random.default_rng(seed)
        self._goal, self._since = np.zeros(4), -math.inf

    def update(self, measured: Measured, now: float) -> np.ndarray:
        pose = np.asarray(measured[self._of], np.float64)
        waiting = self._since > -math.inf
        near = waiting and _quat_angle(pose, self._goal) < self._within
        if near or now - self._since >= self._seconds:
            self.reached += near
            normal = self._rng.normal(size=4)  # of any direction, and so the rotation is any
            self._goal, self._since = normal / np.linalg.norm(normal), now
        return self._goal.astype(np.float32)

    def restart(self) -> None:
        self._since = -math.inf


class Points:
    """A list of point sets, one after another and from the beginning again.

    The next comes when the measured points are all near enough, which counts, or when the time
    for one is up. A robot that does not measure the points runs by time alone and counts none.
    """

    def __init__(self, rule: dict[str, Any]) -> None:
        self.reading: str = rule["reading"]
        self.reached = 0
        self._of: str = rule["of"]
        self._values = np.array(rule["values"], np.float32)  # (K, points, 3)
        self._within = float(rule["reached"])
        self._seconds = float(rule["seconds"])
        self._index = 0
        self._since: float | None = None

    def update(self, measured: Measured, now: float) -> np.ndarray:
        if self._since is None:
            self._since = now
        points, goal = measured.get(self._of), self._values[self._index]
        known = points is not None and np.shape(points) == goal.shape
        near = known and bool((np.linalg.norm(points - goal, axis=-1) < self._within).all())
        if near or now - self._since >= self._seconds:
            self.reached += near
            self._index = (self._index + 1) % len(self._values)
            self._since = now
        return self._values[self._index]

    def restart(self) -> None:
        self._since = None


_KINDS: dict[str, type[RotationSequence] | type[RandomRotations] | type[Points]] = {
    "rotation_sequence": RotationSequence,
    "random_rotations": RandomRotations,
    "points": Points,
}


def make_goals(rule: dict[str, Any]) -> Goals:
    """Goals of a contract.

    Raises:
        ValueError: a rule that this version does not know, or one that lacks something.
    """
    kind = rule.get("kind")
    if kind not in _KINDS:
        raise ValueError(f"goal rule {kind!r} is unknown; expected one of {', '.join(_KINDS)}")
    try:
        return _KINDS[kind](rule)
    except KeyError as error:
        raise ValueError(f"goal rule {kind!r} lacks {error}") from None


def _quat_mul(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Hamilton product p q of (w, x, y, z): rotate by q, then by p."""
    w = p[0] * q[0] - p[1:] @ q[1:]
    return np.array([w, *(p[0] * q[1:] + q[0] * p[1:] + np.cross(p[1:], q[1:]))])


def _quat_angle(p: np.ndarray, q: np.ndarray) -> float:
    """Angle between two rotations in [0, pi], as exact near 0 as near pi."""
    a, b = float(np.linalg.norm(p - q)), float(np.linalg.norm(p + q))
    return 4.0 * math.atan2(min(a, b), max(a, b))

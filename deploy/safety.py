"""What stands between a policy and a motor, as pure functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from widen.envs.layout import Reading

from .robot import Measurement

BAD_OUTPUT = "bad_output"
JOINT_LIMIT = "joint_limit"
JOINT_SPEED = "joint_speed"
_SLACK = 1e-5  # [rad]; float32 rounding is no intervention


def reading_problem(
    measured: dict[str, Measurement], needed: Iterable[Reading], now: float, max_age: float
) -> str | None:
    """Why no decision may be based on these readings, or None.

    Args:
        measured: as the robot gave them.
        needed: what the policy reads.
        now: [s] on the robot's clock.
        max_age: oldest reading that may still be used [s].

    Returns:
        "missing_reading", "bad_reading" (wrong shape or not finite) or "stale_reading", a colon
        and the reading's name.

    Raises:
        ValueError: a reading is no `Measurement`.
    """
    for reading in needed:
        if reading.name not in measured:
            return f"missing_reading:{reading.name}"
        measurement = measured[reading.name]
        if not isinstance(measurement, Measurement):
            kind = type(measurement).__name__
            raise ValueError(f"robot: reading {reading.name!r}: expected a Measurement, got {kind}")
        value, moment = measurement
        if np.shape(value) != reading.shape or not np.isfinite(value).all():
            return f"bad_reading:{reading.name}"
        # a time ahead of the robot's clock is another clock's, by which nothing ever gets old
        if not abs(now - moment) <= max_age:
            return f"stale_reading:{reading.name}"
    return None


def restrain(
    target: np.ndarray,
    last: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    max_step: float,
) -> tuple[np.ndarray, list[str]]:
    """The nearest target that may be sent after `last`, and what was done to it.

    Args:
        target: (nu,) [rad], what the policy asks for.
        last: (nu,) [rad], what was sent before.
        lower, upper: (nu,) joint limits [rad].
        max_step: the most that a target may move in one control period [rad].

    Returns:
        The target (nu,) [rad] and the names of the interventions. A target that is not finite
        becomes `last`.
    """
    if not np.isfinite(target).all():
        return last, [BAD_OUTPUT]
    names = []
    within = np.clip(target, lower, upper)
    if np.abs(within - target).max() > _SLACK:
        names.append(JOINT_LIMIT)
    slow = np.clip(within, last - max_step, last + max_step)
    if np.abs(slow - within).max() > _SLACK:
        names.append(JOINT_SPEED)
    return slow, names


def ramp(start: np.ndarray, end: np.ndarray, max_step: float) -> np.ndarray:
    """Poses (K, nu) [rad] from `start` to `end`, both included, in moves of at most max_step.

    All joints arrive together, so that the fingers stay on the straight line between the poses.
    """
    # a rounding error of a float32 measurement is not worth a move
    moves = math.ceil(float(np.abs(end - start).max()) / max_step - 1e-4)
    share = np.linspace(0.0, 1.0, max(moves, 0) + 1)[:, None]
    poses = start + share * (end - start)
    poses[-1] = end
    return poses

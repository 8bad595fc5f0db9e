"""The slow way from wherever the hand is to its home pose."""

from __future__ import annotations

import math

import numpy as np

HOMING_SPEED = 1.0  # of every joint [rad/s]
AT_HOME = 1e-4  # [rad]


class WayHome:
    """Poses on the way home, one for each control period."""

    def __init__(self, home: np.ndarray, period: float, *, stay: bool = False) -> None:
        """home (nu,) [rad], period [s]; stay: home is where the hand is, as in a dry run."""
        self._home, self._step, self._stay = home, HOMING_SPEED * period, stay
        self._end = home
        self._left: np.ndarray | None = None

    @property
    def begun(self) -> bool:
        """Whether it is known where the way begins."""
        return self._left is not None

    def restart(self) -> None:
        """Another way, to begin where the hand then is."""
        self._left = None

    def begin(self, start: np.ndarray) -> np.ndarray:
        """Where the way from `start` (nu,) [rad] ends (nu,) [rad]."""
        self._end = start.copy() if self._stay else self._home
        self._left = ramp(start, self._end, self._step)
        return self._end

    def next(self) -> np.ndarray:
        """The next pose (nu,) [rad]; at the end, the end."""
        if self._left is None or not len(self._left):
            return self._end
        pose, self._left = self._left[0], self._left[1:]
        return pose

    def done(self, position: np.ndarray) -> bool:
        """Whether the way has been gone and `position` (nu,) [rad] is its end."""
        if self._left is None or len(self._left):
            return False
        return bool(np.abs(position - self._end).max() <= AT_HOME)


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

"""What a controller needs of a robot, simulated or real."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import time
from typing import NamedTuple, Protocol

import numpy as np


class Measurement(NamedTuple):
    """One reading and when it was taken."""

    value: np.ndarray
    """(...), without a batch axis"""
    time: float
    """[s] on the robot's clock"""


class Clock(Protocol):
    """Time that never jumps back."""

    def now(self) -> float:
        """[s] since some fixed moment."""
        ...

    def sleep_until(self, moment: float) -> None:
        """Return at `moment` [s], at once if it has passed."""
        ...


class MonotonicClock:
    """The computer's own monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, moment: float) -> None:
        left = moment - time.monotonic()
        if left > 0:
            time.sleep(left)


class Robot(Protocol):
    """A hand, and perhaps a tracker of the object in it.

    Attributes:
        joint_names: in the robot's own order, which `read` and `command` use; the controller
            sorts by name.
        clock: the time of measurements, and the one that the controller goes by.
        drops: how often the object was put back after a fall; 0 where nobody can tell.
    """

    @property
    def joint_names(self) -> tuple[str, ...]: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def drops(self) -> int: ...

    def start(self) -> None:
        """Connect, so that `read` works. The motors stay passive until the first `command`."""
        ...

    def read(self) -> dict[str, Measurement]:
        """The newest measurement of every reading; does not wait for one.

        The keys are the names that `widen verify` lists, without the goal, which the controller
        sets itself: "joint_pos" (nu,) [rad] in the order of `joint_names`, and for an object
        "object_pos" (3,) [m] and "object_quat" (4,), a unit quaternion (w, x, y, z), both in the
        frame of the hand's base: x along the fingers, z out of the palm, origin at the base of
        the hand's model. Arrays are floats. What has not been seen yet is left out, and what is
        no longer seen keeps the time at which it was: either way the last command holds. Further
        readings do no harm; "fingertip_pos" (tips, 3) [m] lets goals that are points count.
        """
        ...

    def command(self, joint_target: np.ndarray) -> None:
        """Send joint targets (nu,) [rad]; they hold until the next ones."""
        ...

    def stop(self) -> None:
        """Leave the robot safe; also called after an error, and when `start` failed."""
        ...

    # Optional, in any combination:
    #
    # disarm() makes the motors passive at once while readings go on; called on a fault, after
    # which the next `command` makes them active again. Without it `stop` is called, and a hand
    # cannot be re-armed.
    #
    # joint_limits: lower and upper (nu,) [rad] in the order of joint_names; a policy whose limits are
    # wider is refused.
    #
    # armed: False while the motors are still being made active, after the first `command`; until it is
    # True the controller sends the measured pose.
    #
    # max_currents: (nu,) [A] in the order of joint_names; more for half a second is a fault.
    #
    # fault: a string, not empty when the robot itself has given up, for example because a motor
    # reports a hardware error; the controller then faults and gives it as the reason.
    #
    # The readings "joint_current" (nu,) [A] and "joint_temperature" (nu,) [degC].


def checked(measured: object) -> dict[str, Measurement]:
    """What a robot's `read` gave.

    Raises:
        ValueError: it is no dict of `Measurement`.
    """
    if not isinstance(measured, dict):
        kind = type(measured).__name__
        raise ValueError(f"robot: read() gave {kind}, expected a dict of Measurements")
    for name, measurement in measured.items():
        if not isinstance(measurement, Measurement):
            kind = type(measurement).__name__
            raise ValueError(f"robot: reading {name!r}: expected a Measurement, got {kind}")
    return measured


def load_robot(name: str) -> Robot:
    """A user's own robot: MODULE:CLASS, made without arguments.

    The module is looked for in the current directory too.

    Raises:
        ValueError: the name is not of that form, there is no such module or class, or the class
            lacks something of `Robot`.
    """
    module_name, colon, class_name = name.partition(":")
    if not (colon and module_name and class_name):
        raise ValueError(f"--robot {name}: expected sim or MODULE:CLASS")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"--robot {name}: cannot import {module_name}: {reason}") from error
    if not isinstance(kind := getattr(module, class_name, None), type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        near = difflib.get_close_matches(class_name, classes, 3, 0.4) or classes[:3]
        hint = f"; expected {' or '.join(near)}" if near else ""
        raise ValueError(f"--robot {name}: no class {class_name} in {module_name}{hint}")
    try:
        robot = kind()
    except Exception as error:  # whatever a user's class raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"--robot {name}: cannot be made: {reason}") from error
    needed = ("joint_names", "clock", "drops", "start", "read", "command", "stop")
    if lacking := [part for part in needed if not hasattr(robot, part)]:
        raise ValueError(f"--robot {name}: {class_name} lacks {', '.join(lacking)}")
    return robot

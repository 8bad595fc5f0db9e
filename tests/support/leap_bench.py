"""Talking to a LEAP robot on an emulated bus."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from widen.deploy.leap import LeapRobot
from widen.deploy.leap_emulator import LeapEmulator

PERIOD = 0.05  # of the shipped policies' control [s]


def wait_for(condition: Callable[[], bool], seconds: float = 3.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    return condition()


def age(robot: LeapRobot) -> float:
    return time.monotonic() - robot.read()["joint_pos"].time


def pose(robot: LeapRobot) -> np.ndarray:
    return robot.read()["joint_pos"].value.astype(float)


def command_until(
    robot: LeapRobot, target: np.ndarray, condition: Callable[[], bool], seconds: float = 3.0
) -> bool:
    """Command at the control rate, as a controller does."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        robot.command(target)
        time.sleep(0.5 * PERIOD)
    return condition()


def torques(emulator: LeapEmulator) -> list[bool]:
    return [motor.torque_enabled for motor in emulator.motors]


def arm(robot: LeapRobot, emulator: LeapEmulator) -> np.ndarray:
    held = pose(robot)
    assert command_until(robot, held, lambda: all(torques(emulator)) and robot.armed)
    return held

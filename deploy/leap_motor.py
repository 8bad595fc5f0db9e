"""What the emulated motors move: sixteen joints without a hand, as plain as can be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from .leap_registers import MOTOR_JOINTS, RAD_PER_TICK, TORQUE_CONSTANT

COUNT = len(MOTOR_JOINTS)


def _zeros() -> np.ndarray:
    return np.zeros(COUNT)


@dataclass
class Drive:
    """What the motors' registers ask of the joints; arrays (16,) in the order of motor ids."""

    torque: np.ndarray = field(default_factory=lambda: np.zeros(COUNT, bool))
    goal: np.ndarray = field(default_factory=_zeros)
    """[rad], 0 where the hand's model has 0"""
    current: np.ndarray = field(default_factory=_zeros)
    """the most that may flow [A]"""
    p: np.ndarray = field(default_factory=_zeros)
    """[A/rad]"""
    i: np.ndarray = field(default_factory=_zeros)
    """[A/(rad s)]"""
    d: np.ndarray = field(default_factory=_zeros)
    """[A s/rad]"""
    stuck: np.ndarray = field(default_factory=lambda: np.zeros(COUNT, bool))
    """joints that something holds"""


class Hand(Protocol):
    """Joints that the motors of an emulator move; arrays (16,) in the order of motor ids.

    Attributes:
        angle: [rad].
        velocity: [rad/s].
        current: [A].
    """

    angle: np.ndarray
    velocity: np.ndarray
    current: np.ndarray

    def start(self, now: float) -> None:
        """Time begins at `now` [s]."""
        ...

    def advance(self, now: float, drive: Drive) -> None:
        """Move on to `now` [s], driven as `drive` says."""
        ...


def gains_of(p: int, i: int, d: int) -> tuple[float, float, float]:
    """Gains in [A/rad], [A/(rad s)], [A s/rad] of the gain registers.

    The e-manual gives the divisors 128, 65536 and 16 but not the units. Here an error is in ticks,
    the current that comes out in mA and the controller's step 1 ms, which is a guess.
    """
    ma_per_rad = 1e-3 / RAD_PER_TICK
    return p / 128 * ma_per_rad, i / 65536 * 1e3 * ma_per_rad, d / 16 * 1e-3 * ma_per_rad


class MotorHand:
    """Sixteen motors with nothing but their gearboxes on them, integrated in steps of 1 ms."""

    STEP = 1e-3  # [s]
    # inertia and damping as in the hand's model, where they stand for the gearbox
    INERTIA = 0.0015  # [kg m^2]
    DAMPING = 0.1  # [N m s/rad]
    FRICTION = 0.005  # [N m]
    LONGEST = 2.0  # after a pause of the computer no more than this is made up for [s]

    def __init__(self, angle: np.ndarray | None = None) -> None:
        """angle: (16,) [rad] to begin with; None for zeros."""
        self.angle = np.zeros(COUNT) if angle is None else np.array(angle, np.float64)
        self.velocity = np.zeros(COUNT)
        self.current = np.zeros(COUNT)
        self._sum = np.zeros(COUNT)
        self._time = 0.0

    def start(self, now: float) -> None:
        self._time = now

    def advance(self, now: float, drive: Drive) -> None:
        self._time = max(self._time, now - self.LONGEST)
        while self._time + self.STEP <= now:
            self._step(drive)
            self._time += self.STEP

    def _step(self, drive: Drive) -> None:
        """PID to a current, current to torque; damping is implicit, so that it stays stable."""
        dt = self.STEP
        error = drive.goal - self.angle
        self._sum = np.where(drive.torque, self._sum + dt * error, 0.0)
        asked = drive.p * error + drive.i * self._sum - drive.d * self.velocity
        self.current = np.where(drive.torque, np.clip(asked, -drive.current, drive.current), 0.0)
        torque = TORQUE_CONSTANT * self.current
        pushed = self.velocity + dt * torque / self.INERTIA
        slowed = np.maximum(np.abs(pushed) - dt * self.FRICTION / self.INERTIA, 0.0)
        velocity = np.sign(pushed) * slowed / (1.0 + dt * self.DAMPING / self.INERTIA)
        self.velocity = np.where(drive.stuck, 0.0, velocity)
        self.angle = self.angle + dt * self.velocity


class Heat:
    """Motor temperatures, first order: a current of 0.55 A ends 35 K above the air."""

    AIR = 25.0  # [degC]
    RISE = 35.0 / 0.55**2  # [K/A^2]
    TIME = 120.0  # [s]
    FAULT_RATE = 10.0  # of a motor that overheats by injected fault [K/s]

    def __init__(self) -> None:
        self.temperature = np.full(COUNT, self.AIR)
        self._time: float | None = None

    def advance(self, now: float, current: np.ndarray, burning: np.ndarray) -> None:
        """Move on to `now` [s]; burning: (16,) bool, motors with that fault."""
        if self._time is None:
            self._time = now
        dt, self._time = min(now - self._time, 1.0), now
        towards = self.AIR + self.RISE * current**2
        self.temperature += dt / self.TIME * (towards - self.temperature)
        self.temperature += dt * self.FAULT_RATE * burning

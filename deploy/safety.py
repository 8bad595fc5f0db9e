"""What stands between a policy and a motor: pure functions of arrays and a small state machine."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from widen.envs.layout import Reading

from .contract import Contract, MaxAge
from .robot import Measurement

BAD_OUTPUT = "bad_output"
JOINT_LIMIT = "joint_limit"
JOINT_SPEED = "joint_speed"
JOINT_ACCELERATION = "joint_acceleration"
DEADLINE = "deadline_missed"
OUT_OF_REACH = "object_out_of_reach"
EMERGENCY_STOP = "emergency_stop"
ROBOT_ERROR = "robot_error"
ROBOT_FAULT = "robot_fault"
STALE = "stale_reading"
_READING_PROBLEMS = ("missing_reading", "bad_reading", "out_of_range", "jump", STALE)
_MOTOR_PROBLEMS = ("hot", "overcurrent")
_MOTOR_READINGS = ("joint_current", "joint_temperature")

LIMIT_MARGIN = 0.15
"""a joint measured further beyond its limit is no reading of this hand [rad]"""
MOST_JOINT_SPEED = 20.0
"""a joint measured to move faster did not move: the reading jumped [rad/s]"""
MOST_DISTANCE = 1.0
"""of anything measured in the hand's frame from its origin [m]"""
QUAT_SLACK = 0.05
"""by which the norm of a measured quaternion may differ from 1"""
HOT = 70.0
"""a motor at this temperature ends the run [degC]; the XC330's own shutdown temperature"""
OVERCURRENT_SECONDS = 0.5
"""a motor may exceed its current limit for so long"""
MOTOR_AGE = 2.0
"""of a current or temperature, above which nobody knows whether the motors are well [s]"""
_SLACK = 1e-5  # [rad]; float32 rounding is no intervention
_AMPERE = 1e-6  # [A]; nor is that of a current


class State(enum.Enum):
    """Of a controlled hand."""

    DISARMED = "disarmed"
    """motors passive; waits for readings that can be used"""
    HOMING = "homing"
    """on the slow way from the measured pose to the home pose, or waiting there for the object"""
    ACTIVE = "active"
    """the policy decides"""
    HOLD = "hold"
    """motors on, the hand comes to rest and stays; left when the reason is gone"""
    FAULT = "fault"
    """motors off; left only by an explicit re-arming"""


class Problem(NamedTuple):
    """Why a cycle is not an ordinary one."""

    name: str
    """as it is counted, for example "stale_reading:joint_pos" """
    fault: bool
    """whether it ends in FAULT rather than HOLD"""


def intervention_names(readings: Iterable[Reading], joints: Iterable[str]) -> tuple[str, ...]:
    """Every name under which a run can count something, the most frequent first.

    Args:
        readings: what the policy reads, goals excepted.
        joints: the robot's.
    """
    own = (BAD_OUTPUT, JOINT_LIMIT, JOINT_SPEED, JOINT_ACCELERATION, DEADLINE, OUT_OF_REACH)
    ends = (EMERGENCY_STOP, ROBOT_ERROR, ROBOT_FAULT)
    of_readings = (f"{kind}:{r.name}" for r in readings for kind in _READING_PROBLEMS)
    old = (f"{STALE}:{name}" for name in _MOTOR_READINGS)
    of_motors = (f"{kind}:{joint}" for joint in joints for kind in _MOTOR_PROBLEMS)
    return (*own, *ends, *of_readings, *old, *of_motors)


class Supervisor:
    """The state machine.

        DISARMED ─good readings→ HOMING ─at home→ ACTIVE
                                   │  ↑             │  ↑
                                   ↓  │ no problem  ↓  │
                                       HOLD
        any state ─fault→ FAULT ─rearm()→ DISARMED

    A reading that is too old is no fault while the motors are passive anyway: DISARMED waits.

    Attributes:
        state: now.
        reason: why it is HOLD or FAULT, or was last; "" if never.
        history: (time [s], state, reason) of every change.
    """

    def __init__(self) -> None:
        self.state, self.reason = State.DISARMED, ""
        self.history: list[tuple[float, State, str]] = []
        self._before_hold = State.HOMING
        self._now = 0.0

    def step(
        self, problems: Iterable[Problem], now: float, *, at_home: bool, go_home: bool
    ) -> State:
        """The state of this cycle, which looks at `now` [s].

        Args:
            problems: of this cycle; a fault among them comes before everything.
            at_home: whether the way home is done.
            go_home: whether the way home has to be gone (again).
        """
        self._now = now
        found = list(problems)
        if self.state is State.FAULT:
            return self.state
        # of several faults one that is not about an age, which DISARMED would wait for
        faults = [p for p in found if p.fault]
        fault = next(
            (p for p in faults if not p.name.startswith(STALE)), faults[0] if faults else None
        )
        waits = self.state is State.DISARMED and fault and fault.name.startswith(STALE)
        if fault is not None and not waits:
            return self._change(State.FAULT, fault.name)
        if found:
            if self.state is State.DISARMED:
                self.reason = found[0].name
                return self.state
            if self.state is not State.HOLD:
                self._before_hold = self.state
            return self._change(State.HOLD, found[0].name)
        if self.state is State.HOLD:
            self._change(self._before_hold, "")
        if self.state is State.DISARMED or (self.state is State.ACTIVE and go_home):
            return self._change(State.HOMING, "")
        if self.state is State.HOMING and at_home and not go_home:
            return self._change(State.ACTIVE, "")
        return self.state

    def rearm(self, now: float) -> None:
        """Leave FAULT at `now` [s]: the next good readings begin the way home from the measured pose."""
        if self.state is State.FAULT:
            self._now = now
            self._change(State.DISARMED, "")

    def _change(self, state: State, reason: str) -> State:
        if state is not self.state:
            self.history.append((self._now, state, reason))
        self.state = state
        self.reason = reason or self.reason
        return state


class ReadingGuard:
    """Judges every reading of a cycle: there, of the right shape, finite, plausible, new enough.

    A value that cannot be used holds the hand at once; when the last good one is older than its
    fault age, it is a fault. So a reading may fail in any manner and for any mixture of reasons,
    and motors are off when it has been useless for that long.
    """

    def __init__(
        self,
        readings: Iterable[Reading],
        ages: Mapping[str, MaxAge],
        limits: tuple[np.ndarray, np.ndarray],
        period: float,
    ) -> None:
        """What to expect.

        Args:
            readings: what the policy reads, goals excepted.
            ages: of every reading, by name.
            limits: lower and upper (nu,) of the joints [rad], in the robot's order.
            period: of control [s].
        """
        self._readings = tuple(readings)
        self._ages, self._period = dict(ages), period
        self._lower, self._upper = limits[0] - LIMIT_MARGIN, limits[1] + LIMIT_MARGIN
        self._good: dict[str, Measurement] = {}
        self._last: dict[str, float] = {}  # time of the last good value

    def forget(self) -> None:
        """What comes next need not continue what was: the object, or the hand, was put back.

        Ages go on: when nothing comes next, that is a fault as ever.
        """
        self._good.clear()

    def restart(self) -> None:
        """As new: the motors are passive, and nothing can be too old."""
        self._good.clear()
        self._last.clear()

    def check(self, measured: Mapping[str, Measurement], now: float) -> list[Problem]:
        """Problems of these readings at `now` [s] on the robot's clock."""
        found = []
        for reading in self._readings:
            measurement = measured.get(reading.name)
            problem = self._problem(reading, measurement, now)
            last = self._last.get(reading.name)
            if last is not None and now - last > self._ages[reading.name].fault:
                found.append(Problem(f"{STALE}:{reading.name}", True))
            elif problem is not None:
                found.append(Problem(f"{problem}:{reading.name}", False))
        return found

    def _problem(self, reading: Reading, new: Measurement | None, now: float) -> str | None:
        if new is None:
            return "missing_reading"
        value = np.asarray(new.value)
        if value.dtype.kind not in "fiu" or value.shape != reading.shape:
            return "bad_reading"
        if not (np.isfinite(value).all() and math.isfinite(new.time)):
            return "bad_reading"
        # a time ahead of the robot's clock is another clock's, by which nothing ever gets old
        if new.time - now > self._ages[reading.name].hold:
            return STALE
        if not self._in_range(reading, value):
            return "out_of_range"
        old = self._good.get(reading.name)
        if reading.frame == "joint" and reading.unit == "rad" and old is not None:
            passed = min(max(new.time - old.time, self._period), 2.0 * self._period)
            if np.abs(value - old.value).max() > MOST_JOINT_SPEED * passed:
                return "jump"
        if old is None or new.time >= old.time:
            self._good[reading.name] = new
            self._last[reading.name] = new.time
        return STALE if now - new.time > self._ages[reading.name].hold else None

    def _in_range(self, reading: Reading, value: np.ndarray) -> bool:
        if reading.frame == "joint" and reading.unit == "rad":
            return bool(((value >= self._lower) & (value <= self._upper)).all())
        if reading.name.endswith("_quat"):
            return bool(abs(float(np.linalg.norm(value)) - 1.0) <= QUAT_SLACK)
        return reading.unit != "m" or bool(np.abs(value).max() <= MOST_DISTANCE)


class MotorGuard:
    """Currents and temperatures, where the robot reports them."""

    def __init__(self, joints: tuple[str, ...], max_currents: np.ndarray | None) -> None:
        """joints in the robot's order; max_currents (nu,) [A], None for no limit."""
        self._joints = joints
        self._max_currents = None if max_currents is None else np.asarray(max_currents) + _AMPERE
        self._over_since: float | None = None

    def check(self, measured: Mapping[str, Measurement], now: float) -> list[Problem]:
        """Problems at `now` [s]."""
        found = []
        for name in _MOTOR_READINGS:
            if name in measured and now - measured[name].time > MOTOR_AGE:
                found.append(Problem(f"{STALE}:{name}", False))
        heat = self._values(measured, "joint_temperature")
        if heat is not None and (heat >= HOT).any():
            found.append(Problem(f"hot:{self._joints[int(np.argmax(heat))]}", True))
        current = self._values(measured, "joint_current")
        if current is None or self._max_currents is None:
            return found
        over = np.abs(current) - self._max_currents
        if not (over > 0.0).any():
            self._over_since = None
        elif self._over_since is None:
            self._over_since = now
        elif now - self._over_since > OVERCURRENT_SECONDS:
            found.append(Problem(f"overcurrent:{self._joints[int(np.argmax(over))]}", True))
        return found

    def _values(self, measured: Mapping[str, Measurement], name: str) -> np.ndarray | None:
        """(nu,), not a number counting as the least; None where there are none."""
        if name not in measured:
            return None
        values = np.asarray(measured[name].value)
        if values.shape != (len(self._joints),) or values.dtype.kind not in "fiu":
            return None
        return np.nan_to_num(
            values.astype(np.float64), nan=-np.inf if name != "joint_current" else 0.0
        )


@dataclass
class Limiter:
    """Commands that stay within limits of position, speed and acceleration, whatever is asked.

    Per control period a command moves by at most `max_speed` x period, and that move differs from
    the last one by at most `max_acceleration` x period^2. No command leaves lower...upper: a joint
    is never so fast that it could not come to rest before its limit. A joint that is found beyond a
    limit goes no further out.

    Attributes:
        lower, upper: (nu,) [rad].
        max_speed: [rad/s].
        max_acceleration: [rad/s^2].
        period: of control [s].
        position: (nu,) the last command [rad].
        velocity: (nu,) the move that led to it, over the period [rad/s].
    """

    lower: np.ndarray
    upper: np.ndarray
    max_speed: float
    max_acceleration: float
    period: float
    position: np.ndarray = field(init=False)
    velocity: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.start(0.5 * (self.lower + self.upper))

    @classmethod
    def of(
        cls, contract: Contract, max_speed: float | None, max_acceleration: float | None
    ) -> Limiter:
        """The contract's limits, and by default the most that a healthy policy can ask for.

        Raises:
            ValueError: a limit is not above 0.
        """
        for name, value in (("max_speed", max_speed), ("max_acceleration", max_acceleration)):
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected more than 0, got {value:g}")
        speed, period = max_speed or contract.max_target_speed, contract.control_period
        # from full speed one way to full speed the other way in one period
        acceleration = max_acceleration or 2.0 * speed / period
        return cls(np.array(contract.lower), np.array(contract.upper), speed, acceleration, period)

    def start(self, position: np.ndarray) -> None:
        """At rest at `position` (nu,) [rad]."""
        self.position = np.array(position, np.float64)
        self.velocity = np.zeros_like(self.position)

    def step(self, target: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """The next command (nu,) [rad] toward `target` (nu,) [rad], and what was done to it.

        A target that is not finite is answered by coming to rest.
        """
        if not np.isfinite(target).all():
            return self.rest(), [BAD_OUTPUT]
        within = np.clip(target, *self._bounds())
        names = [JOINT_LIMIT] if np.abs(within - target).max() > _SLACK else []
        wanted = (within - self.position) / self.period
        slow = np.clip(wanted, -self.max_speed, self.max_speed)
        # braking in time for the target as well: a command that passes it would have to come back
        slow = np.clip(slow, -self._stoppable(-wanted), self._stoppable(wanted))
        command = self._move(slow)
        short = np.abs(within - command) > _SLACK
        if (short & (np.abs(wanted) > self.max_speed + _SLACK / self.period)).any():
            names.append(JOINT_SPEED)
        if (short & (np.abs(wanted) <= self.max_speed + _SLACK / self.period)).any():
            names.append(JOINT_ACCELERATION)
        return command, names

    def rest(self) -> np.ndarray:
        """The next command (nu,) [rad] on the shortest way to a standstill."""
        return self._move(np.zeros_like(self.position))

    def _move(self, velocity: np.ndarray) -> np.ndarray:
        change = self.max_acceleration * self.period
        low = np.maximum(self.velocity - change, -self.max_speed)
        high = np.minimum(self.velocity + change, self.max_speed)
        low = np.maximum(low, -self._stoppable((self.position - self.lower) / self.period))
        high = np.minimum(high, self._stoppable((self.upper - self.position) / self.period))
        # rounding may leave an empty range of 1e-16: the end that is nearer to rest is the safe one
        new = np.clip(velocity, np.minimum(low, high), high)
        position = np.clip(self.position + new * self.period, *self._bounds())
        self.velocity = (position - self.position) / self.period
        self.position = position
        return position.copy()

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The limits, wider where a joint is beyond them."""
        return np.minimum(self.lower, self.position), np.maximum(self.upper, self.position)

    def _stoppable(self, room: np.ndarray) -> np.ndarray:
        """The largest velocity (nu,) from which joints come to rest within `room` (nu,).

        `room` is the distance over the period [rad/s]. Braking by u = max_acceleration x period
        in every period, a velocity v >= 0 with n = floor(v / u) travels, in periods,
        v + (v - u) + ... + (v - n u) = (n + 1) v - u n (n + 1) / 2. That is at least u n (n + 1) / 2
        for its n, which gives n for a room; then it is solved for v.
        """
        u = self.max_acceleration * self.period
        room = np.maximum(room, 0.0)
        n = np.floor(0.5 * (np.sqrt(1.0 + 8.0 * room / u) - 1.0))
        return (room + 0.5 * u * n * (n + 1.0)) / (n + 1.0)

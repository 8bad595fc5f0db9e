"""The LEAP hand behind the `Robot` protocol: one thread that talks to its bus."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np

from .contract import Contract
from .leap_arming import arming, goal_currents, let_go, most_currents, watchdog_ticks
from .leap_bus import BAUD, IDS, SERIAL_ERRORS, TRIES, LeapBus, State
from .leap_calibration import load_calibration
from .leap_checks import (
    all_named,
    hint_latency,
    named,
    require_health,
    require_motors,
    require_settings,
)
from .leap_registers import (
    MOTOR_JOINTS,
    SHUTDOWN_MASK,
    VELOCITY_UNIT,
    WATCHDOG_TRIPPED,
    angle_of,
    error_names,
    ticks_of,
)
from .robot import Measurement, MonotonicClock

PATIENCE = 5  # control periods without a command after which the motors are let go
READS_PER_COMMAND, MOST_READS = 4, 200.0  # of the state; [Hz]
CONFIRMATION = 0.1  # `disarm` waits so long for the motors to confirm [s]
FAREWELL = 0.5  # and the bus thread, when it ends, so long [s]
STOP = 2.0  # `stop` waits so long for the bus thread [s]
RETRY = 0.01  # after an error of the port [s]
SLOW_EVERY = 0.06  # one of these registers is read [s]
SLOW = ("present_temperature", "hardware_error", "torque_enable", "bus_watchdog")


class LeapRobot:
    """A LEAP hand on a serial port, or an emulated one.

    The first `command` gives the motors torque, with the measured pose as their first goal. That
    takes a moment, in which commands must go on but none is passed to the motors: a controller
    that begins to move before `armed` makes them jump.

    The motors are let go (torque off) by `disarm` and `stop`, and by the bus thread itself: when no
    command comes for 5 control periods, when a motor reports an error or has lost its torque, when
    arming fails, and upon any error that was not foreseen. Then `fault` says why, readings stop so
    that they age as those of a lost bus do, and commands are ignored until `disarm`. When the
    process or the computer stops, the motors' own watchdogs stop them where they are.

    Attributes:
        joint_names: in the order of motor ids.
        clock: the computer's monotonic one.
        drops: always 0; the hand does not see the object.
        max_currents: (16,) what a healthy motor never exceeds for long [A], in the order of
            `joint_names`: 1.2 times its goal current, and 0.03 A.
        fault: why the bus thread let the motors go; None again after `disarm`. If the reason is
            still there, arming brings it back.
    """

    def __init__(
        self,
        port: str,
        contract: Contract,
        *,
        baud: int = BAUD,
        calibration: str | Path | None = None,
        current_limit: float | None = None,
        bus_hz: float | None = None,
    ) -> None:
        """A hand that is not connected yet.

        Args:
            port: for example /dev/ttyUSB0.
            contract: of the policy; its joints, limits, force limits and control period are used.
            baud: of the bus.
            calibration: a file that `widen leap calibrate` wrote.
            current_limit: the most that a motor may draw [A], where that is less than the
                contract's force limit asks for.
            bus_hz: how often the state is read; None for four times in a control period.

        Raises:
            ValueError: the contract is for another hand, or a file or number is wrong.
        """
        if sorted(contract.joints) != sorted(MOTOR_JOINTS):
            raise ValueError(f"the policy is for hand {contract.hand!r}; expected 'leap'")
        if current_limit is not None and not 0.0 < current_limit <= 2.0:
            raise ValueError(f"current limit {current_limit:g} A: expected more than 0, at most 2")
        if bus_hz is not None and not 1.0 <= bus_hz <= 1000.0:
            raise ValueError(f"bus rate {bus_hz:g} Hz: expected 1 to 1000")
        self.joint_names = MOTOR_JOINTS
        self.clock = MonotonicClock()
        self.drops = 0
        self.fault: str | None = None
        self._port, self._baud, self._contract = port, baud, contract
        self._offsets = np.zeros(len(IDS)) if calibration is None else load_calibration(calibration)
        order = [contract.joints.index(joint) for joint in MOTOR_JOINTS]
        self._lower, self._upper = np.array(contract.lower)[order], np.array(contract.upper)[order]
        self._currents = goal_currents(np.array(contract.force_limit)[order], current_limit)
        self.max_currents = most_currents(self._currents)
        self._patience = PATIENCE * contract.control_period
        rate = min(READS_PER_COMMAND / contract.control_period, MOST_READS)
        self._bus_period = 1.0 / (rate if bus_hz is None else bus_hz)
        self._bus: LeapBus | None = None
        self._thread: threading.Thread | None = None
        self._wake = threading.Condition()
        self._goal: np.ndarray | None = None  # (16,) [tick], not sent yet
        self._commanded = 0.0  # when the newest command came
        self._armed = self._touched = False  # torque is on; it ever was
        self._latched = False  # let go for a fault that nobody has answered to yet
        self._release = self._ending = self._hurry = self._told = False
        self._passive = threading.Event()  # set when a release has been confirmed
        self._measured: dict[str, Measurement] = {}
        self._slow = 0
        self._slow_due = 0.0
        self._looked, self._lead = (
            0.0,
            0.005,
        )  # last `read`; so long before the next one to read [s]

    def start(self) -> None:
        """Connect and check the hand; nothing is written.

        Torque that another run left on is told on stderr, and goes off with `disarm` or `stop`.

        Raises:
            ValueError: what is wrong with port, motors or settings, in one line.
        """
        bus = LeapBus(self._port, self._baud)
        try:
            require_motors(bus)
            require_health(bus)
            require_settings(bus, self._contract, self._offsets)
            state = _first_state(bus)
            left_on = np.flatnonzero(bus.read_surely("torque_enable")).tolist()
        except SERIAL_ERRORS as error:
            bus.close()
            raise ValueError(f"--port {self._port}: {_reason(error)}") from None
        except BaseException:
            bus.close()
            raise
        hint_latency(self._port)
        self._bus, self._goal, self.fault = bus, None, None
        self._armed = self._latched = False
        self._touched = bool(left_on)
        self._release = self._ending = self._hurry = self._told = False
        self._publish(state)
        if left_on:
            self._say(f"{all_named(left_on)} still has torque; it goes off when this run ends")
        self._thread = threading.Thread(target=self._loop, name="leap-bus", daemon=True)
        self._thread.start()

    @property
    def armed(self) -> bool:
        """Whether the motors have torque and the newest commands are passed on to them."""
        return self._armed and not self._release

    def read(self) -> dict[str, Measurement]:
        """joint_pos [rad], joint_vel [rad/s], joint_current [A] and joint_temperature [degC]."""
        self._looked = time.monotonic()
        return dict(self._measured)

    def command(self, joint_target: np.ndarray) -> None:
        """Send joint targets (16,) [rad] in the order of `joint_names`, kept within the limits.

        What is not finite is ignored, as if no command had come.
        """
        target = np.asarray(joint_target, np.float64)
        if target.shape != (len(IDS),) or not np.isfinite(target).all():
            return
        goal = ticks_of(np.clip(target, self._lower, self._upper) + self._offsets)
        with self._wake:
            if not (self._latched or self._release):
                self._goal, self._commanded, self._hurry = goal, time.monotonic(), True
                self._wake.notify()

    def disarm(self) -> None:
        """Torque off; readings go on, and a fault is forgotten. The next command arms again."""
        with self._wake:
            self.fault = None
            self._goal, self._latched, self._release, self._hurry = None, False, True, True
            self._passive.clear()
            self._wake.notify()
        if self._thread is not None:
            self._passive.wait(CONFIRMATION)

    def stop(self) -> None:
        """Torque off, watchdogs off, port closed."""
        with self._wake:
            self._ending = self._hurry = True
            self._wake.notify()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(STOP)
            if thread.is_alive():
                self._say("the bus thread has not ended; the port is closed all the same")
        bus, self._bus = self._bus, None
        if bus is not None:
            bus.close()

    def _loop(self) -> None:
        bus = self._bus
        assert bus is not None
        while not self._ending:
            begun = time.monotonic()
            try:
                self._cycle(bus, begun)
                self._told = False
            except SERIAL_ERRORS as error:
                self._tell_once(error)
            except Exception as error:  # a mistake here must not leave the motors alone
                self._fail(f"{type(error).__name__}: {_reason(error)}")
            with self._wake:
                left = self._next_turn(begun) - time.monotonic()
                if not self._hurry and left > 0.0:
                    self._wake.wait(left)
        self._farewell(bus)

    def _next_turn(self, begun: float) -> float:
        """When the turn after that of `begun` begins [s].

        A bus period later; but the one that is nearest to the controller's next look begins so that
        its reading is ready just then, and not half a bus period old.
        """
        turn = begun + self._bus_period
        look = self._looked + self._contract.control_period - self._lead
        return look if abs(look - turn) < 0.5 * self._bus_period else turn

    def _cycle(self, bus: LeapBus, now: float) -> None:
        """One turn: let go, or arm, or pass a command on; then read."""
        with self._wake:
            self._hurry = False
            goal, self._goal = self._goal, None
            late = now - self._commanded > self._patience
        if self._release:
            self._disarm(bus)
        elif self._armed and late:
            self._fail(f"no command for {PATIENCE} control periods")
            self._disarm(bus)
        elif goal is not None and not self._armed:
            self._arm(bus)
        elif goal is not None:
            bus.write("goal_position", goal)
        began = time.monotonic()
        self._observe(bus)
        took = min(time.monotonic() - began, 0.5 * self._bus_period)
        self._lead += 0.1 * (1.5 * took + 1e-3 - self._lead)
        if now >= self._slow_due:
            self._slow_due = now + SLOW_EVERY
            self._slow += 1
            self._look(bus, SLOW[self._slow % len(SLOW)])

    def _observe(self, bus: LeapBus) -> None:
        state = bus.read_state()
        if state is None:
            return
        if not self._latched:
            self._publish(state)
        if self._armed and state.alert.any():
            self._look(bus, "hardware_error")

    def _disarm(self, bus: LeapBus) -> None:
        """Try to let go; `_release` stays set until every motor has confirmed it."""
        self._armed = False
        if let_go(bus):
            with self._wake:
                self._release = False
            self._passive.set()

    def _arm(self, bus: LeapBus) -> None:
        """Torque on. What was commanded meanwhile is as old as that took, and not passed on."""
        self._touched = True
        try:
            for _ in arming(bus, self._currents, watchdog_ticks(self._patience)):
                self._observe(bus)
                if self._release or self._ending:
                    return
        except ValueError as error:
            self._fail(str(error))
            return
        except SERIAL_ERRORS as error:
            self._fail(f"cannot arm: {_reason(error)}")
            return
        with self._wake:
            self._goal, self._armed = None, True

    def _farewell(self, bus: LeapBus) -> None:
        """Torque and watchdogs off, if they ever were on."""
        self._armed = False
        until = time.monotonic() + FAREWELL
        while self._touched and time.monotonic() < until:
            try:
                if let_go(bus):
                    bus.write_surely("bus_watchdog", 0)
                    self._touched = False
            except Exception as error:  # of whatever kind: the next attempt may do
                self._tell_once(error)
                time.sleep(RETRY)
        if self._touched:
            self._say("the motors do not confirm that their torque is off; switch the hand off")

    def _tell_once(self, error: BaseException) -> None:
        """One line for the user when the port goes; not one for every attempt."""
        if not self._told:
            self._told = True
            self._say(_reason(error))

    def _say(self, text: str) -> None:
        print(f"{self._port}: {text}", file=sys.stderr)

    def _look(self, bus: LeapBus, name: str) -> None:
        """Read one of the registers that change slowly and act upon it."""
        values = bus.read(name)
        if values is None:
            return
        if name == "present_temperature":
            if not self._latched:
                warm = Measurement(values.astype(np.float32), time.monotonic())
                self._measured = {**self._measured, "joint_temperature": warm}
        elif not self._armed:
            return
        elif name == "hardware_error" and (bad := np.flatnonzero(values & SHUTDOWN_MASK)).size:
            errors = " and ".join(error_names(int(values[bad[0]])))
            self._fail(f"{named(int(bad[0]))} reports {errors}")
        elif name == "torque_enable" and (off := np.flatnonzero(values == 0)).size:
            self._look(bus, "hardware_error")  # which says why, if there is more to say
            if not self._latched:
                self._fail(f"{all_named(off.tolist())} lost its torque")
        elif name == "bus_watchdog" and (hit := np.flatnonzero(values == WATCHDOG_TRIPPED)).size:
            self._fail(f"the bus watchdog of {all_named(hit.tolist())} has tripped")

    def _publish(self, state: State) -> None:
        """Make a reading the newest; readers take the whole dictionary at once."""
        angle = angle_of(state.position) - self._offsets
        values = {
            "joint_pos": angle,
            "joint_vel": state.velocity * VELOCITY_UNIT,
            "joint_current": 1e-3 * state.current,
        }
        new = {
            name: Measurement(value.astype(np.float32), state.time)
            for name, value in values.items()
        }
        self._measured = {**self._measured, **new}

    def _fail(self, reason: str) -> None:
        """Let the motors go until somebody disarms; readings stop, so that they age."""
        with self._wake:
            if self._latched or self._release:  # they are being let go already
                return
            self.fault, self._goal = reason, None
            self._latched = self._release = True
            self._passive.clear()
        self._say(f"motors let go: {reason}")


def _first_state(bus: LeapBus) -> State:
    for _ in range(TRIES):
        if (state := bus.read_state()) is not None:
            return state
    raise OSError(0, "the motors do not tell where they are")


def _reason(error: BaseException) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error)).split())

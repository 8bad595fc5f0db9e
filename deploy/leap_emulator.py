"""An emulated LEAP hand behind a pseudo-terminal: what a driver finds at /dev/ttyUSB0."""

from __future__ import annotations

import contextlib
import os
import random
import select
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .dynamixel_emulator import Bus, Motor
from .dynamixel_packet import PacketReader
from .leap_faults import Fault, delay_of, make_fault, spoil
from .leap_motor import Drive, Hand, Heat, MotorHand, gains_of
from .leap_registers import MOTOR_JOINTS, VELOCITY_UNIT, angle_of, ticks_of

TICK = 0.005  # how often time goes on when nobody speaks [s]
VOLTAGE = 50  # of the supply [0.1 V]
_OVERHEATING, _OVERLOAD = 1 << 2, 1 << 5
# what pyserial sets for each rate that a motor knows
_SPEEDS = {
    getattr(termios, f"B{rate}"): rate
    for rate in (9600, 57600, 115200, 1_000_000, 2_000_000, 3_000_000, 4_000_000)
    if hasattr(termios, f"B{rate}")
}


class JointMotor(Motor):
    """A motor of the hand.

    Attributes:
        joint: its name.
        position: where the joint is [rad], 0 where the hand's model has 0.
    """

    def __init__(self, id: int) -> None:
        super().__init__(id)
        self.joint = MOTOR_JOINTS[id]
        self.position = 0.0

    def goal_history(self) -> tuple[np.ndarray, np.ndarray]:
        """Times (K,) [s, time.monotonic] and values (K,) [rad] of the goals it was sent."""
        goals = list(self.goals)
        moments = np.array([moment for moment, _ in goals])
        return moments, angle_of(np.array([tick for _, tick in goals]))


class LeapEmulator:
    """Sixteen XC330 motors at 4 Mbaud that move a hand.

    Runs in a thread of its own between `start` and `stop`; also a context manager.

    Attributes:
        port: what a driver opens; another one after it was unplugged and plugged in again.
        motors: by id, which is the maker's order; the truth about them for tests.
        hand: what they move.
    """

    def __init__(
        self,
        hand: Hand | None = None,
        *,
        link: Path | None = None,
        faults: Iterable[Fault] = (),
        seed: int = 0,
    ) -> None:
        """A hand that is not plugged in yet.

        Args:
            hand: None for motors without one.
            link: where to put a symbolic link to the port, so that scripts have a fixed name.
            faults: that come by themselves.
            seed: of the faults that happen by chance.

        Raises:
            ValueError: there is something at `link` that is no symbolic link.
        """
        if link is not None and link.exists() and not link.is_symlink():
            raise ValueError(f"--link {link}: exists and is no symbolic link")
        self.hand: Hand = MotorHand() if hand is None else hand
        self.motors = [JointMotor(id) for id in range(len(MOTOR_JOINTS))]
        self.port = ""
        self._link = link
        self._bus = Bus(list(self.motors))
        self._drive, self._heat = Drive(), Heat()
        self._scheduled, self._faults = list(faults), list[Fault]()
        self._rng = random.Random(seed)
        self._late: deque[tuple[float, bytes]] = deque()
        self._lock = threading.RLock()
        self._ends: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None
        self._running = False
        self._begin = 0.0
        for motor in self.motors:
            self._equip(motor)

    def motor(self, joint: str) -> JointMotor:
        """The motor of a joint."""
        return self.motors[MOTOR_JOINTS.index(joint)]

    @property
    def packets(self) -> int:
        """Instruction packets that came."""
        return self._bus.packets

    @property
    def bad_packets(self) -> int:
        """Those of them with a wrong CRC."""
        return self._bus.bad_packets

    @property
    def trips(self) -> int:
        """How often a motor's watchdog has tripped, all motors together."""
        return sum(motor.trips for motor in self.motors)

    def start(self) -> None:
        """Plug in."""
        now = time.monotonic()
        self._begin = now
        self.hand.start(now)
        self._show()
        self._plug_in()
        self._running = True
        self._thread = threading.Thread(target=self._loop, name="leap-emulator", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Unplug for good; safe to call several times."""
        self._running = False
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._unplug()

    def __enter__(self) -> LeapEmulator:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def inject(self, name: str, target: str | float | None = None) -> None:
        """Let a fault begin now; see `leap_faults.FAULTS`.

        Args:
            name: of the fault.
            target: the joint or the number of it; None for the default.

        Raises:
            ValueError: there is no such fault or target.
        """
        with self._lock:
            self._add(make_fault(name, target))

    def clear(self) -> None:
        """Repair everything, motors with errors as by a reboot."""
        with self._lock:
            for fault in list(self._faults):
                self._remove(fault)

    def _loop(self) -> None:
        while self._running:
            with self._lock:
                end = self._ends[0] if self._ends else -1
                due = self._late[0][0] - time.monotonic() if self._late else TICK
            if end < 0:
                time.sleep(TICK)
                data = b""
            else:
                ready, _, _ = select.select([end], [], [], min(TICK, max(0.0, due)))
                data = self._receive(end) if ready else b""
            with self._lock:
                self._live(data)

    def _live(self, data: bytes) -> None:
        now = time.monotonic()
        self._schedule(now)
        names = {fault.name for fault in self._faults}
        if ("unplug" in names) == (self._ends is not None):
            self._unplug() if self._ends else self._plug_in()
        if names & {"hung_bus", "unplug"}:
            data = b""
        self.hand.advance(now, self._drive)
        if data:
            baud = self._baud()
            for packet in self._reader.feed(data, now):
                for status in self._bus.handle(packet, now, self._deaf(), baud):
                    late = now + delay_of(self._faults)
                    self._late.append((late, spoil(status, self._faults, self._rng)))
        self._bus.watch(now)
        self._protect(now)
        self._send(now)

    def _receive(self, end: int) -> bytes:
        try:
            return os.read(end, 65536)
        except OSError:
            return b""

    def _send(self, now: float) -> None:
        due = b""
        while self._late and self._late[0][0] <= now:
            due += self._late.popleft()[1]
        if due and self._ends is not None:
            with contextlib.suppress(OSError):  # nobody reads: the bytes are lost, as on a wire
                os.write(self._ends[0], due)

    def _baud(self) -> int | None:
        """What the other side talks at, where the system tells."""
        assert self._ends is not None
        try:
            return _SPEEDS.get(termios.tcgetattr(self._ends[1])[5], 0)
        except termios.error:
            return None

    def _deaf(self) -> frozenset[int]:
        silent = (fault.motor for fault in self._faults if fault.name == "silent_motor")
        return frozenset(id for id in silent if id is not None)

    def _schedule(self, now: float) -> None:
        elapsed = now - self._begin
        for fault in [fault for fault in self._scheduled if fault.start <= elapsed]:
            self._scheduled.remove(fault)
            self._add(fault)
        for fault in [f for f in self._faults if f.start + f.duration <= elapsed]:
            self._remove(fault)

    def _add(self, fault: Fault) -> None:
        self._faults.append(fault)
        if fault.name == "overload" and fault.motor is not None:
            self.motors[fault.motor].fail(_OVERLOAD)
        elif fault.name == "stuck_motor" and fault.motor is not None:
            self._drive.stuck[fault.motor] = True

    def _remove(self, fault: Fault) -> None:
        self._faults.remove(fault)
        if fault.motor is not None:
            if fault.name == "stuck_motor":
                self._drive.stuck[fault.motor] = False
            if fault.name == "hot_motor":
                self._heat.temperature[fault.motor] = self._heat.AIR
            if self.motors[fault.motor].get("hardware_error"):
                self.motors[fault.motor].reboot()

    def _protect(self, now: float) -> None:
        """Motors get warm, and switch themselves off when they are too hot."""
        hot = [fault.motor for fault in self._faults if fault.name == "hot_motor"]
        burning = np.isin(np.arange(len(self.motors)), [id for id in hot if id is not None])
        self._heat.advance(now, self.hand.current, burning)
        for motor, degrees in zip(self.motors, self._heat.temperature, strict=True):
            if degrees > motor.get("temperature_limit"):
                motor.fail(_OVERHEATING)

    def _equip(self, motor: JointMotor) -> None:
        """As a LEAP hand's maker sets it up: 4 Mbaud, answers without delay, mode left alone."""
        motor.put("baud_rate", 6)
        motor.put("return_delay_time", 0)
        motor.put("present_input_voltage", VOLTAGE)
        motor.refresh = lambda: self._show_motor(motor)
        motor.changed = lambda: self._listen(motor)
        self._listen(motor)

    def _listen(self, motor: JointMotor) -> None:
        """What a motor's registers say becomes what drives its joint."""
        id, drive = MOTOR_JOINTS.index(motor.joint), self._drive
        drive.torque[id] = motor.torque_enabled and motor.get("operating_mode") in (3, 4, 5)
        drive.goal[id] = angle_of(np.array(motor.get("goal_position")))
        drive.current[id] = 1e-3 * motor.get("goal_current")
        gains = (motor.get(f"position_{gain}_gain") for gain in "pid")
        drive.p[id], drive.i[id], drive.d[id] = gains_of(*gains)

    def _show(self) -> None:
        for motor in self.motors:
            self._show_motor(motor)

    def _show_motor(self, motor: JointMotor) -> None:
        """Present values, as of the hand's last move."""
        id = MOTOR_JOINTS.index(motor.joint)
        motor.position = float(self.hand.angle[id])
        speed = float(self.hand.velocity[id])
        motor.put("present_position", int(ticks_of(self.hand.angle[id])))
        motor.put("present_velocity", round(speed / VELOCITY_UNIT))
        motor.put("present_current", round(1e3 * float(self.hand.current[id])))
        motor.put("present_temperature", round(float(self._heat.temperature[id])))
        motor.put("realtime_tick", int(1e3 * time.monotonic()) % 32768)
        motor.put("moving", abs(speed) / VELOCITY_UNIT > motor.get("moving_threshold"))

    def _plug_in(self) -> None:
        master, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        self._reader, self._ends, self.port = PacketReader(), (master, slave), os.ttyname(slave)
        if self._link is not None:
            self._link.unlink(missing_ok=True)
            self._link.symlink_to(self.port)

    def _unplug(self) -> None:
        ends, self._ends = self._ends, None
        for end in ends or ():
            os.close(end)
        if self._link is not None and self._link.is_symlink():
            self._link.unlink()

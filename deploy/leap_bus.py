"""The LEAP hand's bus, on the packet layer of dynamixel-sdk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .leap_registers import MOTOR_JOINTS, REGISTERS

BAUD = 4_000_000
PROBED = (57600, 1_000_000, 2_000_000, 3_000_000, 4_000_000)
INSTALL = "pip install dynamixel-sdk"
IDS = list(range(len(MOTOR_JOINTS)))
TRIES = 3  # a byte may get lost
_ALERT = 0x80
_STATE = np.dtype([("current", "<i2"), ("velocity", "<i4"), ("position", "<i4")])
_STATE_AT = REGISTERS["present_current"].address
# A status packet does not say what it answers. One that comes after its read was given up must not
# pass for the answer to the next read, so after a failure the state is read in one of many lengths
# until that succeeds: answers come in order, and then no older one is left. These are the address
# and size of reads that contain the state and differ in size from all others.
_FENCES = tuple(
    {
        end - start: (start, end - start)
        for start in (120, 122, 123, 124, 126)
        for end in (136, 140, 144, 146, 147, 148)
        if end - start > _STATE.itemsize
    }.values()
)
_LATENCY = Path("/sys/bus/usb-serial/devices")
SERIAL_ERRORS = (OSError, termios.error, IndexError, TypeError)
"""what pyserial and dynamixel-sdk raise when a port goes away or sends nonsense"""


class State(NamedTuple):
    """One reading of all motors; arrays (16,) in the order of motor ids."""

    current: np.ndarray
    """[mA]"""
    velocity: np.ndarray
    """[0.229 rpm]"""
    position: np.ndarray
    """[tick]"""
    alert: np.ndarray
    """bool: motors that report a hardware error"""
    time: float
    """middle of the reading [s, time.monotonic]"""


def _sdk() -> Any:
    try:
        import dynamixel_sdk
    except ImportError:
        raise ValueError(f"the LEAP hand needs dynamixel-sdk: {INSTALL}") from None
    return dynamixel_sdk


def latency_timer(port: str) -> int | None:
    """The latency timer [ms] of a USB serial port; None where it has none."""
    file = _LATENCY / Path(os.path.realpath(port)).name / "latency_timer"
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _lock(port: str) -> int:
    """A descriptor that keeps a port from other programs, before anything of it is set.

    Raises:
        ValueError: another program has it.
    """
    lock = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ValueError(f"--port {port}: in use by another program") from None
    except OSError:
        os.close(lock)
        raise
    return lock


def _open(port: str, baud: int) -> Any:
    """A port handler that sleeps while it waits, where the sdk's own keeps a core busy."""
    sdk = _sdk()
    latency = latency_timer(port)

    class Port(sdk.PortHandler):
        def __init__(self) -> None:
            super().__init__(port)
            self.received = bytearray()

        def clearPort(self) -> None:
            super().clearPort()
            self.received.clear()

        def readPort(self, length: int) -> bytes:
            if not self.received:
                left = 1e-3 * (self.packet_timeout - self.getTimeSinceStart())
                if select.select([self.ser.fileno()], [], [], max(0.0, left))[0]:
                    if not (data := os.read(self.ser.fileno(), 4096)):
                        raise OSError(errno.EIO, "the port is gone")
                    self.received += data
            taken = bytes(self.received[:length])
            del self.received[:length]
            return taken

        def getCurrentTime(self) -> float:
            return 1e3 * time.monotonic()  # [ms]; the sdk's may jump

        def setPacketTimeout(self, packet_length: int) -> None:
            wait = 16.0 if latency is None else float(latency)
            self.setPacketTimeoutMillis(self.tx_time_per_byte * packet_length + 2.0 * wait + 2.0)

    handler = Port()
    if not handler.setBaudRate(baud):
        raise ValueError(f"baud rate {baud}: expected one of {', '.join(map(str, PROBED))}")
    return handler


class LeapBus:
    """Registers of sixteen motors. Made by one thread and used by one at a time."""

    def __init__(self, port: str, baud: int = BAUD) -> None:
        """Open a port.

        Raises:
            ValueError: the sdk is missing, another program has the port, or it cannot be opened;
                one line.
        """
        _sdk()
        if not os.path.exists(port):
            found = sorted(str(path) for kind in ("USB", "ACM") for path in _ports(kind))
            there = f"found {', '.join(found)}" if found else "no /dev/ttyUSB* or /dev/ttyACM* here"
            raise ValueError(f"--port {port}: no such port; {there}")
        self.port, self.baud = port, baud
        self._lock: int | None = None
        try:
            self._lock = _lock(port)
            self._port = _open(port, baud)
        except ValueError:
            self._unlock()
            raise
        except SERIAL_ERRORS as error:
            self._unlock()
            if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM):
                hint = "no permission; add yourself to the group dialout and log in again"
                raise ValueError(f"--port {port}: {hint}") from None
            reason = " ".join(str(error).split())
            raise ValueError(f"--port {port}: cannot be opened: {reason}") from None
        self._packets = _sdk().PacketHandler(2.0)
        self._behind = False  # late answers may come
        self._fence = 0

    def close(self) -> None:
        """Close the port; safe to call several times."""
        with contextlib.suppress(*SERIAL_ERRORS):  # it may have gone by itself
            self._port.closePort()
        self._unlock()

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def find(self) -> dict[int, int]:
        """Model numbers by id of the motors that answer."""
        found: dict[int, int] = {}
        for id in IDS:
            for _ in range(TRIES if found else 1):
                model, result, _ = self._call(self._packets.ping, id)
                if result == 0:
                    found[id] = model
                    break
        if found and len(found) < len(IDS):  # those that were asked but once
            for id in set(IDS) - set(found):
                model, result, _ = self._call(self._packets.ping, id)
                if result == 0:
                    found[id] = model
        return found

    def answering_baud(self) -> int | None:
        """Another rate at which a motor answers; leaves the port at its own."""
        try:
            for baud in PROBED:
                if baud == self.baud or not self._port.setBaudRate(baud):
                    continue
                if any(self._call(self._packets.ping, id)[1] == 0 for id in IDS):
                    return baud
        finally:
            self._port.setBaudRate(self.baud)
        return None

    def read(self, name: str, ids: list[int] | None = None) -> np.ndarray | None:
        """A register (K,) int64 of motors, all by default; None when one did not answer."""
        register = REGISTERS[name]
        ids = IDS if ids is None else ids
        answers = self._sync_read(register.address, register.size, ids)
        if answers is None:
            return None
        signed = register.low < 0
        values = [int.from_bytes(data, "little", signed=signed) for data, _ in answers]
        return np.array(values, np.int64)

    def read_surely(self, name: str) -> np.ndarray:
        """As `read`, tried several times.

        Raises:
            OSError: the motors do not answer.
        """
        for _ in range(TRIES):
            if (values := self.read(name)) is not None:
                return values
        raise OSError(errno.ETIMEDOUT, f"the motors do not tell their {name.replace('_', ' ')}")

    def read_state(self) -> State | None:
        """Current, velocity and position of all motors; None when one did not answer."""
        start, size = self._next_fence() if self._behind else (_STATE_AT, _STATE.itemsize)
        skip = _STATE_AT - start
        begun = time.monotonic()
        answers = self._exchange(start, size, IDS)
        middle = 0.5 * (begun + time.monotonic())
        if answers is None:
            return None
        end = skip + _STATE.itemsize
        state = np.frombuffer(b"".join(data[skip:end] for data, _ in answers), _STATE)
        alert = np.array([bool(error & _ALERT) for _, error in answers])
        return State(state["current"], state["velocity"], state["position"], alert, middle)

    def write(self, name: str, values: np.ndarray | int, ids: list[int] | None = None) -> None:
        """Write a register of motors, all by default, in one packet that nobody confirms."""
        register = REGISTERS[name]
        ids = IDS if ids is None else ids
        mask = (1 << 8 * register.size) - 1
        parameters: list[int] = []
        for id, value in zip(ids, np.broadcast_to(values, len(ids)), strict=True):
            raw = (int(value) & mask).to_bytes(register.size, "little")
            parameters += [id, *raw]
        address, size = register.address, register.size
        self._call(self._packets.syncWriteTxOnly, address, size, parameters, len(parameters))

    def write_surely(self, name: str, values: np.ndarray | int) -> list[int]:
        """Write a register of all motors and read it back. Returns ids that have another value.

        Raises:
            OSError: the motors do not answer.
        """
        wanted = np.broadcast_to(values, len(IDS))
        wrong: list[int] = IDS
        for _ in range(TRIES):
            self.write(name, wanted[wrong], wrong)
            wrong = np.flatnonzero(self.read_surely(name) != wanted).tolist()
            if not wrong:
                break
        return wrong

    def _next_fence(self) -> tuple[int, int]:
        self._fence = (self._fence + 1) % len(_FENCES)
        return _FENCES[self._fence]

    def _sync_read(self, address: int, size: int, ids: list[int]) -> list[tuple[bytes, int]] | None:
        """Data and error byte of each motor; not before late answers have been waited for."""
        if self._behind and self._exchange(*self._next_fence(), ids) is None:
            return None
        return self._exchange(address, size, ids)

    def _exchange(self, address: int, size: int, ids: list[int]) -> list[tuple[bytes, int]] | None:
        """One read. The sdk's GroupSyncRead hides the error byte, so it is not used."""
        self._behind = True
        if self._call(self._packets.syncReadTx, address, size, ids, len(ids), False) != 0:
            return None
        answers: list[tuple[bytes, int]] = []
        for id in ids:
            while True:
                packet, result = self._call(self._packets.rxPacket, False)
                if result != 0:
                    return None
                # header 4, id, length 2, status, error, data, CRC 2
                length = packet[5] + 256 * packet[6] + 7
                if packet[4] == id and length == size + 11:
                    break
            answers.append((bytes(packet[9 : 9 + size]), packet[8]))
        self._behind = False
        return answers

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(self._port, *arguments)
        finally:
            self._port.is_using = False  # the sdk leaves it set when it fails


def _ports(kind: str) -> list[Path]:
    return list(Path("/dev").glob(f"tty{kind}*"))

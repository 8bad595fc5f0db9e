"""Motors on a Dynamixel bus, as far as their bytes go: control tables, instructions, answers.

Follows the ROBOTIS e-manual ("Protocol 2.0", page XC330-M288-T). Where it leaves room:
- A bus watchdog counts every sound instruction packet on the bus, whoever it is for; the e-manual
  says "all the Instruction Packet". When it trips, the motor's goal becomes the position where it
  is and the torque stays on (that is what users report: a brake, with the goal position changed).
- A read that touches an address which the control table does not have is an access error.
- A packet with a wrong CRC is answered with the CRC error when it is for one motor, else ignored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from .dynamixel_packet import BROADCAST, STATUS, Packet, crc16, encode
from .leap_registers import (
    BAUD_RATES,
    GOALS,
    REGISTERS,
    SHUTDOWN_MASK,
    WATCHDOG_TRIPPED,
    WATCHDOG_UNIT,
    Register,
)

PING, READ, WRITE, REG_WRITE, ACTION, REBOOT = 1, 2, 3, 4, 5, 8
SYNC_READ, SYNC_WRITE, FAST_SYNC_READ = 0x82, 0x83, 0x8A
BULK_READ, BULK_WRITE = 0x92, 0x93

INSTRUCTION_ERROR, CRC_ERROR, RANGE_ERROR, LENGTH_ERROR = 2, 3, 4, 5
LIMIT_ERROR, ACCESS_ERROR, ALERT = 6, 7, 0x80

_SIZE = 148  # bytes of the control table that are emulated; indirect addresses are not
_AT: dict[int, Register] = {
    address: register
    for register in REGISTERS.values()
    for address in range(register.address, register.address + register.size)
}
# a written goal must not exceed the limit that the motor itself has been given
_LIMITS = {
    "goal_pwm": "pwm_limit",
    "goal_current": "current_limit",
    "goal_velocity": "velocity_limit",
}
HISTORY = 20_000  # goal positions that a motor remembers

Answer = tuple[int, bytes]
"""error number and data"""


class Motor:
    """One motor's control table and what it does with it.

    Attributes:
        table: bytearray of the control table.
        goals: the newest goal positions written, (time [s], tick), for tests and drills.
        heard: when the last instruction packet came by [s].
        trips: how often the bus watchdog has tripped.
        refresh: called before the present values are read.
        changed: called after something was written.
    """

    def __init__(self, id: int) -> None:
        self.table = bytearray(_SIZE)
        for register in REGISTERS.values():
            self.put(register.name, register.initial)
        self.put("id", id)
        self.goals: deque[tuple[float, int]] = deque(maxlen=HISTORY)
        self.heard = 0.0
        self.trips = 0
        self.refresh: Callable[[], None] = lambda: None
        self.changed: Callable[[], None] = lambda: None
        self._waiting: tuple[int, bytes] | None = None

    def get(self, name: str) -> int:
        """A register's value."""
        register = REGISTERS[name]
        raw = self.table[register.address : register.address + register.size]
        return int.from_bytes(raw, "little", signed=register.low < 0)

    def put(self, name: str, value: int) -> None:
        """Set a register from inside, without any check."""
        register = REGISTERS[name]
        bits = 8 * register.size
        raw = (int(value) & ((1 << bits) - 1)).to_bytes(register.size, "little")
        self.table[register.address : register.address + register.size] = raw

    @property
    def id(self) -> int:
        return self.get("id")

    @property
    def baud(self) -> int:
        return BAUD_RATES[self.get("baud_rate")]

    @property
    def torque_enabled(self) -> bool:
        return self.get("torque_enable") == 1

    @property
    def watchdog_tripped(self) -> bool:
        return self.get("bus_watchdog") == WATCHDOG_TRIPPED

    def read(self, address: int, size: int) -> Answer:
        if any(place not in _AT for place in range(address, address + size)):
            return ACCESS_ERROR, b""
        self.refresh()
        return 0, bytes(self.table[address : address + size])

    def write(self, address: int, data: bytes, now: float) -> int:
        """Write registers; nothing is written when one of them is refused. Returns the error."""
        changes: list[tuple[Register, int]] = []
        place = 0
        while place < len(data):
            register = _AT.get(address + place)
            if register is None or not register.writable:
                return ACCESS_ERROR
            raw = data[place : place + register.size]
            if register.address != address + place or len(raw) < register.size:
                return LENGTH_ERROR
            value = int.from_bytes(raw, "little", signed=register.low < 0)
            if error := self._refusal(register, value):
                return error
            changes.append((register, value))
            place += register.size
        for register, value in changes:
            self._set(register, value, now)
        self.changed()
        return 0

    def reg_write(self, address: int, data: bytes) -> int:
        self._waiting = (address, data)
        self.put("registered_instruction", 1)
        return 0

    def action(self, now: float) -> int:
        if self._waiting is None:
            return INSTRUCTION_ERROR
        waiting, self._waiting = self._waiting, None
        self.put("registered_instruction", 0)
        return self.write(*waiting, now)

    def reboot(self) -> None:
        """RAM as after switching on."""
        for register in REGISTERS.values():
            if not register.eeprom:
                self.put(register.name, register.initial)
        self.refresh()
        self.changed()

    def fail(self, bits: int) -> None:
        """Raise hardware errors; those of the shutdown register switch the torque off."""
        self.put("hardware_error", self.get("hardware_error") | bits)
        if bits & self.get("shutdown") & SHUTDOWN_MASK:
            self.put("torque_enable", 0)
        self.changed()

    def watch(self, now: float) -> bool:
        """Let the bus watchdog trip if it is time. Returns whether it has."""
        limit = self.get("bus_watchdog")
        armed = self.torque_enabled and 1 <= limit <= 127
        if not armed or now - self.heard <= limit * WATCHDOG_UNIT:
            return False
        self.refresh()
        self.put("bus_watchdog", WATCHDOG_TRIPPED)
        self.put("goal_position", self.get("present_position"))
        self.put("profile_velocity", 0)
        self.put("profile_acceleration", 0)
        self.trips += 1
        self.changed()
        return True

    def _refusal(self, register: Register, value: int) -> int:
        name = register.name
        if register.eeprom and self.torque_enabled:
            return ACCESS_ERROR
        if name in GOALS and self.watchdog_tripped:
            return RANGE_ERROR
        if not register.low <= value <= register.high:
            return RANGE_ERROR
        if name in _LIMITS and abs(value) > self.get(_LIMITS[name]):
            return LIMIT_ERROR
        if name == "torque_enable" and value and self.get("hardware_error") & SHUTDOWN_MASK:
            return ACCESS_ERROR  # only a reboot lets it on again
        return 0

    def _set(self, register: Register, value: int, now: float) -> None:
        self.put(register.name, value)
        if register.name == "goal_position":
            self.goals.append((now, value))
        if register.name == "operating_mode":
            self.put("goal_current", self.get("current_limit"))
            self.put("goal_pwm", self.get("pwm_limit"))
            for gain in ("position_p_gain", "position_i_gain", "position_d_gain"):
                self.put(gain, REGISTERS[gain].initial)
        if register.name == "torque_enable" and value and not self.watchdog_tripped:
            self.heard = now


class Bus:
    """What happens on the wires: a packet goes in, the motors' status packets come out."""

    def __init__(self, motors: list[Motor]) -> None:
        self.motors = motors
        self.packets = self.bad_packets = 0

    def handle(
        self, packet: Packet, now: float, deaf: frozenset[int], baud: int | None = None
    ) -> list[bytes]:
        """The answers to a packet, in their order.

        Args:
            packet: what came.
            now: when [s].
            deaf: ids of motors that neither hear nor answer.
            baud: what the sender talks at, None to leave that out; motors set to another rate
                hear nothing.
        """
        listening = {
            motor.id: motor
            for motor in self.motors
            if motor.id not in deaf and (baud is None or motor.baud == baud)
        }
        self.packets += 1
        if not packet.intact:
            self.bad_packets += 1
            motor = listening.get(packet.id)
            return [] if motor is None else [_status(motor, CRC_ERROR)]
        for motor in listening.values():
            motor.heard = now
        try:
            return list(self._answers(packet, listening, now))
        except (IndexError, ValueError):  # parameters cut short
            motor = listening.get(packet.id)
            return [] if motor is None else [_status(motor, LENGTH_ERROR)]

    def watch(self, now: float) -> int:
        """Let bus watchdogs trip. Returns how many did."""
        return sum(motor.watch(now) for motor in self.motors)

    def _answers(self, packet: Packet, motors: dict[int, Motor], now: float) -> Iterator[bytes]:
        instruction, params = packet.instruction, packet.params
        everyone = packet.id == BROADCAST
        if instruction == SYNC_READ:
            address, size = _words(params)
            for id in params[4:]:
                if id in motors:
                    yield _status(motors[id], *motors[id].read(address, size))
        elif instruction == FAST_SYNC_READ:
            yield from _fast_sync_read(params, motors)
        elif instruction == SYNC_WRITE:
            address, size = _words(params)
            for place in range(4, len(params) - size, size + 1):
                id = params[place]
                if id in motors:
                    motors[id].write(address, params[place + 1 : place + 1 + size], now)
        elif instruction == BULK_READ:
            for place in range(0, len(params) - 4, 5):
                if (id := params[place]) in motors:
                    answer = motors[id].read(*_words(params[place + 1 : place + 5]))
                    yield _status(motors[id], *answer)
        elif instruction == BULK_WRITE:
            while len(params) > 5:
                id, (address, size) = params[0], _words(params[1:5])
                if id in motors:
                    motors[id].write(address, params[5 : 5 + size], now)
                params = params[5 + size :]
        else:
            chosen = sorted(motors) if everyone else [id for id in (packet.id,) if id in motors]
            for id in chosen:
                answer = _single(motors[id], instruction, params, now)
                if not everyone or instruction == PING:
                    yield _status(motors[id], *answer)


def _words(params: bytes) -> tuple[int, int]:
    if len(params) < 4:
        raise ValueError("parameters cut short")
    return int.from_bytes(params[:2], "little"), int.from_bytes(params[2:4], "little")


def _single(motor: Motor, instruction: int, params: bytes, now: float) -> Answer:
    """What one motor answers to an instruction of its own."""
    if instruction == PING:
        return 0, bytes(motor.table[0:2]) + bytes((motor.table[6],))
    if instruction == READ:
        return motor.read(*_words(params))
    if instruction in (WRITE, REG_WRITE):
        if len(params) < 3:
            raise ValueError("parameters cut short")
        address, data = int.from_bytes(params[:2], "little"), params[2:]
        if instruction == WRITE:
            return motor.write(address, data, now), b""
        return motor.reg_write(address, data), b""
    if instruction == ACTION:
        return motor.action(now), b""
    if instruction == REBOOT:
        motor.reboot()
        return 0, b""
    return INSTRUCTION_ERROR, b""


def _error_byte(motor: Motor, error: int) -> int:
    return error | (ALERT if motor.get("hardware_error") else 0)


def _status(motor: Motor, error: int, data: bytes = b"") -> bytes:
    return encode(motor.id, STATUS, bytes((_error_byte(motor, error),)) + data)


def _fast_sync_read(params: bytes, motors: dict[int, Motor]) -> Iterator[bytes]:
    """All motors' data in one packet: error, id, data and the CRC so far, one after another."""
    address, size = _words(params)
    ids = params[4:]
    if any(id not in motors for id in ids):
        return  # the chain breaks at the motor that is not there
    length = 1 + len(ids) * (size + 4)
    packet = encode(BROADCAST, STATUS)[:5] + length.to_bytes(2, "little") + bytes((STATUS,))
    for id in ids:
        error, data = motors[id].read(address, size)
        packet += bytes((_error_byte(motors[id], error), id)) + data.ljust(size, b"\0")
        packet += crc16(packet).to_bytes(2, "little")
    yield packet

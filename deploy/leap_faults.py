"""Faults that an emulated LEAP hand can have, on its bus and in its motors."""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass

from .leap_registers import MOTOR_JOINTS

# what each does, and what may stand behind its colon: a joint, or a number with its default
FAULTS: dict[str, tuple[str, float | None]] = {
    "lost_bytes": ("a status packet loses a byte; share of packets", 0.02),
    "wrong_crc": ("a status packet's CRC is wrong; share of packets", 0.02),
    "noise": ("garbage before a status packet; share of packets", 0.2),
    "slow_bus": ("status packets come late [s]", 0.05),
    "hung_bus": ("nothing is heard and nothing answers", None),
    "unplug": ("the port is gone", None),
    "silent_motor": ("a motor neither hears nor answers", None),
    "overload": ("a motor reports an overload and switches its torque off", None),
    "hot_motor": ("a motor gets 10 K hotter every second", None),
    "stuck_motor": ("a joint cannot move", None),
}
JOINT_FAULTS = ("silent_motor", "overload", "hot_motor", "stuck_motor")
DEFAULT_JOINT = "if_pip"


@dataclass(frozen=True)
class Fault:
    """One fault, and when.

    Attributes:
        name: see `FAULTS`.
        joint: of which motor; None where the fault is the bus's.
        amount: how much, for the faults that have a number.
        start: seconds after the emulator's start.
        duration: seconds until it goes away by itself; inf for never.
    """

    name: str
    joint: str | None = None
    amount: float = 0.0
    start: float = 0.0
    duration: float = math.inf

    @property
    def motor(self) -> int | None:
        """The id of its motor."""
        return None if self.joint is None else MOTOR_JOINTS.index(self.joint)


def make_fault(name: str, target: str | float | None = None) -> Fault:
    """A fault that begins at once.

    Args:
        name: see `FAULTS`.
        target: the joint, or the number; None for the default.

    Raises:
        ValueError: there is no such fault or joint, or the number is none.
    """
    if name not in FAULTS:
        raise ValueError(f"fault {name}: unknown; expected {', '.join(FAULTS)}")
    if name in JOINT_FAULTS:
        joint = DEFAULT_JOINT if target is None else str(target)
        if joint not in MOTOR_JOINTS:
            raise ValueError(f"fault {name}: no joint {joint}; expected {', '.join(MOTOR_JOINTS)}")
        return Fault(name, joint)
    default = FAULTS[name][1]
    if default is None and target is not None:
        raise ValueError(f"fault {name}: expected nothing behind its colon, got {target}")
    try:
        amount = float(default or 0.0) if target is None else float(target)
    except ValueError:
        raise ValueError(f"fault {name}: expected a number, got {target}") from None
    if not 0.0 <= amount <= 10.0 or (amount > 1.0 and name != "slow_bus"):
        raise ValueError(f"fault {name}: {amount:g} is out of range: {FAULTS[name][0]}")
    return Fault(name, None, amount)


def parse_fault(text: str) -> Fault:
    """A fault as the command line says it: NAME[:TARGET][@START[+DURATION]], times in s.

    Raises:
        ValueError: it does not say one.
    """
    number = r"(\d+(?:\.\d*)?|\.\d+)"
    match = re.fullmatch(rf"(\w+)(?::([^@]+))?(?:@{number}(?:\+{number})?)?", text)
    if match is None:
        raise ValueError(f"--fault {text}: expected NAME[:TARGET][@SECONDS[+SECONDS]]")
    name, target, start, duration = match.groups()
    fault = make_fault(name, target)
    return Fault(
        fault.name,
        fault.joint,
        fault.amount,
        float(start or 0.0),
        math.inf if duration is None else float(duration),
    )


def spoil(packet: bytes, faults: list[Fault], rng: random.Random) -> bytes:
    """What arrives of a status packet."""
    for fault in faults:
        if fault.name not in ("lost_bytes", "wrong_crc", "noise") or rng.random() >= fault.amount:
            continue
        if fault.name == "lost_bytes":
            lost = rng.randrange(len(packet))
            packet = packet[:lost] + packet[lost + 1 :]
        elif fault.name == "wrong_crc":
            packet = packet[:-1] + bytes((packet[-1] ^ 0x5A,))
        else:
            packet = rng.randbytes(rng.randint(1, 12)) + packet
    return packet


def delay_of(faults: list[Fault]) -> float:
    """By how much answers are late [s]."""
    return sum(fault.amount for fault in faults if fault.name == "slow_bus")

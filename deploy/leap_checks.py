"""What must be right about a LEAP hand before its motors get torque."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from .leap_bus import LeapBus, latency_timer
from .leap_registers import (
    MODELS,
    MOTOR_JOINTS,
    SHUTDOWN_MASK,
    angle_of,
    error_names,
    ticks_of,
)
from .safety import LIMIT_MARGIN

if TYPE_CHECKING:
    from .contract import Contract


def named(id: int) -> str:
    """A motor as messages call it."""
    return f"{MOTOR_JOINTS[id]} (motor {id})"


def all_named(ids: list[int]) -> str:
    """Several motors as messages call them."""
    return ", ".join(named(id) for id in ids)


def no_answer(bus: LeapBus) -> str:
    """What to say when no motor answers; looks for them at other rates."""
    at = f"--port {bus.port}: no motor answers at {bus.baud} baud"
    if (other := bus.answering_baud()) is not None:
        return f"{at}; one does at {other}: expected --baud {other}"
    return f"{at} or any other rate; is the hand's power on and this its port?"


def require_motors(bus: LeapBus) -> None:
    """All sixteen answer and are of the right kind.

    Raises:
        ValueError: what is missing or wrong, by joint.
    """
    found = bus.find()
    if not found:
        raise ValueError(no_answer(bus))
    if missing := [id for id in range(len(MOTOR_JOINTS)) if id not in found]:
        raise ValueError(f"--port {bus.port}: no answer from {all_named(missing)}")
    for id, model in found.items():
        if model not in MODELS:
            known = " or ".join(f"{name} ({number})" for number, name in MODELS.items())
            raise ValueError(f"{named(id)} is of model {model}; expected {known}")


def require_health(bus: LeapBus) -> None:
    """No motor is in an error that keeps its torque off.

    Raises:
        ValueError: the motor and its error.
    """
    for id, bits in enumerate(bus.read_surely("hardware_error")):
        if bits & SHUTDOWN_MASK:
            errors = " and ".join(error_names(int(bits)))
            raise ValueError(f"{named(id)} reports {errors}; switch the hand off and on")


def require_settings(bus: LeapBus, contract: Contract, offsets: np.ndarray) -> None:
    """The motors count angles as expected and may go wherever the contract goes.

    Args:
        bus: open.
        contract: of the policy.
        offsets: (16,) [rad] of the calibration, in the order of motor ids.

    Raises:
        ValueError: the motor, what it is set to and what was expected.
    """
    for id, mode in enumerate(bus.read_surely("drive_mode")):
        if mode:  # turned round, profiles of a given duration, torque on by a goal
            raise ValueError(f"{named(id)}: drive mode {mode} moves otherwise; expected 0")
    for id, offset in enumerate(bus.read_surely("homing_offset")):
        if offset:
            raise ValueError(f"{named(id)}: homing offset {offset}; expected 0, then calibrate")
    order = [contract.joints.index(joint) for joint in MOTOR_JOINTS]
    lower = np.array(contract.lower)[order]
    upper = np.array(contract.upper)[order]
    low, high = bus.read_surely("min_position_limit"), bus.read_surely("max_position_limit")
    ends = ticks_of(np.stack((lower, upper)) + offsets)
    for id in np.flatnonzero((ends[0] < low) | (ends[1] > high)).tolist():
        may = angle_of(np.array((low[id], high[id]))) - offsets[id]
        raise ValueError(
            f"{named(id)}: the policy goes from {lower[id]:.3f} to {upper[id]:.3f} rad, the motor's"
            f" position limits from {may[0]:.3f} to {may[1]:.3f}: expected wider ones"
        )
    angles = angle_of(bus.read_surely("present_position")) - offsets
    astray = (angles < lower - LIMIT_MARGIN) | (angles > upper + LIMIT_MARGIN)
    for id in np.flatnonzero(astray).tolist():
        raise ValueError(
            f"{named(id)} is at {angles[id]:.2f} rad, outside {lower[id]:.2f}...{upper[id]:.2f}:"
            " move it inside, switch the hand off and on, or calibrate it"
        )


def hint_latency(port: str) -> None:
    """A line on stderr if the port keeps bytes for longer than it should."""
    latency = latency_timer(port)
    if latency is not None and latency > 1:
        print(
            f"{port}: latency timer {latency} ms slows the bus down; set it to 1, as root: echo 1 >"
            f" /sys/bus/usb-serial/devices/{port.rsplit('/', 1)[-1]}/latency_timer",
            file=sys.stderr,
        )

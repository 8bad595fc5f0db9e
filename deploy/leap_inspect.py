"""A LEAP hand looked at motor by motor, and its zero offsets measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .leap_arming import let_go
from .leap_bus import IDS, SERIAL_ERRORS, TRIES, LeapBus, latency_timer
from .leap_calibration import LARGEST, load_calibration
from .leap_checks import all_named, named, no_answer, require_motors
from .leap_registers import (
    MODELS,
    MOTOR_JOINTS,
    WATCHDOG_TRIPPED,
    angle_of,
    error_names,
)

WARM = 60  # a motor at rest is not that hot [degC]
SLOW_ANSWER = 50  # return delay from which sixteen of them matter [2 us]
SAMPLES = 20
STEADY = 0.02  # the most that a joint may move while it is measured [rad]
_READ = (
    "present_position",
    "present_current",
    "present_temperature",
    "present_input_voltage",
    "min_voltage_limit",
    "max_voltage_limit",
    "hardware_error",
    "torque_enable",
    "bus_watchdog",
    "drive_mode",
    "homing_offset",
    "return_delay_time",
)


def check_hand(port: str, baud: int, calibration: str | Path | None = None) -> dict[str, Any]:
    """What every motor says of itself.

    Returns:
        Plain values: "ok", "port", "baud", "hints" (list of text), and "motors", of each "joint",
        "id", "model", "position" [rad] after calibration, "current_ma", "temperature" [degC],
        "voltage" [V], "torque" (bool), "offset" [rad] and "problems" (list of text). What a motor
        does not tell is None.

    Raises:
        ValueError: the port cannot be opened, no motor answers, or the calibration is none.
    """
    offsets = np.zeros(len(IDS)) if calibration is None else load_calibration(calibration)
    bus = LeapBus(port, baud)
    try:
        found = bus.find()
        if not found:
            raise ValueError(no_answer(bus))
        motors = [_look_at(bus, id, found.get(id), float(offsets[id])) for id in IDS]
        delays = bus.read("return_delay_time", sorted(found))
    except SERIAL_ERRORS as error:
        raise ValueError(f"--port {port}: {' '.join(str(error).split())}") from None
    finally:
        bus.close()
    hints = []
    if (latency := latency_timer(port)) is not None and latency > 1:
        hints.append(f"the port's latency timer is {latency} ms; 1 makes the bus faster")
    if delays is not None and (delays >= SLOW_ANSWER).any():
        hints.append(f"motors wait up to {2 * delays.max()} us to answer; return delay 0 is faster")
    ok = not any(motor["problems"] for motor in motors)
    return {"ok": ok, "port": port, "baud": baud, "hints": hints, "motors": motors}


def measure_offsets(
    port: str, baud: int, pose: Mapping[str, float] | None, ready: Callable[[], None]
) -> dict[str, float]:
    """Offsets [rad] of the joints, measured while somebody holds the hand.

    Args:
        port, baud: of the bus.
        pose: joint -> [rad] in which it is held; None for zero everywhere.
        ready: called when the motors are passive; returns when the hand is held.

    Raises:
        ValueError: port or motors, the hand moved, or a joint is too far from the pose.
    """
    bus = LeapBus(port, baud)
    try:
        require_motors(bus)
        if not any(let_go(bus) for _ in range(TRIES)):
            raise ValueError(f"--port {port}: the motors do not confirm that their torque is off")
        ready()
        ticks = np.array([bus.read_surely("present_position") for _ in range(SAMPLES)])
    except SERIAL_ERRORS as error:
        raise ValueError(f"--port {port}: {' '.join(str(error).split())}") from None
    finally:
        bus.close()
    angles = angle_of(ticks)
    if moved := np.flatnonzero(np.ptp(angles, axis=0) > STEADY).tolist():
        raise ValueError(f"{all_named(moved)} moved; hold the hand still, and try again")
    held = np.array([0.0 if pose is None else pose[joint] for joint in MOTOR_JOINTS])
    offsets = angles.mean(axis=0) - held
    for id in np.flatnonzero(np.abs(offsets) > LARGEST).tolist():
        raise ValueError(
            f"{named(id)} is {offsets[id]:+.2f} rad from the pose, expected at most {LARGEST}:"
            " is the hand in the pose, and the motor's horn mounted at 180 degrees?"
        )
    return {joint: float(offset) for joint, offset in zip(MOTOR_JOINTS, offsets, strict=True)}


def _look_at(bus: LeapBus, id: int, model: int | None, offset: float) -> dict[str, Any]:
    told = {name: None if model is None else _ask(bus, id, name) for name in _READ}
    position = told["present_position"]
    voltage = told["present_input_voltage"]
    return {
        "joint": MOTOR_JOINTS[id],
        "id": id,
        "model": None if model is None else MODELS.get(model, str(model)),
        "position": None if position is None else float(angle_of(np.array(position))) - offset,
        "current_ma": told["present_current"],
        "temperature": told["present_temperature"],
        "voltage": None if voltage is None else 0.1 * voltage,
        "torque": bool(told["torque_enable"]),
        "offset": offset,
        "problems": _problems(model, told),
    }


def _ask(bus: LeapBus, id: int, name: str) -> int | None:
    for _ in range(TRIES):
        if (value := bus.read(name, [id])) is not None:
            return int(value[0])
    return None


def _problems(model: int | None, told: dict[str, int | None]) -> list[str]:
    if model is None:
        return ["no answer"]
    problems = [] if model in MODELS else [f"wrong model {model}"]
    values = {name: value for name, value in told.items() if value is not None}
    if len(values) < len(told):
        return [*problems, "answers not always"]
    problems += error_names(values["hardware_error"])
    low, high = values["min_voltage_limit"], values["max_voltage_limit"]
    if not low <= values["present_input_voltage"] <= high:
        problems.append(f"supply not within {0.1 * low:.1f} to {0.1 * high:.1f} V")
    if values["present_temperature"] >= WARM:
        problems.append("hot")
    if values["bus_watchdog"] == WATCHDOG_TRIPPED:
        problems.append("watchdog has tripped")
    if values["drive_mode"]:
        problems.append(f"drive mode {values['drive_mode']}")
    if values["homing_offset"]:
        problems.append(f"homing offset {values['homing_offset']}")
    return problems

"""Giving the LEAP hand's motors torque, and taking it away."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from .leap_bus import IDS, LeapBus
from .leap_checks import all_named, named
from .leap_registers import (
    CURRENT_BASED_POSITION,
    MOTOR_JOINTS,
    SHUTDOWN_MASK,
    SIDE_JOINTS,
    TORQUE_CONSTANT,
    WATCHDOG_UNIT,
    error_names,
)

# register values that the maker's users run the hand with; docs/leap.md says why not the contract's
P_GAIN, I_GAIN, D_GAIN = 600, 0, 200
SIDE_P = 0.75  # of P_GAIN for the joints that spread the fingers
FULL_CURRENT = 0.55  # where the contract has no force limit [A]
OVERSHOOT, NOISE = 1.2, 0.03  # share and [A] by which a motor may exceed its goal current
# what an earlier session may have left in RAM; 0 is off
SLOWING = (
    "feedforward_1st_gain",
    "feedforward_2nd_gain",
    "profile_acceleration",
    "profile_velocity",
)


def goal_currents(force_limit: np.ndarray, current_limit: float | None) -> np.ndarray:
    """Currents (16,) [mA] that give torques (16,) [N m] at most, inf for no limit.

    Args:
        force_limit: of each joint.
        current_limit: the most that any motor may draw [A]; None for no further limit.
    """
    ampere = np.where(np.isfinite(force_limit), force_limit / TORQUE_CONSTANT, FULL_CURRENT)
    if current_limit is not None:
        ampere = np.minimum(ampere, current_limit)
    return np.rint(1e3 * ampere).astype(np.int64)


def most_currents(currents: np.ndarray) -> np.ndarray:
    """What healthy motors of goal currents (16,) [mA] never exceed for long, (16,) [A].

    Their current controller overshoots, and what it measures is noisy; how much is an estimate.
    """
    return 1e-3 * OVERSHOOT * currents + NOISE


def watchdog_ticks(seconds: float) -> int:
    """The register value for a bus watchdog of at least so many seconds, as far as it goes."""
    return min(max(math.ceil(seconds / WATCHDOG_UNIT - 1e-9), 1), 127)


def arming(bus: LeapBus, currents: np.ndarray, watchdog: int) -> Iterator[None]:
    """Torque on, the hand held where it is. A generator, so that readings can go on in between.

    Args:
        bus: open.
        currents: (16,) goal currents [mA].
        watchdog: value of the bus watchdog register.

    Raises:
        ValueError: a motor refuses something; by joint.
        OSError: the motors do not answer.
    """
    _set(bus, "torque_enable", 0)
    yield
    _set(bus, "bus_watchdog", 0)
    yield
    if (bus.read_surely("operating_mode") != CURRENT_BASED_POSITION).any():  # kept in EEPROM
        _set(bus, "operating_mode", CURRENT_BASED_POSITION)
    yield
    p_gain = [P_GAIN * (SIDE_P if joint in SIDE_JOINTS else 1.0) for joint in MOTOR_JOINTS]
    _set(bus, "position_p_gain", np.rint(p_gain).astype(np.int64))
    yield
    _set(bus, "position_i_gain", I_GAIN)
    yield
    _set(bus, "position_d_gain", D_GAIN)
    yield
    for name in SLOWING:
        _set(bus, name, 0)
        yield
    _set(bus, "goal_pwm", bus.read_surely("pwm_limit"))
    yield
    _set(bus, "goal_current", np.minimum(currents, bus.read_surely("current_limit")))
    yield
    for id, bits in enumerate(bus.read_surely("hardware_error") & SHUTDOWN_MASK):
        if bits:
            raise ValueError(f"{named(id)} reports {' and '.join(error_names(int(bits)))}")
    yield
    _set(bus, "goal_position", bus.read_surely("present_position"))
    _set(bus, "torque_enable", 1)
    _set(bus, "bus_watchdog", watchdog)


def let_go(bus: LeapBus) -> bool:
    """Torque off. Returns whether all motors confirm it."""
    bus.write("torque_enable", 0)
    state = bus.read("torque_enable")
    return state is not None and not state.any()


def _set(bus: LeapBus, name: str, values: np.ndarray | int) -> None:
    if wrong := bus.write_surely(name, values):
        wanted = int(np.broadcast_to(values, len(IDS))[wrong[0]])
        what = name.replace("_", " ")
        raise ValueError(f"{all_named(wrong)}: {what} cannot be set to {wanted}")

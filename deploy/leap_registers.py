"""The LEAP hand's motors: which joint is which, and the control table of the XC330.

Sources: addresses, sizes, ranges and units are those of the ROBOTIS e-manual, page XC330-M288-T;
the order of the motors is the maker's: side, forward, then outwards along each finger. What
`widen` calls mcp is the maker's forward joint, and rot the side joint.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# motor ids 0...15
MOTOR_JOINTS = (
    *(f"{finger}_{part}" for finger in ("if", "mf", "rf") for part in ("rot", "mcp", "pip", "dip")),
    *(f"th_{part}" for part in ("cmc", "axl", "mcp", "ipl")),
)
SIDE_JOINTS = ("if_rot", "mf_rot", "rf_rot")

MODELS = {1240: "XC330-M288", 1220: "XC330-T288", 1200: "XL330-M288"}
"""model numbers a LEAP hand is built with; all of one control table"""

TICKS = 4096  # of one turn
RAD_PER_TICK = 2.0 * np.pi / TICKS
VELOCITY_UNIT = 0.229 * 2.0 * np.pi / 60.0  # [rad/s]
TORQUE_CONSTANT = 0.27 / 0.55  # [N m/A]: 550 mA give .27 N m
WATCHDOG_UNIT = 0.02  # [s]
WATCHDOG_TRIPPED = 0xFF  # -1 in one byte
CURRENT_BASED_POSITION = 5  # operating mode
SHUTDOWN_MASK = 0b110100  # errors that switch a motor's torque off: the factory setting of 63

BAUD_RATES = {0: 9600, 1: 57600, 2: 115200, 3: 1_000_000, 4: 2_000_000, 5: 3_000_000, 6: 4_000_000}

HARDWARE_ERRORS = {
    0: "input voltage",
    2: "overheating",
    3: "motor encoder",
    4: "electrical shock",
    5: "overload",
}


class Register(NamedTuple):
    """An item of the control table."""

    name: str
    address: int
    size: int
    writable: bool
    initial: int = 0
    low: int = 0
    high: int = 0
    """low and high bound what may be written; the value is signed where low is negative"""

    @property
    def eeprom(self) -> bool:
        """Kept without power, and locked while the torque is on."""
        return self.address < 64


TURNS = 1_048_575  # goal positions go so far in both directions [tick]

REGISTERS = {
    register.name: register
    for register in (
        Register("model_number", 0, 2, False, 1240),
        Register("model_information", 2, 4, False),
        Register("firmware_version", 6, 1, False, 46),
        Register("id", 7, 1, True, 1, 0, 252),
        Register("baud_rate", 8, 1, True, 1, 0, 6),
        Register("return_delay_time", 9, 1, True, 250, 0, 254),
        Register("drive_mode", 10, 1, True, 0, 0, 5),
        Register("operating_mode", 11, 1, True, 3, 0, 16),
        Register("secondary_id", 12, 1, True, 255, 0, 255),
        Register("protocol_type", 13, 1, True, 2, 2, 22),
        Register("homing_offset", 20, 4, True, 0, -1_044_479, 1_044_479),
        Register("moving_threshold", 24, 4, True, 10, 0, 1023),
        Register("temperature_limit", 31, 1, True, 70, 0, 100),
        Register("max_voltage_limit", 32, 2, True, 70, 31, 70),
        Register("min_voltage_limit", 34, 2, True, 35, 31, 70),
        Register("pwm_limit", 36, 2, True, 885, 0, 885),
        Register("current_limit", 38, 2, True, 2352, 0, 2352),
        Register("velocity_limit", 44, 4, True, 350, 0, 2047),
        Register("max_position_limit", 48, 4, True, 4095, 0, 4095),
        Register("min_position_limit", 52, 4, True, 0, 0, 4095),
        Register("startup_configuration", 60, 1, True, 0, 0, 3),
        Register("pwm_slope", 62, 1, True, 140, 1, 255),
        Register("shutdown", 63, 1, True, SHUTDOWN_MASK, 0, 63),
        Register("torque_enable", 64, 1, True, 0, 0, 1),
        Register("led", 65, 1, True, 0, 0, 1),
        Register("status_return_level", 68, 1, True, 2, 0, 2),
        Register("registered_instruction", 69, 1, False),
        Register("hardware_error", 70, 1, False),
        Register("velocity_i_gain", 76, 2, True, 1600, 0, 16383),
        Register("velocity_p_gain", 78, 2, True, 50, 0, 16383),
        Register("position_d_gain", 80, 2, True, 500, 0, 16383),
        Register("position_i_gain", 82, 2, True, 0, 0, 16383),
        Register("position_p_gain", 84, 2, True, 1100, 0, 16383),
        Register("feedforward_2nd_gain", 88, 2, True, 0, 0, 16383),
        Register("feedforward_1st_gain", 90, 2, True, 0, 0, 16383),
        Register("bus_watchdog", 98, 1, True, 0, 0, 127),
        Register("goal_pwm", 100, 2, True, 885, -885, 885),
        Register("goal_current", 102, 2, True, 2352, -2352, 2352),
        Register("goal_velocity", 104, 4, True, 0, -2047, 2047),
        Register("profile_acceleration", 108, 4, True, 0, 0, 32767),
        Register("profile_velocity", 112, 4, True, 0, 0, 32767),
        Register("goal_position", 116, 4, True, 0, -TURNS, TURNS),
        Register("realtime_tick", 120, 2, False),
        Register("moving", 122, 1, False),
        Register("moving_status", 123, 1, False),
        Register("present_pwm", 124, 2, False, 0, -1),
        Register("present_current", 126, 2, False, 0, -1),
        Register("present_velocity", 128, 4, False, 0, -1),
        Register("present_position", 132, 4, False, 0, -1),
        Register("velocity_trajectory", 136, 4, False, 0, -1),
        Register("position_trajectory", 140, 4, False, 0, -1),
        Register("present_input_voltage", 144, 2, False, 50),
        Register("present_temperature", 146, 1, False, 25),
        Register("backup_ready", 147, 1, False),
    )
}

GOALS = ("goal_pwm", "goal_current", "goal_velocity", "goal_position")
"""what a motor refuses after its watchdog has tripped"""


def angle_of(ticks: np.ndarray) -> np.ndarray:
    """Joint angles [rad] of motor positions [tick], before calibration: pi is straight."""
    return np.asarray(ticks, np.float64) * RAD_PER_TICK - np.pi


def ticks_of(angles: np.ndarray) -> np.ndarray:
    """Motor positions [tick], int64, nearest to joint angles [rad]."""
    return np.rint((np.asarray(angles, np.float64) + np.pi) / RAD_PER_TICK).astype(np.int64)


def error_names(bits: int) -> list[str]:
    """What a hardware error status says."""
    known = [name for bit, name in HARDWARE_ERRORS.items() if bits & (1 << bit)]
    return known or ([f"error {bits}"] if bits else [])

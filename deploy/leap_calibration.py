"""Zero offsets of a LEAP hand's joints, measured once and kept in a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .leap_registers import MOTOR_JOINTS

SCHEMA = "widen.leap_calibration/1"
LARGEST = (
    0.8  # a horn that is further off was mounted wrongly, or the hand is in another pose [rad]
)


def load_calibration(path: str | Path) -> np.ndarray:
    """Offsets (16,) [rad] in the order of motor ids: motor angle minus pi minus joint angle.

    Raises:
        ValueError: there is no such file, or it is no calibration of a LEAP hand.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--calibration {path}: {error.strerror}") from None
    except ValueError:
        data = None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"--calibration {path}: expected a file that widen leap calibrate wrote")
    offsets = data.get("offsets")
    if not isinstance(offsets, dict) or sorted(offsets) != sorted(MOTOR_JOINTS):
        raise ValueError(f"--calibration {path}: expected offsets of {', '.join(MOTOR_JOINTS)}")
    for joint, value in offsets.items():
        sound = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (sound and math.isfinite(value) and abs(value) <= LARGEST):
            raise ValueError(
                f"--calibration {path}: {joint}: expected at most {LARGEST} rad, got {value}"
            )
    return np.array([float(offsets[joint]) for joint in MOTOR_JOINTS])


def save_calibration(path: str | Path, offsets: Mapping[str, float], pose: str) -> None:
    """Write offsets [rad]; see `check_output` for where.

    Args:
        path: a file.
        offsets: joint -> [rad].
        pose: the name of the pose in which they were measured.
    """
    data = {"schema": SCHEMA, "pose": pose, "offsets": {j: offsets[j] for j in MOTOR_JOINTS}}
    file = Path(path)
    new = file.with_name(file.name + ".new")
    new.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    new.replace(file)


def check_output(path: str | Path) -> None:
    """Refuse to write a calibration where something else is.

    Raises:
        ValueError: a folder, a folder that does not exist, or a file that is no calibration.
    """
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{file} is a folder: expected the name of a .json file to write")
    if not file.parent.is_dir():
        raise ValueError(f"{file}: expected an existing folder, got {file.parent}")
    if file.exists():
        try:
            load_calibration(file)
        except ValueError:
            raise ValueError(f"{file} exists and is no calibration: expected a new name") from None

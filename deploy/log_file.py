"""Reading the file that `ControlLog` writes."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .contract import CONTRACT_KEY, Contract

SCHEMA = "widen.log/1"
OTHER = "other"  # interventions that the header does not name
_FORMATS = ("<i8", "<f8", "<i2", "<u8", "<f4")
_LONGEST_HEADER = 1 << 26  # [bytes]


def is_log(path: str | Path) -> bool:
    """Whether a file begins as a log does."""
    mark = f'{{"schema": "{SCHEMA.partition("/")[0]}/'.encode()
    path = Path(path)
    with contextlib.suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return file.read(len(mark)) == mark
    return False


class Identification(NamedTuple):
    """What system identification asks for; rows are cycles in which both are known.

    Times are [s] since the first record, which was not the first measurement: they may begin below
    0, by the age that the first had.
    """

    times: np.ndarray
    """(T,) of the joint positions, increasing"""
    joint_pos: np.ndarray
    """(T, nu) [rad]"""
    control_times: np.ndarray
    """(T,) from which the controls were in force, increasing"""
    controls: np.ndarray
    """(T, nu) joint targets [rad]"""


@dataclass(frozen=True)
class Log:
    """A log that was read; arrays have one row for each cycle.

    Attributes:
        header: as written.
        times: (T,) [s] since the first record.
        arrays: "cycle", "state" and "interventions" (a bit for each name in the header), each
            reading (T, ...) and NAME_age (T,) [s], "asked" and "sent" (T, nu) [rad], "sent_after",
            the time [s] from `times` until the command was out, and "cycle_ms". What was not there
            is not a number.
    """

    path: Path
    header: dict[str, Any]
    times: np.ndarray
    arrays: dict[str, np.ndarray]

    def counts(self) -> dict[str, int]:
        """In how many cycles each intervention was seen, without those that never were."""
        masks = self.arrays["interventions"]
        seen = {
            name: int(((masks >> np.uint64(bit)) & np.uint64(1)).sum())
            for bit, name in enumerate(self.header["interventions"])
        }
        return {name: count for name, count in seen.items() if count}

    def contract(self) -> Contract:
        """Raises ValueError if the header has none that this version can read."""
        text = json.dumps(self.header.get("contract"))
        try:
            return Contract.from_metadata({CONTRACT_KEY: text})
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def identification(self) -> Identification:
        """Joint positions and controls with their times, for `mujoco.sysid` and others.

        Raises:
            ValueError: the log has no cycle with joint positions and a command.
        """
        position, sent = self.arrays["joint_pos"], self.arrays["sent"]
        measured = self.times - self.arrays["joint_pos_age"]
        usable = np.isfinite(position).all(1) & np.isfinite(sent).all(1)
        # a reading that was looked at twice is one measurement, and the first cycle had it
        newest = np.concatenate(([-np.inf], np.maximum.accumulate(measured)[:-1]))
        usable &= measured > newest + 1e-6
        if not usable.any():
            raise ValueError(f"{self.path}: no cycle with joint positions and a command")
        in_force = self.times + self.arrays["sent_after"]
        return Identification(measured[usable], position[usable], in_force[usable], sent[usable])


def read_log(path: str | Path) -> Log:
    """Read a log; an incomplete last record, as a killed process leaves it, is passed over.

    Raises:
        ValueError: no such file, no log, one of a newer version, or a damaged one.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            line = file.readline(_LONGEST_HEADER)
            content = file.read()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    header = _parse_header(path, line)
    try:
        fields = [(name, code, tuple(shape)) for name, code, shape in header["dtype"]]
        if any(code not in _FORMATS for _, code, _ in fields):
            raise ValueError("unknown number format")
        dtype = np.dtype(fields)
        records = np.frombuffer(content[: len(content) // dtype.itemsize * dtype.itemsize], dtype)
        arrays = {str(name): records[name].copy() for name in dtype.names or ()}
        times = arrays.pop("time")
        for name in ("cycle", "state", "interventions", "asked", "sent", "sent_after", "cycle_ms"):
            arrays[name]
        names = [*header["joints"], *header["states"], *header["interventions"]]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("a name is no text")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged header: {' '.join(str(error).split())}") from None
    return Log(path, header, times, arrays)


def _parse_header(path: Path, line: bytes) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: no log of widen; expected a file of widen run --log") from None
    schema = header.get("schema") if isinstance(header, dict) else None
    if not isinstance(schema, str) or not schema.startswith("widen.log/"):
        raise ValueError(f"{path}: no log of widen; expected a file of widen run --log")
    if schema != SCHEMA:
        raise ValueError(f"{path}: schema is {schema!r}, expected {SCHEMA!r}: update widen")
    return header

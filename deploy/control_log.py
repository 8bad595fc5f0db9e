"""Every cycle of a run in one compact file: docs/control-log.md describes it.

The first line is a JSON header, after it come records of one fixed size, a numpy structured dtype
that the header states.
"""

from __future__ import annotations

import json
import math
import queue
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .contract import Contract
from .log_file import OTHER, SCHEMA, is_log
from .robot import Clock, Measurement

PER_JOINT = "joint_"  # readings of these names are in the robot's order of joints
_BUFFERS = 8  # of about a second each: so long may a disk hang
_MOST_NAMES = 63  # bits of a mask, but for OTHER
_FIXED = (("cycle", "<i8"), ("time", "<f8"), ("state", "<i2"), ("interventions", "<u8"))


class ControlLog:
    """Writes a log, one record for every cycle.

    `write` only copies into a buffer; a thread of its own brings full buffers to the disk, about
    once a second. A process that is killed loses no more than that.

    Attributes:
        path: of the file.
        written: records that have reached the file.
        lost: records that have not, because the disk was full, gone or too slow.
        problem: why, in one line, or None.
    """

    def __init__(
        self,
        path: str | Path,
        header: Mapping[str, Any],
        readings: Sequence[tuple[str, tuple[int, ...]]],
        *,
        states: Sequence[str],
        interventions: Sequence[str],
        robot_joints: Sequence[str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Begin a file. A log that is there is replaced, anything else is left alone.

        Args:
            path: of the file.
            header: plain values for JSON; "joints" (names, the order of all that is per joint in
                the file), "control_period" [s], "policy" and "contract" are what readers use.
            readings: name and shape of each.
            states: names of the states, by their codes.
            interventions: names that may come; others count as `OTHER`.
            robot_joints: the robot's own order of joints, in which `write` gets readings whose
                names begin with "joint_"; None where it is that of "joints".
            clock: the robot's, by which `write` notes when a command had been sent; None to note
                that it took no time.

        Raises:
            ValueError: there is no such folder, the file cannot be written or is no log.
        """
        self.path = Path(path)
        joints = list(header["joints"])
        own = list(robot_joints) if robot_joints is not None else joints
        self._order = None if own == joints else [own.index(name) for name in joints]
        self._clock = clock
        self._bits = {name: 1 << i for i, name in enumerate(interventions[:_MOST_NAMES])}
        dtype = _record(len(joints), readings)
        period = float(header.get("control_period", 0.05))
        self._capacity = max(1, min(1000, round(1.0 / period)))
        self._free = [_Buffer(dtype, self._capacity, readings) for _ in range(_BUFFERS)]
        self._buffer = self._free.pop()
        self._full: queue.SimpleQueue[tuple[_Buffer, int] | None] = queue.SimpleQueue()
        self._count, self._begin, self._since = 0, math.nan, 0.0
        self.written = self.lost = 0
        self.problem: str | None = None
        self._file = _create(self.path)
        about = {
            "schema": SCHEMA,
            **header,
            "states": list(states),
            "interventions": [*interventions[:_MOST_NAMES], OTHER],
            "dtype": [[name, *rest] for name, *rest in _describe(dtype)],
        }
        try:
            self._put(json.dumps(about, allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise ValueError(f"--log {path}: cannot be written: {error.strerror}") from None
        self._thread = threading.Thread(target=self._drain, name="log", daemon=True)
        self._thread.start()

    @classmethod
    def of_policy(
        cls,
        path: str | Path,
        name: str,
        contract: Contract,
        *,
        states: Sequence[str],
        interventions: Sequence[str],
        robot_joints: Sequence[str],
        clock: Clock | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> ControlLog:
        """A log of the contract's readings and of currents and temperatures of the joints.

        Args:
            path: of the file.
            name: of the policy, for people.
            contract: the policy's.
            states, interventions, robot_joints, clock: as in the constructor.
            more: further entries of the header, such as the robot's name; "timestep" [s] of a
                simulated robot is what a replay steps by.

        Raises:
            ValueError: as the constructor.
        """
        count = len(contract.joints)
        per_joint = [("joint_current", (count,)), ("joint_temperature", (count,))]
        header = {
            "policy": name,
            "contract": contract.as_dict(),
            "control_period": contract.control_period,
            "joints": list(contract.joints),
            **(more or {}),
        }
        readings = [(r.name, r.shape) for r in contract.readings]
        readings += [item for item in per_joint if item not in readings]
        return cls(
            path,
            header,
            readings,
            states=states,
            interventions=interventions,
            robot_joints=robot_joints,
            clock=clock,
        )

    def write(
        self,
        *,
        cycle: int,
        time: float,
        state: int,
        interventions: Iterable[str] = (),
        readings: Mapping[str, Measurement],
        asked: np.ndarray | None,
        sent: np.ndarray | None,
        cycle_ms: float,
    ) -> None:
        """Note one cycle, right after its command; never waits for the disk, and never minds what
        a reading holds.

        Args:
            cycle: number of the control period.
            time: [s] on the robot's clock when the readings were looked at; the file has the time
                since the first record.
            state: its code.
            interventions: names, of which "bad_reading:joint_pos" is known as "bad_reading" too.
            readings: as the robot gave them; those that the header does not name are passed over.
            asked: joint target (nu,) [rad] that the policy answered, in the order of "joints";
                None where it was not asked.
            sent: joint target (nu,) [rad] that was sent, in the order of "joints"; None if none
                was.
            cycle_ms: from the beginning of the cycle to its command [ms].
        """
        if self.problem is not None:
            self.lost += 1
            return
        delay = self._clock.now() - time if self._clock is not None else 0.0
        if math.isnan(self._begin):
            self._begin = self._since = time
        if self._count == self._capacity or time - self._since >= 1.0:
            self._hand_over()
            self._since = time
        buffer, i = self._buffer, self._count
        buffer.fields["cycle"][i] = cycle
        buffer.fields["time"][i] = time - self._begin
        buffer.fields["state"][i] = state
        buffer.fields["interventions"][i] = self._mask(interventions)
        buffer.fields["cycle_ms"][i] = cycle_ms
        buffer.fields["sent_after"][i] = delay
        _set(buffer.fields["asked"], i, asked)
        _set(buffer.fields["sent"], i, sent)
        for name, values, ages in buffer.readings:
            measured = readings.get(name)
            if measured is None:
                values[i] = ages[i] = math.nan
                continue
            per_joint = self._order is not None and name.startswith(PER_JOINT)
            _set(values, i, measured[0], self._order if per_joint else None)
            ages[i] = time - measured[1]
        self._count += 1

    def close(self) -> None:
        """Bring what is left to the file; safe to call several times."""
        if not self._thread.is_alive() and self._file.closed:
            return
        if self._count:
            self._hand_over()
        self._full.put(None)
        self._thread.join(5.0)
        if self._thread.is_alive():
            self.problem = self.problem or f"{self.path}: the disk does not answer"
            return
        try:
            self._file.close()
        except OSError as error:  # some network file systems tell only now
            self.problem = self.problem or f"{self.path}: {error.strerror or error}"

    def __enter__(self) -> ControlLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _mask(self, interventions: Iterable[str]) -> int:
        mask = 0
        for name in interventions:
            bit = self._bits.get(name)
            if bit is None:
                bit = self._bits.get(name.partition(":")[0], 1 << len(self._bits))
            mask |= bit
        return mask

    def _hand_over(self) -> None:
        """Give the buffer to the thread and take a free one, or the same again if there is none."""
        if self._free:
            self._full.put((self._buffer, self._count))
            self._buffer = self._free.pop()
        else:
            self.lost += self._count
        self._count = 0

    def _drain(self) -> None:
        while (item := self._full.get()) is not None:
            buffer, count = item
            if self.problem is None:
                try:
                    self._put(buffer.records[:count].tobytes())
                    self.written += count
                except OSError as error:
                    self.problem = f"{self.path}: {error.strerror or error}; the log ends here"
            if self.problem is not None:
                self.lost += count
            self._free.append(buffer)

    def _put(self, data: bytes) -> None:
        """All of it; an unbuffered file may take a part only."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


class _Buffer:
    """Records and their columns, so that no write has to look one up."""

    def __init__(
        self, dtype: np.dtype, capacity: int, readings: Sequence[tuple[str, tuple[int, ...]]]
    ) -> None:
        self.records = np.zeros(capacity, dtype)
        self.fields = {name: self.records[name] for name in dtype.names or ()}
        self.readings = [(n, self.fields[n], self.fields[f"{n}_age"]) for n, _ in readings]


def _set(
    column: np.ndarray, row: int, value: np.ndarray | None, order: list[int] | None = None
) -> None:
    """What does not fit is noted as not a number, so that the loop goes on."""
    try:
        if value is not None and np.shape(value) == column.shape[1:]:
            column[row] = value if order is None else np.asarray(value)[order]
            return
    except (TypeError, ValueError):
        pass
    column[row] = math.nan


def _record(joints: int, readings: Sequence[tuple[str, tuple[int, ...]]]) -> np.dtype:
    fields: list[tuple[Any, ...]] = list(_FIXED)
    for name, shape in readings:
        fields += [(name, "<f4", tuple(shape)), (f"{name}_age", "<f4")]
    fields += [("asked", "<f4", (joints,)), ("sent", "<f4", (joints,))]
    fields += [("sent_after", "<f4"), ("cycle_ms", "<f4")]
    return np.dtype(fields)


def _describe(dtype: np.dtype) -> list[tuple[Any, ...]]:
    described = []
    for name in dtype.names or ():
        field = dtype[name]
        described.append((name, field.base.str, list(field.shape)))
    return described


def _create(path: Path) -> Any:
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise ValueError(f"--log {path}: expected the name of a file to write")
    if not path.parent.is_dir():
        raise ValueError(f"--log {path}: expected an existing folder, got {path.parent}")
    try:
        if path.exists() and path.stat().st_size and not is_log(path):
            raise ValueError(f"--log {path} exists and is no log of widen: expected a new name")
        return path.open("wb", buffering=0)
    except OSError as error:
        raise ValueError(f"--log {path}: cannot be written: {error.strerror or error}") from None

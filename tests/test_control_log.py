"""The log of every cycle: what was written is read, whatever ends the writer."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from widen.deploy.control_log import ControlLog
from widen.deploy.log_file import is_log, read_log
from widen.deploy.robot import Measurement

JOINTS = ["a", "b", "c"]
HEADER = {"policy": "still", "joints": JOINTS, "control_period": 0.05}
READINGS = [("joint_pos", (3,)), ("object_pos", (3,)), ("fingertip_pos", (2, 3))]
STATES, NAMES = ("DISARMED", "ACTIVE"), ("joint_limit", "stale_reading", "stale_reading:c")


def open_log(path: Path, **more: Any) -> ControlLog:
    return ControlLog(path, HEADER, READINGS, states=STATES, interventions=NAMES, **more)


def write(log: ControlLog, cycle: int, **change: Any) -> None:
    target = np.arange(3) + 0.001 * cycle
    now = 5000.0 + 0.05 * cycle
    record = {
        "cycle": cycle,
        "time": now,
        "state": 1,
        "interventions": (),
        "readings": {"joint_pos": Measurement(target.astype(np.float32), now - 0.004)},
        "asked": target + 1.0,
        "sent": target + 2.0,
        "cycle_ms": 0.5,
    }
    log.write(**{**record, **change})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path, tips = tmp_path / "run.log", np.arange(6.0).reshape(2, 3)
    with open_log(path) as log:
        for cycle in range(70):
            write(log, cycle)
        write(
            log,
            90,
            state=0,
            interventions=["joint_limit", "stale_reading:joint_pos", "stale_reading:c", "flood"],
            readings={
                "joint_pos": Measurement(np.array([1.0, math.nan, 3.0]), 5000.0),
                "object_pos": Measurement(np.zeros(4), 5004.5),  # of a wrong shape
                "fingertip_pos": Measurement(tips, 5004.25),
                "humidity": Measurement(np.zeros(1), 5004.5),  # not in the header
            },
            asked=None,
            sent=None,
        )
    assert (log.written, log.lost, log.problem) == (71, 0, None)
    found = read_log(path)
    k = np.arange(70)
    np.testing.assert_array_equal(found.arrays["cycle"], [*k, 90])
    np.testing.assert_allclose(found.times, [*(0.05 * k), 4.5], atol=1e-9)
    expected = np.arange(3) + 0.001 * k[:, None]
    for name, offset in (("joint_pos", 0.0), ("asked", 1.0), ("sent", 2.0)):
        np.testing.assert_allclose(found.arrays[name][:70], expected + offset, atol=3e-7)
    np.testing.assert_allclose(found.arrays["joint_pos_age"][:70], 0.004, rtol=1e-4)
    assert np.isnan(found.arrays["object_pos"]).all()
    assert np.isnan(found.arrays["object_pos_age"][:70]).all()
    np.testing.assert_array_equal(found.arrays["joint_pos"][70], [1, math.nan, 3])
    np.testing.assert_array_equal(found.arrays["fingertip_pos"][70], tips)
    assert found.arrays["fingertip_pos_age"][70] == 0.25
    assert np.isnan(found.arrays["asked"][70]).all()
    assert np.isnan(found.arrays["sent"][70]).all()
    np.testing.assert_array_equal(found.arrays["state"], [1] * 70 + [0])
    assert found.counts() == {name: 1 for name in (*NAMES, "other")}
    assert found.header["states"] == list(STATES)
    assert found.header["policy"] == "still"
    # 8 + 8 + 2 + 8 + (3 + 1 + 3 + 1 + 6 + 1 + 3 + 3 + 2) * 4 bytes for each cycle
    size = len(path.read_bytes().split(b"\n")[0]) + 1
    assert path.stat().st_size == size + 71 * 118


def test_a_robot_with_another_order_of_joints(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    with open_log(path, robot_joints=["c", "a", "b"]) as log:
        write(log, 0, readings={
            "joint_pos": Measurement(np.array([3.0, 1.0, 2.0]), 5000.0),
            "object_pos": Measurement(np.array([3.0, 1.0, 2.0]), 5000.0),
        })  # fmt: skip
    found = read_log(path).arrays
    np.testing.assert_array_equal(found["joint_pos"], [[1, 2, 3]])
    np.testing.assert_array_equal(found["object_pos"], [[3, 1, 2]])
    np.testing.assert_array_equal(found["sent"], [[2, 3, 4]])


def test_more_names_than_bits_and_none_at_all(tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(80)]
    path = tmp_path / "run.log"
    with ControlLog(path, HEADER, READINGS, states=STATES, interventions=names) as log:
        write(log, 0, interventions=["n0", "n62"])
        write(log, 1, interventions=["n63", "n79"])
    assert read_log(path).counts() == {"n0": 1, "n62": 1, "other": 1}
    with open_log(path):
        pass
    assert read_log(path).times.shape == (0,)


WRITER = """
import sys, time
import test_control_log as t
from pathlib import Path
log = t.open_log(Path(sys.argv[1]))
began = time.monotonic()
for cycle in range(10**6):
    t.write(log, cycle, time=time.monotonic())
    print(cycle, flush=True)
    time.sleep(0.01)
"""


def test_a_killed_process_loses_a_second_at_most(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    folder = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, **folder},
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    time.sleep(2.5)
    process.send_signal(signal.SIGKILL)
    last = int(process.communicate()[0].split()[-1])
    found = read_log(path)
    np.testing.assert_array_equal(found.arrays["cycle"], np.arange(len(found.times)))
    assert last > 20
    # its capacity is 20 records, a second at its control period; one buffer may be under way
    assert last - 2 * 20 <= found.arrays["cycle"][-1] <= last + 1


def test_an_incomplete_last_record_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    with open_log(path) as log:
        for cycle in range(5):
            write(log, cycle)
    whole = path.read_bytes()
    for cut in (1, 117, 118, 119):
        path.write_bytes(whole[:-cut])
        assert len(read_log(path).times) == (4 if cut <= 118 else 3)


FULL = """
import resource, sys
import test_control_log as t
from pathlib import Path
log = t.open_log(Path(sys.argv[1]))
size = Path(sys.argv[1]).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 2500, resource.RLIM_INFINITY))
import time
for cycle in range(100):
    t.write(log, cycle)
    time.sleep(0.002)
log.close()
print(log.written, log.lost, log.problem)
"""


def test_a_full_disk_ends_the_log_and_not_the_loop(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    folder = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    answer = subprocess.run(
        [sys.executable, "-c", FULL, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, **folder},
        check=True,
    )
    # 21 records fit into 2500 bytes: a whole buffer and one record of the next
    assert answer.stdout.split(" ", 2) == [
        "20",
        "80",
        f"{path}: File too large; the log ends here\n",
    ]
    assert not answer.stderr
    assert len(read_log(path).times) == 21


def test_a_disk_that_hangs_does_not_hold_up_the_loop(tmp_path: Path) -> None:
    log = open_log(tmp_path / "run.log")
    file = log._file

    class Hanging:
        closed = False

        def write(self, data: Any) -> int:
            time.sleep(0.5)
            return file.write(data)

        def close(self) -> None:
            file.close()

    log._file = Hanging()
    began = time.monotonic()
    for cycle in range(400):  # 20 buffers; there are 8
        write(log, cycle)
    assert time.monotonic() - began < 0.45
    log.close()
    assert log.lost >= 200
    assert log.written + log.lost == 400
    cycles = read_log(log.path).arrays["cycle"]
    assert len(cycles) == log.written
    assert (np.diff(cycles) > 0).all()


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("{}")
    for wrong, message in (
        (path, "exists and is no log of widen: expected a new name"),
        (tmp_path, "expected the name of a file to write"),
        (tmp_path / "no" / "run.log", "expected an existing folder"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            open_log(wrong)
        assert str(wrong) in str(error.value)
    assert path.read_text() == "{}"
    assert not is_log(path)
    with open_log(tmp_path / "run.log") as log:
        write(log, 0)
    assert is_log(log.path)
    with open_log(log.path):
        pass
    assert len(read_log(log.path).times) == 0


def test_files_that_are_no_log(tmp_path: Path) -> None:
    with open_log(tmp_path / "run.log") as log:
        write(log, 0)
    header, _, records = log.path.read_bytes().partition(b"\n")
    good = json.loads(header)
    path = tmp_path / "other.log"
    for change, message in (
        ({"schema": "widen.log/2"}, "schema is 'widen.log/2', expected 'widen.log/1'"),
        ({"schema": "widen.pose/1"}, "no log of widen"),
        ({"dtype": [["x", "O", []]]}, "damaged header: unknown number format"),
        ({"dtype": "f4"}, "damaged header"),
        ({"dtype": [["time", "<f8", []]]}, "damaged header: 'cycle'"),
        ({"joints": None}, "damaged header"),
    ):
        path.write_bytes(json.dumps({**good, **change}).encode() + b"\n" + records)
        with pytest.raises(ValueError, match=re.escape(f"{path}: ") + ".*" + re.escape(message)):
            read_log(path)
    for content in (b"", b"\x08\x07pytorch", b"[" * 10000, b"[]\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no log of widen; expected a file of widen run --log"):
            read_log(path)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_log(tmp_path / "none.log")
    with pytest.raises(ValueError, match="contract"):
        read_log(log.path).contract()


def test_what_identification_gets(tmp_path: Path) -> None:
    with open_log(tmp_path / "run.log") as log:
        write(log, 0, sent=None)
        for cycle in range(1, 6):
            # the third was not measured anew
            seen = 2 if cycle == 3 else cycle
            joints = Measurement(np.full(3, float(seen)), 5000.0 + 0.05 * seen - 0.01)
            write(log, cycle, readings={"joint_pos": joints})
        write(log, 6, readings={})
    found = read_log(log.path).identification()
    np.testing.assert_allclose(found.times, [0.04, 0.09, 0.19, 0.24], atol=1e-7)
    np.testing.assert_array_equal(found.joint_pos[:, 0], [1, 2, 4, 5])
    np.testing.assert_allclose(found.control_times, [0.05, 0.1, 0.2, 0.25], atol=1e-7)
    np.testing.assert_allclose(found.controls[:, 0], [2.001, 2.002, 2.004, 2.005], atol=1e-6)
    with open_log(tmp_path / "run.log") as log:
        write(log, 0, sent=None)
    with pytest.raises(ValueError, match="no cycle with joint positions and a command"):
        read_log(log.path).identification()

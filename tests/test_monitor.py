"""What a run shows: exact figures from a hand-written log, in the terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from run_logs import CONFIG, LATENCY, MASS, interval, make, move

from widen.train import progress
from widen.train.monitor import evenly, follow, range_bar, render, snapshot, sparkline
from widen.train.progress import ProgressDisplay, format_count, format_duration, format_value
from widen.train.run_folder import RunFolder


@pytest.fixture
def running(tmp_path):
    return make(tmp_path / "turn", total=10)


@pytest.fixture
def finished(tmp_path):
    return make(tmp_path / "turn", total=3)


def printed(renderable, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_snapshot_of_a_running_run(running):
    state = snapshot(running)
    silent = state.pop("silent_seconds")
    assert 0 <= silent < 60
    assert state == {
        "run": str(running.path),
        "task": "cube_rotate",
        "steps": 3000,
        "iteration": 3,
        "total_iterations": 10,
        "finished": False,
        "seconds": 6.0,
        "seconds_left": 14.0,
        "fps": 12_345.0,
        "npd": -1.5,
        "goals_mean": 12.0,
        "drop_rate": 0.5 / 3,
        "return_mean": 10.0,
        "diverged": 0,
        "diagnosis": None,
        "bounds_moved": 3,
        "last_moves": [
            move(3, "object_mass", "high", 2.0, 3.0),
            move(2, "latency", "high", 0.0, 0.5),
            move(2, "object_mass", "high", 1.0, 2.0),
        ],
        "goals_history": [4.0, 8.0, 12.0],
        "parameters": [
            {**MASS, "low": 1.0, "high": 3.0, "score_low": 12.0, "score_high": 21.5, "moves": 2},
            {**LATENCY, "low": 0.0, "high": 0.5, "score_low": None, "score_high": 18.0, "moves": 1},
        ],
    }
    json.dumps(state, allow_nan=False)


def test_snapshot_of_a_finished_run_and_of_one_that_just_began(finished, tmp_path):
    assert snapshot(finished)["finished"]
    begun = snapshot(RunFolder.create(tmp_path / "begun", CONFIG))
    assert (begun["steps"], begun["npd"], begun["parameters"]) == (0, None, [])
    assert not begun["finished"]
    assert "no interval is complete yet" in printed(render(begun))


@pytest.mark.parametrize(
    ("low", "high", "nominal", "expected"),
    [
        (0.0, 4.0, 1.0, "██┃█████"),
        (1.0, 3.0, 2.0, "──██┃█──"),
        (0.75, 2.75, 2.0, "─▐██┃▌──"),
        (1.0, 1.0, 1.0, "──│─────"),
        (4.0, 4.0, 4.0, "───────│"),
        (3.99, 4.0, 0.0, "│──────▐"),
        (1.0, 1.01, 0.0, "│─▌─────"),
    ],
)
def test_range_bar(low, high, nominal, expected):
    parameter = {"low": low, "high": high, "nominal": nominal, "limit_low": 0.0, "limit_high": 4.0}
    assert range_bar(parameter, 8) == expected


def test_range_bar_without_limits():
    free = {"low": -1.0, "high": 1.0, "nominal": 0.0, "limit_low": None, "limit_high": None}
    assert range_bar(free, 4) == "██┃█"
    assert range_bar({**free, "low": 0.0, "high": 0.0}, 4) == "│───"


def test_sparkline():
    assert sparkline([0, 7, None, 3.5, 1]) == "▁█ ▅▂"
    assert sparkline([0, None, 0]) == "▁ ▁"


def test_evenly_keeps_both_ends():
    assert evenly(3, 5) == [0, 1, 2]
    assert evenly(101, 5) == [0, 25, 50, 75, 100]


def test_terminal_table(running):
    text = printed(render(snapshot(running)))
    assert "iteration 3 of 10  6 s trained, 14 s left" in text
    assert "goals per episode 12 " in text
    assert "drop rate 17 %" in text
    rows = {line.split()[0]: line for line in text.splitlines() if "|" in line}
    assert re.search(r" ─+┃█+─+ +1 … 3 +0 … 4 +× +12 \| 21.5 +2$", rows["object_mass"].rstrip())
    assert re.search(r"┃█+─+ +0 … 0.5 +0 … 2 +steps +– \| 18 +1$", rows["latency"].rstrip())
    assert "object_mass high 2 → 3   score 21.5 over 240 episodes at 3 k steps" in text
    few = printed(render(snapshot(running), rows=1))
    assert "\nobject_mass " in few
    assert "\nlatency" not in few
    assert "and 1 more" in few


def test_terminal_table_fits_a_narrow_terminal(running):
    lines = printed(render(snapshot(running)), width=80).splitlines()
    assert max(len(line) for line in lines) <= 80
    assert any("object_mass" in line and "┃█" in line and "21.5" in line for line in lines)
    state = snapshot(running)
    wide = dict(name="object_pos_noise", unit="control steps", low=-0.03, high=0.06)
    limits = dict(limit_low=-0.5, limit_high=0.5, score_low=16.9, score_high=16.2)
    state["parameters"].append({**state["parameters"][0], **wide, **limits, "nominal": 0.0})
    lines = printed(render(state), width=80).splitlines()
    assert max(len(line) for line in lines) <= 80
    row = next(line for line in lines if "object_pos_noise" in line)
    assert re.search(r" [─█▌▐┃│]{6,} .* 16.9 \| 16.2 +2$", row.rstrip())


def test_a_run_that_fell_silent_says_so(running):
    long_ago = time.time() - 3600
    os.utime(running.adr_log, (long_ago, long_ago))
    assert "nothing new for 1 h 00 min" in printed(render(snapshot(running)), width=300)


def test_nothing_randomised(tmp_path):
    run = RunFolder.create(tmp_path / "none", {"task": "cube_rotate"})
    run.append({**interval(1, 2, (1,) * 4, (1,) * 4), "parameters": []})
    assert "nothing is randomised in this run" in printed(render(snapshot(run)))


def test_follow_prints_once_where_there_is_no_terminal(running):
    console = Console(file=io.StringIO(), width=120)
    follow(running, console)
    assert console.file.getvalue().count("iteration 3 of 10") == 1  # type: ignore[attr-defined]


def test_follow_shows_new_lines_and_stops_with_ctrl_c(running):
    code = (
        "import sys; from widen.train.monitor import follow; "
        "from widen.train.run_folder import RunFolder; follow(RunFolder.open(sys.argv[1]))"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(running.path)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    try:
        _read_until(ours, "iteration 3 of 10")
        running.append(interval(4, 10, (1.0, 3.0, 12.0, 21.5), (0.0, 0.5, None, 18.0)))
        _read_until(ours, "iteration 4 of 10")
        process.send_signal(signal.SIGINT)
        rest = _read_until(ours, "moved last")
        assert process.wait(timeout=20) == 0
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _read_until(descriptor: int, wanted: str) -> str:
    seen = ""
    deadline = time.monotonic() + 20
    while wanted not in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen):
        assert time.monotonic() < deadline, seen
        seen += os.read(descriptor, 65536).decode(errors="replace")
    return seen


def test_progress_in_a_file_is_a_line_every_ten_seconds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=40)
    figures = (1.0, 1.0, None, None), (0.0, 0.0, None, None)
    with ProgressDisplay(4, console) as display:
        display.update(interval(1, 4, *figures, learning_rate=3e-4), [])
        now[0] = 5.0
        display.update(interval(2, 4, *figures), [move(2, "object_mass", "high", 1.0, 1.02)])
        now[0] = 10.0
        display.update(interval(3, 4, *figures), [])
        display.update(interval(4, 4, *figures), [])
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == (
        "iteration 1/4, steps 1 k, steps/s 12.3 k, goals per episode 4, drop rate 50 %, npd –, "
        "learning rate 3.0e-04, time left 6 s"
    )
    assert lines[1] == (
        "iteration 3/4, steps 3 k, steps/s 12.3 k, goals per episode 12, drop rate 17 %, npd -1.5, "
        "time left 2 s, 1 bounds moved, last object_mass high 1 → 1.02"
    )
    assert [line.split(",")[0] for line in lines] == [f"iteration {i}/4" for i in (1, 3, 4)]


def test_progress_on_a_terminal_leaves_standard_output_alone(capsys):
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with ProgressDisplay(4, console) as display:
        display.update(
            interval(3, 4, (1, 2, None, 21), (0, 0, None, None)),
            [move(3, "object_mass", "high", 1.0, 2.0)],
        )
        print('{"json": 1}')
    assert capsys.readouterr().out == '{"json": 1}\n'
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())  # type: ignore[attr-defined]
    assert "iteration 3/4" in shown
    assert "time left 2 s" in shown
    assert "1 bounds moved: object_mass high 1 → 2" in shown


def test_time_left_after_a_resume_is_judged_from_the_recent_pace():
    slow_start = [{"iteration": 1, "seconds": 100.0}, {"iteration": 11, "seconds": 110.0}]
    assert progress.seconds_left(slow_start, 20) == 9.0
    assert progress.seconds_left([{"iteration": 50, "seconds": 25.0}], 100) == 25.0
    assert progress.seconds_left([], 100) is None


def test_how_figures_are_written():
    assert [format_duration(s) for s in (None, 0, 59.6, 200, 18_120)] == [
        "–", "0 s", "1 min 00 s", "3 min 20 s", "5 h 02 min",
    ]  # fmt: skip
    assert [format_count(n) for n in (950, 999.7, 13_412, 999_600, 2_050_000, 3e9)] == [
        "950", "1 k", "13.4 k", "1 M", "2.05 M", "3 G",
    ]  # fmt: skip
    assert [format_value(v) for v in (None, float("nan"), 0, -1.2345, 0.00012345, 12_345)] == [
        "–", "–", "0", "-1.23", "0.000123", "12345",
    ]  # fmt: skip

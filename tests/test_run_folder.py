"""The run folder: what it refuses, what it records, and a log that survives a crash."""

from __future__ import annotations

import json
import math
import platform

import mujoco
import numpy as np
import pytest
import torch
import yaml

from widen.train.run_folder import LogReader, RunFolder, default_path, read_log

CONFIG = {"task": "cube_rotate", "seed": 7, "sim": {"substeps": 3}}


def interval(iteration: int) -> dict:
    return {"kind": "interval", "iteration": iteration, "steps": 100 * iteration}


def move(iteration: int) -> dict:
    return {"kind": "move", "iteration": iteration, "steps": 100 * iteration, "name": "object_mass"}


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "runs" / "first", CONFIG)


def test_create_writes_config_and_environment(run):
    assert yaml.safe_load(run.config.read_text()) == CONFIG
    assert run.read_config() == CONFIG
    recorded = json.loads(run.environment.read_text())
    assert recorded["seed"] == 7
    assert recorded["versions"]["python"] == platform.python_version()
    assert recorded["versions"]["mujoco"] == mujoco.__version__
    assert recorded["versions"]["torch"] == torch.__version__
    assert recorded["versions"]["numpy"] == np.__version__
    assert recorded["cpu_count"] >= 1
    assert recorded["cpu_model"]
    assert run.checkpoints.is_dir()
    assert RunFolder.open(run.path) == run


def test_create_refuses_what_is_not_empty(tmp_path, run):
    with pytest.raises(ValueError, match="first exists and is not empty"):
        RunFolder.create(run.path, {"task": "other"})
    assert run.read_config() == CONFIG
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="a file is in its place"):
            RunFolder.create(path, CONFIG)
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    RunFolder.create(tmp_path / "empty", CONFIG)


def test_open_names_the_nearest_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as nothing:
        RunFolder.open("runs/cube")
    assert str(nothing.value) == "runs/cube is not a run folder: expected runs/cube/config.yaml"
    for name in ("cube_rotate-1", "fingertip_reach-1"):
        RunFolder.create(f"runs/{name}", CONFIG)
    with pytest.raises(ValueError, match=r"did you mean runs/cube_rotate-1\?$"):
        RunFolder.open("runs/cube_rotat-1")
    with pytest.raises(ValueError, match=r"did you mean runs/.* or runs/"):
        RunFolder.open("qqqqqqqq")


def test_a_config_that_is_none(run):
    run.config.write_text("a: [1")
    with pytest.raises(ValueError, match=r"config\.yaml: expected YAML, got: [^\n]*$"):
        run.read_config()
    run.config.write_text("just words")
    with pytest.raises(ValueError, match=r"config\.yaml: expected a mapping, got str"):
        run.read_config()


def test_default_path_begins_with_the_task():
    assert default_path("cube_rotate").parts[0] == "runs"
    assert default_path("cube_rotate").name.startswith("cube_rotate-2")


def test_log_without_a_file_is_empty(run):
    log = read_log(run.adr_log)
    assert (log.intervals, log.moves) == ([], [])


def test_what_is_appended_is_read_back(run):
    run.append(move(1), interval(1))
    run.append(interval(2))
    log = read_log(run.adr_log)
    assert log.intervals == [interval(1), interval(2)]
    assert log.moves == [move(1)]
    assert run.adr_log.read_bytes().count(b"\n") == 3


def test_figures_of_numpy_and_what_is_not_finite(run):
    run.append(
        {
            **interval(1),
            "npd": -math.inf,
            "goals_mean": np.float32("nan"),
            "drop_rate": np.float64(0.25),
            "parameters": [{"low": np.float32(0.5), "score_low": math.nan}],
        }
    )
    line = read_log(run.adr_log).intervals[0]
    assert line["npd"] is None
    assert line["goals_mean"] is None
    assert line["drop_rate"] == 0.25
    assert line["parameters"] == [{"low": 0.5, "score_low": None}]


def test_a_torn_last_line_is_left_out(run):
    run.append(interval(1), interval(2))
    whole = run.adr_log.read_bytes()
    last = whole.splitlines(keepends=True)[1]
    for cut in range(1, len(last) + 1):
        run.adr_log.write_bytes(whole[:-cut])
        assert read_log(run.adr_log).intervals == [interval(1)]


def test_a_damaged_line_is_named(run):
    for damage in (
        '{"kind":"inter\n',
        "[1]\n",
        '{"kind":"other","steps":1}\n',
        '{"kind":"move"}\n',
    ):
        run.adr_log.write_text(damage)
        with pytest.raises(
            ValueError, match=r"adr\.jsonl: expected an interval, a move or a diagnosis"
        ):
            read_log(run.adr_log)


def test_rewind_drops_later_lines_and_the_torn_one(run):
    run.append(move(1), interval(1), move(2), interval(2), move(3), interval(3))
    with run.adr_log.open("a") as file:
        file.write('{"kind":"interval","ite')
    run.rewind(200)
    log = read_log(run.adr_log)
    assert log.intervals == [interval(1), interval(2)]
    assert log.moves == [move(1), move(2)]
    run.append(interval(3))  # not glued to what was torn
    assert read_log(run.adr_log).intervals[-1] == interval(3)
    assert sorted(path.name for path in run.path.iterdir()) == [
        "adr.jsonl",
        "checkpoints",
        "config.yaml",
        "environment.json",
    ]


def test_rewind_before_the_first_line_and_without_a_log(run):
    run.rewind(0)
    assert not run.adr_log.exists()
    run.append(interval(1))
    run.rewind(0)
    assert run.adr_log.read_bytes() == b""


def test_reader_follows_a_log_through_half_lines_and_a_rewind(run):
    reader = LogReader(run.adr_log)
    assert not reader.poll()
    run.append(interval(1), move(2), interval(2))
    assert reader.poll()
    assert not reader.poll()
    line = json.dumps(interval(3)) + "\n"
    with run.adr_log.open("a") as file:
        file.write(line[:20])
        file.flush()
        assert not reader.poll()
        file.write(line[20:])
    assert reader.poll()
    assert [each["iteration"] for each in reader.log.intervals] == [1, 2, 3]

    # The resumed run may have written more than was there before the reader looks again.
    run.rewind(100)
    run.append(*(interval(iteration) for iteration in range(2, 30)))
    assert reader.poll()
    assert [each["iteration"] for each in reader.log.intervals] == list(range(1, 30))
    assert reader.log.moves == []

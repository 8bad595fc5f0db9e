"""A disk without room ends a run in one line, and what was good stays."""

from __future__ import annotations

import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from command_line import SMALL, widen
from same_runs import assert_equal, log, newest
from stable_baselines3.common.logger import Logger

from widen.train import runner
from widen.train.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from widen.train.events import events_logger, told_once
from widen.train.files import append_whole, write_whole
from widen.train.run_folder import RunFolder

CONFIG = {
    **SMALL,
    "env": {"num_envs": 8, "episode_seconds": 1},
    "ppo": {"steps": 8, "iterations": 6, "epochs": 2, "minibatches": 2, "threads": 1},
    "checkpoint": {"every": 1, "keep": 9},
    "evaluation": {"episodes": 2},
}


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: a write takes what fits, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    with room(1000), pytest.raises(OSError) as error:
        write_whole(path, bytes(5000))
    assert (error.value.filename, error.value.strerror) == (str(path), "File too large")
    assert (path.read_bytes(), names(tmp_path)) == (b"old", ["file"])
    with pytest.raises(OSError, match="No such file"):
        write_whole(tmp_path / "missing" / "file", b"")


def test_lines_are_added_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    append_whole(path, b"one\n")
    with room(8), pytest.raises(OSError, match="File too large") as error:
        append_whole(path, b"two\nthree\n")
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"one\n"
    append_whole(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize("size", [0, 100, 700])
def test_a_run_that_cannot_begin_leaves_nothing(tmp_path: Path, size: int) -> None:
    """environment.json finds no room, or config.yaml."""
    config = {"seed": 1, "long": "x" * 5000}
    with room(size), pytest.raises(OSError, match=r"File too large: .*(environment|config)\."):
        RunFolder.create(tmp_path / "run", config)
    assert names(tmp_path) == ["run"]
    RunFolder.create(tmp_path / "run", config)  # nothing is in the way


def test_a_checkpoint_without_room_leaves_the_last_one(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    first = save_checkpoint(run, {"steps": 1, "x": 1}, keep=1)
    for size in (0, 100, 30_000):  # torch's own words depend on where it is cut
        with room(size), pytest.raises(OSError, match=r"File too large: .*000000000002\.pt"):
            save_checkpoint(run, {"steps": 2, "x": "y" * 100_000}, keep=1)
        assert list_checkpoints(run) == [first]
        assert load_checkpoint(first)["x"] == 1
    assert not list(run.checkpoints.glob("*.tmp"))


def test_events_without_room_name_their_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with told_once(), room(3000):
        logger = events_logger(tmp_path)

        def write() -> None:
            for step in range(1000):
                for tag in range(40):
                    logger.record(f"tag/{tag}", 1.0)
                logger.dump(step)

        with pytest.raises(OSError, match="File too large") as error:
            write()
    assert error.value.filename == str(tmp_path)
    assert capfd.readouterr().err == ""  # nor a traceback of TensorBoard's thread


def test_what_is_in_the_way_of_a_folder(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    run = tmp_path / "run"
    assert widen("train", config, "ppo.iterations=1", "--run-dir", run).code == 0
    for name in ("tensorboard", "checkpoints"):
        shutil.rmtree(run / name)
        (run / name).write_text("mine")
        answer = widen("train", config, "--run-dir", run, "--resume")
        assert answer.code == 2
        assert answer.err.splitlines()[-1].startswith(f"error: {run}/{name}")
        (run / name).unlink()
        (run / name).mkdir()
    (run / "policy.onnx").unlink()
    (run / "policy.onnx" / "below").mkdir(parents=True)
    answer = widen("train", config, "--run-dir", run, "--resume")
    assert answer.code == 2
    assert answer.err.splitlines()[-1].startswith(f"error: {run}/policy.onnx: cannot be written")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    answer = widen("train", folder / "config.yaml", "--run-dir", folder / "whole")
    assert answer.code == 0, answer.err
    return folder / "whole"


def may_mount() -> bool:
    """Whether a process may have a small disk of its own, in name spaces of its own."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    trial = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(trial, capture_output=True).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="needs Linux and a name space of its own")
def test_a_full_disk_ends_a_run_and_with_room_it_goes_on_exactly(
    whole: Path, tmp_path: Path
) -> None:
    """A real disk, with room for two checkpoints and a half."""
    one = max(path.stat().st_size for path in whole.glob("checkpoints/*.pt"))
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    widen_command = shlex.join([sys.executable, "-m", "widen.train"])
    script = f"""
        mount -t tmpfs -o size={int(2.5 * one) + 40_000} tmpfs {disk} || exit 99
        {widen_command} {whole}/config.yaml --run-dir {disk}/run 2> {kept}/errors
        echo $? > {kept}/code; cp -r {disk}/run {kept}/failed
        mount -o remount,size=100m {disk}
        {widen_command} {disk}/run/config.yaml --run-dir {disk}/run --resume && cp -r {disk}/run {kept}
    """
    command = ["unshare", "-rm", "bash", "-c", script]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    assert (kept / "code").read_text() == "2\n"
    *_, last = (kept / "errors").read_text().splitlines()
    failed = sorted(path.name for path in (kept / "failed" / "checkpoints").iterdir())
    assert failed == ["000000000064.pt", "000000000128.pt"]
    assert f"error: {disk}/run/checkpoints/000000000192.pt: No space left on device; " in last
    assert f"the last checkpoint is {disk}/run/checkpoints/000000000128.pt; " in last
    assert "Traceback" not in (kept / "errors").read_text()
    expected = load_checkpoint(whole / "checkpoints" / "000000000128.pt")
    assert_equal(load_checkpoint(kept / "failed" / "checkpoints" / failed[-1]), expected)
    assert log(kept / "run") == log(whole)
    assert_equal(newest(kept / "run"), newest(whole))


@pytest.mark.parametrize("name", ["tensorboard", "adr.jsonl"])
def test_a_log_without_room_ends_a_run_and_it_goes_on_exactly(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Before the first checkpoint, so it goes on from its beginning."""
    run = tmp_path / "run"
    if name == "adr.jsonl":  # the events would be the first to find no room
        monkeypatch.setattr(runner, "events_logger", lambda folder: Logger(None, []))
    size = (whole / "adr.jsonl").stat().st_size - 100
    with room(size):
        failed = widen("train", whole / "config.yaml", "--run-dir", run, "checkpoint.every=9")
    assert failed.code == 2
    problem, kept, how = failed.err.splitlines()[-1].split("; ")
    assert problem == f"error: {run}/{name}: File too large"
    assert kept == "there is no checkpoint yet"
    lines = log(run)
    assert 0 < len(lines) < len(log(whole))
    assert lines == log(whole)[: len(lines)]
    command = how.partition("go on with: widen ")[2]
    assert widen(*shlex.split(command)).code == 0
    assert log(run) == log(whole)
    assert_equal(newest(run), newest(whole) | {"config": newest(run)["config"]})

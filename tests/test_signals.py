"""Ctrl-C and SIGTERM at any moment leave a run that goes on as if nothing had happened."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import signal_at
import yaml
from command_line import SMALL, widen
from same_runs import assert_equal, log, newest

from widen.train.ranks import Ranks
from widen.train.signals import Stopped, stop_at_once, stop_when_saved

# the signal comes in the second of five iterations at the latest, checkpoints after the second
CONFIG = {
    **SMALL,
    "env": {"num_envs": 8, "episode_seconds": 1},
    "ppo": {"steps": 8, "iterations": 5, "epochs": 2, "minibatches": 2, "threads": 1},
    "checkpoint": {"every": 2, "keep": 9},
    "evaluation": {"episodes": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("signals")
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    assert widen("train", path / "config.yaml", "--run-dir", path / "whole").code == 0
    return path


def interrupted(folder: Path, moment: str, signals: str) -> tuple[int, list[str], Path]:
    """Exit code and stderr's lines of a training in a process of its own, and its run."""
    run = folder / f"{moment} {signals}"
    command = [sys.executable, signal_at.__file__, moment, signals]
    command += ["train", str(folder / "config.yaml"), "--run-dir", str(run)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return answer.returncode, answer.stderr.splitlines(), run


@pytest.mark.parametrize(
    ("moment", "signals", "saved"),
    [
        ("folder", "SIGTERM", 0),
        pytest.param("first rollout", "SIGINT", 1, marks=pytest.mark.slow),
        # torchrun repeats a terminal's signal at once; only a second one later is impatience
        ("rollout", "SIGINT,SIGTERM,SIGINT", 2),
        pytest.param("rollout", "SIGTERM,1.2,SIGTERM", 2, marks=pytest.mark.slow),
        pytest.param("update", "SIGINT", 2, marks=pytest.mark.slow),
        pytest.param("checkpoint", "SIGTERM", 3, marks=pytest.mark.slow),
        ("export", "SIGTERM", 5),
        pytest.param("evaluation", "SIGINT", 5, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_stopped_goes_on_exactly(
    folder: Path, moment: str, signals: str, saved: int
) -> None:
    """saved: iterations in its last checkpoint."""
    code, errors, run = interrupted(folder, moment, signals)
    assert code == 128 + getattr(signal, signals.split(",")[0])
    assert not any("Traceback" in line for line in errors)
    said, _, command = errors[-1].partition("; go on with: widen ")
    assert said == "interrupted"
    steps = [int(path.stem) // 64 for path in run.glob("checkpoints/*.pt")]
    assert max(steps, default=0) == saved
    assert not list(run.glob("checkpoints/*.tmp"))
    assert not (run / "policy.onnx").exists() or moment == "evaluation"
    answer = widen(*shlex.split(command))
    assert answer.code == 0, answer.err
    assert log(run) == log(folder / "whole")
    assert_equal(newest(run), newest(folder / "whole"))
    assert (run / "policy.onnx").is_file()


def test_a_second_ctrl_c_ends_it_at_once(folder: Path) -> None:
    code, errors, run = interrupted(folder, "rollout", "SIGINT,1.2,SIGINT")
    assert code == 130
    assert errors[-1].startswith("interrupted; go on with: widen train ")
    assert not list(run.glob("checkpoints/*.pt"))


def test_before_there_is_a_folder_nothing_is_left(folder: Path) -> None:
    code, errors, run = interrupted(folder, "environments", "SIGTERM")
    assert (code, errors) == (143, ["interrupted"])
    assert not run.exists()


def test_a_run_without_a_checkpoint_is_of_one_config_too(folder: Path) -> None:
    run = folder / "empty"
    widen("train", folder / "config.yaml", "ppo.iterations=1", "--run-dir", run)
    for path in run.glob("checkpoints/*.pt"):
        path.unlink()
    (run / "policy.onnx").unlink()  # which only a finished run has
    arguments = ("train", folder / "config.yaml", "--run-dir", run, "--resume")
    refused = widen(*arguments, "seed=5")
    assert refused.code == 2
    assert f"{run}/config.yaml: of another config: seed is 0 there and 5 here" in refused.err
    assert widen(*arguments).code == 0
    assert log(run) == log(folder / "whole")


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_at_once():
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
        with stop_when_saved(ranks := Ranks()):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
        assert ranks.stop_requested == signal.SIGTERM
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before

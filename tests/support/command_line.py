"""The command line in this process, and a run small enough for a test."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from widen.train import cli

SMALL = {
    "task": "fingertip_reach",
    "env": {"num_envs": 16, "episode_seconds": 2},
    "sim": {"threads": 1},
    "ppo": {"steps": 4, "iterations": 3, "threads": 1},
    "policy": {"hidden": [16]},
    "evaluation": {"episodes": 4},
    "randomization": {
        "curriculum": "uniform",
        "parameters": {"joint_damping": {}, "joint_noise": {"range": [0.0, 0.01]}},
    },
}


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def widen(*arguments: str | Path) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(argument) for argument in arguments])
    return Answer(code, out.getvalue(), err.getvalue())


def answer_of(*arguments: str | Path) -> Any:
    """The JSON of a command that must succeed; nothing else may stand on stdout."""
    answer = widen(*arguments, "--json")
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def small_run(folder: Path) -> Path:
    """A finished run of two iterations in a folder of its own."""
    config = {**SMALL, "ppo": {"steps": 4, "iterations": 2, "threads": 1}}
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    return Path(answer_of("train", folder / "small.yaml", "--run-dir", folder / "run")["run"])

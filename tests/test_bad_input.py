"""Users' mistakes through the command line: one line, exit code 2, nothing written."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
import torch
import yaml
from onnx import TensorProto, helper

from widen.train import cli

SMALL = {
    "task": "fingertip_reach",
    "env": {"num_envs": 8, "episode_seconds": 1},
    "sim": {"threads": 1},
    "ppo": {"steps": 4, "iterations": 1, "threads": 1},
    "policy": {"hidden": [8]},
    "evaluation": {"episodes": 2},
}


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def widen(*arguments: str) -> Answer:
    """A command in this process; a traceback would come out as an exception."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(arguments)
    return Answer(code, out.getvalue(), err.getvalue())


def snapshot(folder: Path) -> dict[str, str]:
    """Every path below a folder, and what the files hold."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small.yaml and a finished run `run` of it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    before = os.getcwd()
    os.chdir(folder)
    try:
        answer = widen("train", "small.yaml", "--run-dir", "run", "--json")
    finally:
        os.chdir(before)
    assert answer.code == 0, answer.err
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: small.yaml, run, and files that are not what they seem."""
    folder = tmp_path / "here"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for name, text in {
        "empty.yaml": "",
        "comment.yaml": "# nothing\n",
        "list.yaml": "- task\n- hand\n",
        "syntax.yaml": "env: {num_envs: 8\nppo: 3\n",
        "twice.yaml": "seed: 1\nseed: 2\n",
        "nested_twice.yaml": "env: {history: 1, history: 2}\n",
        "strange_key.yaml": "? [a, b]\n: 1\n",
        "number_key.yaml": "3: 4\n",
        "circle_a.yaml": "base: circle_b.yaml\n",
        "circle_b.yaml": "base: circle_a.yaml\n",
        "orphan.yaml": "base: parent.yaml\n",
        "orphan_shipped.yaml": "base: quickstrat\n",
        "odd_base.yaml": "base: [quickstart]\n",
        "tagged.yaml": "task: !!python/object/apply:os.getcwd []\n",
        "notes.txt": "not a film, not a page, not a policy\n",
        "notes.mp4": "not a film\n",
        "notes.onnx": "not a policy\n",
        "empty.onnx": "",
        "broken_hand.xml": "<mujoco><worldbody>",
        "my_robot.py": "class Hand:\n    joint_names = ()\n\nclass Broken:\n    def __init__(self):\n"
        "        raise OSError('no such port')\n",
    }.items():
        (folder / name).write_text(text)
    (folder / "latin.yaml").write_bytes("task: h\xe4nd\n".encode("latin-1"))
    (folder / "folder").mkdir()
    (folder / "folder.yaml").mkdir()
    (folder / "folder.onnx").mkdir()
    return folder


class Case(NamedTuple):
    """A command line, words that the error must contain, and what to prepare."""

    line: str
    words: tuple[str, ...]
    prepare: Callable[[Path], object] = lambda folder: None


def only_checkpoint(folder: Path) -> Path:
    (path,) = (folder / "run" / "checkpoints").glob("*.pt")
    return path


def truncate(folder: Path) -> None:
    path = only_checkpoint(folder)
    path.write_bytes(path.read_bytes()[:1000])


class Evil:
    """Touches a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (open, ("touched", "w"))


def booby_trap(folder: Path) -> None:
    torch.save({"schema": "widen.checkpoint/1", "config": Evil()}, only_checkpoint(folder))


def plain_pickle(folder: Path) -> None:
    only_checkpoint(folder).write_bytes(pickle.dumps(Evil()))


def change_checkpoint(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = only_checkpoint(folder)
        state = torch.load(path, weights_only=True)
        torch.save({**state, **changes}, path)

    return change


def no_checkpoint(folder: Path) -> None:
    only_checkpoint(folder).unlink()


def change_config(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "run" / "config.yaml").write_text(text)


def seed_in_run_config(folder: Path) -> None:
    path = folder / "run" / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "seed": 5}))


def foreign_onnx(folder: Path) -> None:
    """A sound ONNX file that is nobody's policy."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [value], [answer])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "foreign.onnx")


def newer_onnx(folder: Path) -> None:
    model = onnx.load(folder / "run" / "policy.onnx")
    for entry in model.metadata_props:
        entry.value = entry.value.replace("widen.policy/2", "widen.policy/99")
    onnx.save(model, folder / "newer.onnx")


def cut_onnx(folder: Path) -> None:
    content = (folder / "run" / "policy.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(content[: len(content) // 2])


def damage_log(folder: Path) -> None:
    (folder / "run" / "adr.jsonl").write_text('{"kind": "gossip"}\n')


TRAIN = "train small.yaml --run-dir new "
RESUME = "train small.yaml --run-dir run --resume "
MASS = "task=cube_rotate randomization.parameters.object_mass"
CASES = [
    # the command line itself
    Case("trian quickstart", ("trian", "train")),
    Case("train small.yaml --resum", ("--resum", "--resume")),
    Case("--verson", ("--verson", "--version")),
    Case("train", ("CONFIG",)),
    Case("list tsks", ("tsks", "tasks")),
    Case("list tasks more", ("more",)),
    Case("eval run --episodes many", ("--episodes",)),
    Case("eval run --episodes", ("--episodes",)),
    # the file of a config
    Case("train quickstrat", ("quickstrat", "quickstart")),
    Case("train missing.yaml", ("missing.yaml", "no such file")),
    Case("train folder.yaml", ("folder.yaml",)),
    Case("train empty.yaml", ("empty.yaml", "keys and values")),
    Case("train comment.yaml", ("comment.yaml", "keys and values")),
    Case("train list.yaml", ("list.yaml", "keys and values")),
    Case("train syntax.yaml", ("syntax.yaml", "not YAML", "line 2")),
    Case("train twice.yaml", ("twice.yaml", "'seed'", "line 2")),
    Case("train nested_twice.yaml", ("'history'", "twice")),
    Case("train strange_key.yaml", ("strange_key.yaml", "line 1")),
    Case("train number_key.yaml", ("number_key.yaml",)),
    Case("train latin.yaml", ("latin.yaml",)),
    Case("train tagged.yaml", ("tagged.yaml", "python/object")),
    Case("train circle_a.yaml", ("circle", "circle_b.yaml")),
    Case("train orphan.yaml", ("parent.yaml", "no such file")),
    Case("train orphan_shipped.yaml", ("quickstrat", "quickstart")),
    Case("train odd_base.yaml", ("odd_base.yaml", "base")),
    # overrides
    Case(TRAIN + "ppo.iterations", ("ppo.iterations", "key=value")),
    Case(TRAIN + "=3", ("=3", "key=value")),
    Case(TRAIN + "task.name=x", ("task", "not a group")),
    Case(TRAIN + "seed=[1", ("seed=[1", "YAML")),
    # misspelt keys at every level
    Case(TRAIN + "tsk=cube_rotate", ("tsk", "task")),
    Case(TRAIN + "env.num_env=8", ("env.num_env:", "num_envs")),
    Case(TRAIN + "sim.thread=1", ("sim.thread:", "threads")),
    Case(TRAIN + "ppo.iteration=3", ("ppo.iteration:", "iterations")),
    Case(TRAIN + "policy.hiden=[8]", ("policy.hiden", "hidden")),
    Case(TRAIN + "checkpoint.evry=1", ("checkpoint.evry", "every")),
    Case(TRAIN + "evaluation.episode=1", ("evaluation.episode:", "episodes")),
    Case(TRAIN + "randomization.curiculum=adr", ("curiculum", "curriculum")),
    Case(TRAIN + "randomization.adr.bufer=9", ("randomization.adr.bufer", "buffer")),
    Case(
        TRAIN + "randomization.parameters.gravty={}",
        ("randomization.parameters:", "gravty", "gravity"),
    ),
    Case(TRAIN + MASS + ".stp=1", ("object_mass.stp", "step")),
    Case(TRAIN + "env.rewards.gaol=1", ("env.rewards.gaol", "goal")),
    # wrong types and values
    Case(TRAIN + "env.num_envs=many", ("env.num_envs", "integer", "'many'")),
    Case(TRAIN + "env.num_envs=1.5", ("env.num_envs", "integer", "1.5")),
    Case(TRAIN + "env.num_envs=-1", ("env.num_envs", "-1")),
    Case(TRAIN + "env.history=0", ("env.history", "0")),
    Case(TRAIN + "env.control_hz=0", ("env.control_hz", "0")),
    Case(TRAIN + "env.rewards.goal=high", ("env.rewards.goal", "'high'")),
    Case(TRAIN + "ppo.learning_rate=fast", ("ppo.learning_rate", "'fast'")),
    Case(TRAIN + "ppo.learning_rate=0.5", ("ppo.learning_rate 0.5", "learning_rate_max")),
    Case(TRAIN + "ppo.minibatches=7", ("ppo.minibatches", "7", "8")),
    Case(TRAIN + "ppo=5", ("ppo", "5")),
    Case(TRAIN + "policy.hidden=64", ("policy.hidden", "64")),
    Case(TRAIN + "policy.type=lstn", ("policy.type", "'lstn'", "mlp")),
    Case(TRAIN + "seed=-1", ("seed", "-1")),
    Case(TRAIN + "task=[cube_rotate]", ("task", "string")),
    Case(TRAIN + "sim.njmax=-1", ("sim.njmax", "-1", "0")),
    Case(TRAIN + "sim.backend=gpu", ("sim.backend", "'gpu'", "cpu")),
    Case(TRAIN + "randomization.curriculum=add", ("randomization.curriculum", "'add'", "adr")),
    # names
    Case(TRAIN + "task=cube_rotat", ("task", "cube_rotat", "cube_rotate")),
    Case(TRAIN + "hand=laep", ("hand", "laep", "leap")),
    Case(TRAIN + "hand=missing.xml", ("missing.xml", "no such file")),
    Case(TRAIN + "hand=broken_hand.xml", ("broken_hand.xml", "compile")),
    Case(TRAIN + "object=cube", ("object", "fingertip_reach")),
    Case(TRAIN + "task=cube_rotate object=cbue", ("object", "cbue", "cube")),
    # randomization
    Case(
        TRAIN + MASS + ".limits=[2,0.5]",
        ("randomization.parameters.object_mass.limits", "[2, 0.5]", "upside down"),
    ),
    Case(TRAIN + MASS + ".range=[2,1]", ("object_mass.range", "[2, 1]", "upside down")),
    Case(TRAIN + MASS + ".limits=[1.5,2]", ("object_mass.limits", "nominal", "1")),
    Case(TRAIN + MASS + ".limits=[0.5,99]", ("object_mass.limits", "99", "beyond")),
    Case(TRAIN + MASS + ".limits=[1,2,3]", ("object_mass.limits",)),
    Case(TRAIN + MASS + ".step=-1", ("object_mass.step", "-1")),
    Case(
        TRAIN + "randomization.curriculum=adr randomization.parameters.object_mass={}",
        ("object_mass", "no object"),
    ),
    Case(
        TRAIN + "randomization.adr.widen_at=3 randomization.adr.narrow_at=4",
        ("randomization.adr.narrow_at", "4"),
    ),
    # run folders and checkpoints
    Case("train small.yaml --run-dir run", ("run", "exists", "--resume")),
    Case("train small.yaml --run-dir notes.txt", ("notes.txt", "file")),
    Case("train small.yaml --run-dir notes.txt/new", ("notes.txt", "file")),
    Case("train small.yaml --resume", ("--resume", "--run-dir")),
    Case("train small.yaml --run-dir folder --resume", ("folder", "not a run folder")),
    Case("train small.yaml --run-dir rnu --resume", ("rnu", "not a run folder")),
    Case(RESUME + "seed=5", ("another config", "seed", "0", "5")),
    Case(RESUME, ("checkpoint", "damaged"), truncate),
    Case(RESUME, ("checkpoint", "damaged", "tensors"), booby_trap),
    Case(RESUME, ("checkpoint", "damaged", "tensors"), plain_pickle),
    Case(RESUME, ("no checkpoint",), no_checkpoint),
    Case(RESUME, ("widen.checkpoint/0",), change_checkpoint(schema="widen.checkpoint/0")),
    Case(RESUME, ("checkpoint", "version"), change_checkpoint(ppo={})),
    Case(RESUME, ("checkpoint", "config"), change_checkpoint(config=None)),
    Case("eval run", ("another config", "seed"), seed_in_run_config),
    Case("eval run", ("checkpoint", "damaged"), truncate),
    Case("eval run", ("config.yaml", "mapping"), change_config("- a\n")),
    Case("eval run", ("config.yaml", "tsk", "task"), change_config("tsk: cube_rotate\n")),
    Case("eval folder", ("folder", "not a run folder")),
    Case("eval run --episodes 0", ("--episodes", "0")),
    Case("eval run --randomization currant", ("currant", "current")),
    Case("exam folder", ("folder", "not a run folder")),
    Case("exam run --conditions motor_ded", ("motor_ded", "motor_dead")),
    # the monitor
    Case("monitor folder --once", ("folder", "not a run folder")),
    Case("monitor missing", ("missing", "not a run folder")),
    Case("monitor run --once", ("adr.jsonl", "gossip"), damage_log),
    Case("monitor run --html notes.txt", ("notes.txt", "exists")),
    Case("monitor run --html folder", ("folder",)),
    Case("monitor run --html nowhere/page.html", ("nowhere",)),
    # export
    Case("export run -o out.onnx", ("no checkpoint",), no_checkpoint),
    Case("export run -o nowhere/out.onnx", ("nowhere",)),
    Case("export run -o notes.txt", ("notes.txt", "exists")),
    Case("export run -o folder", ("folder",)),
    Case("export folder", ("folder", "not a run folder")),
    # policies
    Case("verify missing.onnx", ("missing.onnx",)),
    Case("verify folder.onnx", ("folder.onnx",)),
    Case("verify notes.onnx", ("notes.onnx",)),
    Case("verify empty.onnx", ("empty.onnx",)),
    Case("verify cut.onnx", ("cut.onnx",), cut_onnx),
    Case("verify foreign.onnx", ("foreign.onnx", "contract"), foreign_onnx),
    Case("verify newer.onnx", ("newer.onnx", "widen.policy/99", "newer"), newer_onnx),
    Case("eval notes.onnx", ("notes.onnx",)),
    Case("eval notes.txt", ("notes.txt",)),
    Case("play foreign.onnx", ("foreign.onnx", "contract"), foreign_onnx),
    Case("run foreign.onnx --robot sim", ("foreign.onnx", "contract"), foreign_onnx),
    # robots
    Case("run run/policy.onnx", ("--robot",)),
    Case("run run/policy.onnx --robot leap", ("leap", "--port", "/dev/ttyUSB0")),
    Case("run run/policy.onnx --robot simm", ("simm", "sim")),
    Case("run run/policy.onnx --robot no_module:Hand", ("no_module",)),
    Case("run run/policy.onnx --robot my_robot:Hnad", ("Hnad", "Hand")),
    Case("run run/policy.onnx --robot my_robot:Hand", ("my_robot:Hand", "lacks", "read")),
    Case("run run/policy.onnx --robot my_robot:Broken", ("my_robot:Broken", "no such port")),
    Case("run run/policy.onnx --robot sim --seconds 0", ("--seconds", "0")),
    # films
    Case("play run --video film.avi", ("film.avi", ".mp4")),
    Case("play run --video nowhere/film.mp4", ("nowhere",)),
    Case("play run --video notes.mp4", ("notes.mp4", "exists")),
    Case("play run --video film.gif --seconds 900", ("--seconds", "900", ".gif")),
    Case("play run --video film.mp4 --viewer", ("--video", "--viewer")),
    Case("play run --viewer", ("--viewer", "display")),
    Case("play run --seconds -1", ("--seconds", "-1")),
]


@pytest.mark.filterwarnings("error")  # a warning would be a second line
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line)
def test_one_line_and_nothing_written(
    case: Case, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    case.prepare(here)
    before = snapshot(here)
    answer = widen(*case.line.split())
    assert snapshot(here) == before
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert answer.err.endswith("\n")
    assert "Traceback" not in answer.err
    assert [word for word in case.words if word not in answer.err] == []


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("widen.train.cli", ["trian"], ("trian", "train")),
        ("widen.train.cli", ["verify", "notes.onnx"], ("notes.onnx",)),
        ("widen.train", ["small.yaml", "env.num_env=8"], ("env.num_env", "num_envs")),
        ("widen.train", ["run/config.yaml", "--run-dir", "run"], ("run", "exists")),
    ],
)
def test_in_a_narrow_terminal(
    module: str, arguments: list[str], words: tuple[str, ...], here: Path
) -> None:
    before = snapshot(here)
    answer = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "40", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1
    assert all(word in answer.stderr for word in words)
    assert snapshot(here) == before

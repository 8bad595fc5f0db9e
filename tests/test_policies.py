"""The policies in the package: they are whole, they do what their figures say, and names find them."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import answer_of, small_run, widen

from widen.deploy.contract import TOLERANCE
from widen.deploy.runtime import OnnxPolicy
from widen.train.cli_subject import policies_folder
from widen.train.config import parse_config
from widen.train.statistics import Z95, wilson

FOLDER = policies_folder()
NAMES = sorted(path.stem for path in FOLDER.glob("*.onnx"))
ONE = "fingertip_reach"
FEW = ("--episodes", "6", "--seconds", "0.5")
SURE = 4.0  # standard deviations

each = pytest.mark.parametrize("name", NAMES)


def told(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def row_of(name: str, condition: str) -> dict[str, Any]:
    return next(r for r in told(name)["exam"]["conditions"] if r["name"] == condition)


def agree(mean: float, episodes: int, stated: dict[str, Any]) -> bool:
    """Whether a mean of other episodes fits a stated mean with its 95 % interval.

    The interval's width tells how much single episodes differ; both means are uncertain.
    """
    low, high = stated["goals_ci"]
    deviation = (high - low) / (2.0 * Z95) * math.sqrt(stated["episodes"])
    error = deviation * math.sqrt(1.0 / episodes + 1.0 / stated["episodes"])
    return abs(mean - stated["goals_mean"]) <= SURE * error + 1e-4  # figures have four digits


def drops_agree(rate: float, episodes: int, stated: dict[str, Any]) -> bool:
    low, high = wilson(round(rate * episodes), episodes, SURE)
    return low <= stated["drop_ci"][1] and stated["drop_ci"][0] <= high


# what is in the package


def test_there_are_policies_and_nothing_else() -> None:
    assert ONE in NAMES
    files = {path.name for path in FOLDER.iterdir() if path.name not in ("__pycache__",)}
    assert files == {"__init__.py", *(f"{n}{kind}" for n in NAMES for kind in (".onnx", ".json"))}


@each
def test_the_file_is_whole(name: str) -> None:
    content = (FOLDER / f"{name}.onnx").read_bytes()
    assert len(content) < 2_000_000
    assert told(name)["file"] == {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    policy = OnnxPolicy(FOLDER / f"{name}.onnx")
    assert policy.verify() <= TOLERANCE
    assert policy.contract.task == told(name)["task"]
    assert "/" not in policy.contract.hand  # a file of the machine that trained it


@each
def test_the_figures_are_there(name: str) -> None:
    about = told(name)
    assert about["name"] == name
    trained, counted = about["training"], about["evaluation"]
    assert trained["seconds"] > 0
    assert trained["steps"] > 0
    assert all(trained[key] for key in ("command", "machine", "date", "versions", "backend"))
    config = parse_config(trained["config"], name)
    assert (config.task, config.seed) == (about["task"], trained["seed"])
    assert about["widen"].keys() == {"version", "source_sha256"}
    conditions = {row["name"]: row for row in about["exam"]["conditions"]}
    assert {"nominal", "held_out", "motor_dead", "nominal/fine"} <= conditions.keys()
    for row in (counted, *conditions.values()):
        assert row["goals_ci"][0] <= row["goals_mean"] <= row["goals_ci"][1]
        assert 0 <= row["drop_ci"][0] <= row["drop_rate"] <= row["drop_ci"][1] <= 1
    assert all(row["episodes"] >= 500 for row in conditions.values())  # less what diverged
    # the same policy in the same world, twice
    assert agree(counted["goals_mean"], counted["episodes"], conditions["nominal"])


@each
def test_the_contract_says_the_same(name: str) -> None:
    contract, about = OnnxPolicy(FOLDER / f"{name}.onnx").contract, told(name)
    assert contract.exam is not None
    stated = about["exam"]["conditions"]
    assert len(contract.exam["conditions"]) == len(stated)
    for ours, theirs in zip(contract.exam["conditions"], stated, strict=True):
        assert ours.items() <= theirs.items()
    assert contract.training["steps"] == about["training"]["steps"]
    assert yaml.safe_load(contract.training["config"]) == about["training"]["config"]


@each
def test_replay(name: str) -> None:
    found = answer_of("eval", name, "--episodes", "32", "--backend", "cpu")
    assert found["policy"] == name
    assert agree(found["goals_mean"], found["episodes"], told(name)["evaluation"])
    assert drops_agree(found["drop_rate"], found["episodes"], told(name)["evaluation"])
    # the test can tell this policy from one that does nothing
    assert not agree(0.0, found["episodes"], told(name)["evaluation"])


@pytest.mark.slow
@each
def test_long_replay(name: str, tmp_path: Path) -> None:
    found = answer_of("eval", name, "--backend", "cpu")
    assert agree(found["goals_mean"], found["episodes"], told(name)["evaluation"])
    worlds = ("nominal", "held_out", "nominal/fine")
    options = ("--conditions", ",".join(worlds), "--backend", "cpu", "-o", tmp_path / "exam.json")
    rows = answer_of("exam", name, *options)["conditions"]
    assert {row["name"] for row in rows} == set(worlds)
    for row in rows:
        stated = row_of(name, row["name"])
        assert agree(row["goals_mean"], row["episodes"], stated), row
        assert drops_agree(row["drop_rate"], row["episodes"], stated), row


def test_agree() -> None:
    """Goals with a standard deviation of 2: 100 episodes state a mean within +-0.4."""
    stated = {"goals_mean": 10.0, "goals_ci": [10 - 0.2 * Z95, 10 + 0.2 * Z95], "episodes": 100}
    assert agree(10.0 + 4 * 0.28, 100, stated)
    assert not agree(10.0 + 4 * 0.29, 100, stated)  # sqrt(0.2^2 + 0.2^2) = 0.283
    assert agree(10.0 - 4 * 1.0, 4, stated)
    assert not agree(10.0 - 4 * 1.05, 4, stated)


# by name


def test_a_name_works_in_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert answer_of("verify", ONE)["ok"] is True
    result = answer_of("run", ONE, "--robot", "sim", "--seconds", "0.5")
    assert (result["policy"], result["cycles"] > 0) == (ONE, True)
    played = widen("play", ONE, "--seconds", "1")
    assert (played.code, "goals in 1.0 s" in played.out) == (0, True)
    assert f"{ONE}: " in widen("eval", ONE, "--episodes", "2").out
    assert not list(tmp_path.iterdir())


def test_list() -> None:
    rows = answer_of("list", "policies")
    assert [row["name"] for row in rows] == NAMES
    for row in rows:
        assert row.keys() >= {"task", "summary", "training_seconds", "training_steps"}
        stated = row_of(row["name"], "held_out")
        assert row["held_out"].items() <= stated.items()
        assert row["nominal"]["goals_mean"] == row_of(row["name"], "nominal")["goals_mean"]
    human = widen("list", "policies")
    assert (human.code, all(name in human.out for name in NAMES)) == (0, True)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("verify fingertip_raech", ("fingertip_raech", "shipped", "did you mean fingertip_reach?")),
        ("run fingertip_raech --robot sim", ("did you mean fingertip_reach?",)),
        ("eval fingertip_raech", ("no such run folder", "did you mean fingertip_reach?")),
        ("play fingertip_reach.onnx", ("fingertip_reach.onnx", "did you mean fingertip_reach?")),
        ("exam qqqq", ("qqqq", "shipped are", ONE)),
        ("eval hand-3", ("did you mean runs/hand-2?",)),
        ("eval ./fingertip_reach", ("fingertip_reach is not a run folder",)),
        ("verify ./fingertip_reach", ("fingertip_reach", "cannot be read")),
        ("verify fingertip_reach.json", ("fingertip_reach.json", "did you mean")),
    ],
)
def test_names_that_are_none(
    line: str, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "hand-2").mkdir(parents=True)
    (tmp_path / "runs" / "hand-2" / "config.yaml").touch()
    answer = widen(*line.split())
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert all(word in answer.err for word in words), answer.err


def test_what_is_here_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ONE).write_text("notes")
    answer = widen("verify", ONE)
    assert (answer.code, "not a self-contained ONNX file" in answer.err) == (2, True)
    (tmp_path / ONE).unlink()
    (tmp_path / ONE).mkdir()
    answer = widen("run", ONE, "--robot", "sim")
    assert answer.code == 2
    assert f"{ONE} is a folder, and comes before the shipped policy" in answer.err
    assert f"{ONE} is not a run folder" in widen("eval", ONE).err
    (tmp_path / ONE / "policy.onnx").write_bytes((FOLDER / f"{ONE}.onnx").read_bytes())
    assert f"expected its {ONE}/policy.onnx" in widen("verify", ONE).err
    assert answer_of("verify", f"{ONE}/policy.onnx")["ok"] is True


def test_verify_by_name_needs_neither_torch_nor_mujoco(tmp_path: Path) -> None:
    blocked = ["torch", "mujoco", "yaml", "onnx", "gymnasium", "stable_baselines3"]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}));"
        "from widen.train.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    for line, code, words in (
        (f"verify {ONE} --json", 0, '"ok": true'),
        (f"run {ONE} --robot sim", 2, "which is not installed"),
        ("list policies", 0, ONE),
        ("verify fingertip_raech", 2, "did you mean"),
    ):
        command = [sys.executable, "-c", program, *line.split()]
        answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert answer.returncode == code, answer.stderr
        assert words in answer.stdout + answer.stderr


# where an exam goes


def test_an_exam_of_a_shipped_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in FOLDER.iterdir()}
    file = tmp_path / f"{ONE}.exam.json"
    one = answer_of("exam", ONE, *FEW, "--conditions", "nominal/short")
    assert one["policy"] == ONE
    assert json.loads(file.read_text()) == one
    two = answer_of("exam", ONE, *FEW, "--conditions", "nominal/short,motor_dead")
    assert two["conditions"][0] == one["conditions"][0]  # to the second, so not played again
    assert len(two["conditions"]) == 2
    # by its path it is the same policy
    by_path = answer_of("exam", FOLDER / f"{ONE}.onnx", *FEW, "--conditions", "nominal/short")
    assert by_path["conditions"] == two["conditions"]
    other = answer_of("exam", ONE, *FEW, "--conditions", "nominal/short", "-o", "other.json")
    assert json.loads((tmp_path / "other.json").read_text()) == other
    assert {path: path.stat().st_mtime_ns for path in FOLDER.iterdir()} == before
    # that of one's own policy which is called alike is left alone
    file.write_text(json.dumps({**two, "policy_sha256": "another"}))
    answer = widen("exam", ONE, *FEW, "--conditions", "nominal/short")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert f"{file.name} is the exam of another policy: expected -o" in answer.err
    assert json.loads(file.read_text())["policy_sha256"] == "another"
    replaced = answer_of("exam", ONE, *FEW, "--conditions", "nominal/short", "-o", file)
    assert len(replaced["conditions"]) == 1


def test_an_exam_of_a_run_that_goes_elsewhere(tmp_path: Path) -> None:
    trained = small_run(tmp_path)
    policy = (trained / "policy.onnx").read_bytes()
    options = (*FEW, "--conditions", "nominal/short", "-o", tmp_path / "exam.json")
    found = answer_of("exam", trained, *options)
    assert json.loads((tmp_path / "exam.json").read_text()) == found
    assert not (trained / "exam.json").exists()
    assert (trained / "policy.onnx").read_bytes() == policy

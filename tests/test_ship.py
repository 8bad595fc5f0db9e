"""How a policy is shipped: ship.py checks a run, and writes its files and its page."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from command_line import answer_of, small_run, widen

from widen.train.cli_subject import policies_folder
from widen.train.config import parse_config
from widen.train.run_folder import RunFolder
from widen.train.trained import Trained

FOLDER = policies_folder()
ONE = "fingertip_reach"
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "ship.py"
FEW = ("--episodes", "6", "--seconds", "0.5")


def told(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("ship"))


@pytest.fixture(scope="module")
def script() -> SimpleNamespace:
    if not SCRIPT.is_file():
        pytest.skip("tests an installed package")
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_the_page_is_that_of_the_files(script: SimpleNamespace) -> None:
    page = (SCRIPT.parents[1] / "docs" / "policies.md").read_text(encoding="utf-8")
    between = page.partition(script.BEGIN)[2].partition(script.END)[0]
    assert between.strip() == script.render(FOLDER).strip()


def test_ship(script: SimpleNamespace, trained: Path, tmp_path: Path) -> None:
    run, policies = tmp_path / "run", tmp_path / "policies"
    shutil.copytree(trained, run)
    policies.mkdir()

    def ship(name: str = "mine", episodes: int = 6, seconds: float = 0.5) -> dict[str, Any]:
        return script.ship(run, name, policies, episodes=episodes, seconds=seconds)

    with pytest.raises(ValueError, match=r"is not examined: expected .*exam\.json; make it with"):
        ship()
    assert widen("exam", run, *FEW, "--conditions", "nominal").code == 0
    with pytest.raises(ValueError, match=r"conditions are missing .* the first is held_out"):
        ship()
    assert widen("exam", run, *FEW).code == 0
    with pytest.raises(ValueError, match="the first is nominal: run widen exam"):
        ship(episodes=512)
    with pytest.raises(ValueError, match="Mine: expected a name"):
        ship("Mine")
    assert not list(policies.iterdir())

    said, exam = ship(), json.loads((run / "exam.json").read_text())
    assert said == json.loads((policies / "mine.json").read_text())
    figures = [(row["name"], row["goals_mean"]) for row in said["exam"]["conditions"]]
    assert figures == [(row["name"], row["goals_mean"]) for row in exam["conditions"]]
    keys = ("episodes", "goals_mean", "goals_median", "drop_rate")
    again = answer_of("eval", policies / "mine.onnx")
    assert [said["evaluation"][key] for key in keys] == [again[key] for key in keys]
    of_run = answer_of("verify", run / "policy.onnx")["contract"]
    assert answer_of("verify", policies / "mine.onnx")["contract"] == of_run
    last = json.loads((run / "adr.jsonl").read_text().splitlines()[-1])
    assert (said["training"]["steps"], last["steps"]) == (128, 128)
    # the command says all that differs from a shipped config
    words = said["training"]["command"].split()
    assert words[:2] == ["widen", "train"]
    assert {"env.num_envs=16", "ppo.iterations=2"} <= set(words)
    page = tmp_path / "policies.md"
    page.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    script.write_page(policies, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert f"{exam['conditions'][0]['goals_mean']:.2f} [" in text

    (run / "exam.json").write_text(json.dumps({**exam, "policy_sha256": "another"}))
    with pytest.raises(ValueError, match="of another policy than the last checkpoint"):
        ship()
    lines = (run / "adr.jsonl").read_text().splitlines(keepends=True)
    (run / "adr.jsonl").write_text("".join(x for x in lines if json.loads(x)["iteration"] < 2))
    with pytest.raises(ValueError, match="iteration 1 of 2: expected a finished run"):
        ship()
    assert said == json.loads((policies / "mine.json").read_text())  # what was there stays


def test_what_a_policy_began_with_is_told(
    script: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ("env.num_envs=16", "ppo.steps=4", "ppo.iterations=1", "evaluation.episodes=4")
    for before, run in ((ONE, "first"), ("first", "second")):
        answer_of("train", ONE, f"init_from={before}", *small, "--run-dir", run)

    def training(of: str) -> dict[str, Any]:
        folder = RunFolder.open(Path(of))
        return script.training(folder, Trained.restore(folder), {"seconds": 7.0}, None)

    said = training("second")
    first = said["init_from"]
    assert (first["name"], first["shipped"], first["steps"]) == ("first", False, 64)
    shipped = first["init_from"]
    assert (shipped["name"], shipped["shipped"]) == (ONE, True)
    assert shipped["command"] == told(ONE)["training"]["command"]
    steps, seconds = told(ONE)["training"]["steps"] + 128, told(ONE)["training"]["seconds"] + 7.0
    length = script._length({"training": said})
    assert length == script._length(
        {"training": {"steps": steps, "seconds": seconds + first["seconds"]}}
    )
    page = "\n".join(script._section({**told(ONE), "training": said, "name": "other"}))
    block = page.split("```")[1].strip().splitlines()
    page = "\n".join(script._section({**told(ONE), "training": said}))
    # of a shipped one that it takes the place of, the commands are nowhere else
    replaced, *rest = page.split("```")[1].strip().splitlines()
    assert (replaced, rest) == (f"{shipped['command']}  # shipped as {ONE} then", block)
    assert [line.split()[:3] for line in block] == [["widen", "train", ONE]] * 2
    assert f"init_from={ONE}" in block[0].split()
    assert block[0].endswith("--run-dir first")
    assert "init_from=first" in block[1].split()

    folder = RunFolder.open(Path("first"))
    noted = json.loads(folder.environment.read_text())
    noted["init_from"]["sha256"] = "another"
    folder.environment.write_text(json.dumps(noted))
    with pytest.raises(ValueError, match=f"{ONE}: the shipped policy was another one then"):
        training("first")
    answer_of("train", ONE, *small, "--run-dir", "third")
    noted["init_from"] = {"name": "third", "steps": 1}
    folder.environment.write_text(json.dumps(noted))
    text = folder.config.read_text().replace(f"init_from: {ONE}", "init_from: third")
    folder.config.write_text(text)
    config = parse_config(yaml.safe_load(text), "first")
    with pytest.raises(ValueError, match="third: its last checkpoint was another one then"):
        script.began_with(config, noted)


def test_the_script_refuses_in_a_line(tmp_path: Path) -> None:
    if not SCRIPT.is_file():
        pytest.skip("tests an installed package")
    command = [sys.executable, str(SCRIPT), str(tmp_path), "mine", "--policies", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)
    assert "is not a run folder" in answer.stderr

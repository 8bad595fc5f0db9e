"""An examination from end to end: what it writes, how it goes on, and whom it judges alike."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import SMALL, answer_of, widen

from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.sim import SimConfig
from widen.randomization.scripted import Script, Scripted
from widen.train.exam import examine_in, first_episodes
from widen.train.exam_conditions import Condition, syllabus
from widen.train.statistics import bootstrap_mean, wilson

FEW = ("--episodes", "6", "--seconds", "0.5")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exam")
    config = {**SMALL, "ppo": {"steps": 4, "iterations": 1, "threads": 1}}
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    return Path(answer_of("train", folder / "small.yaml", "--run-dir", folder / "run")["run"])


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run of its own for every test."""
    subprocess.run(["cp", "-r", trained, tmp_path / "run"], check=True)
    return tmp_path / "run"


def numbers(row: dict[str, Any]) -> dict[str, Any]:
    """What must be equal whenever the same episodes were played."""
    return {key: row[key] for key in row if key not in ("wall_seconds", "key")}


def ranges(**bounds: tuple[float, float, float]) -> list[dict[str, Any]]:
    return [
        {"name": name, "low": low, "nominal": nominal, "high": high}
        for name, (low, nominal, high) in bounds.items()
    ]


# which conditions


def test_the_conditions_of_a_task_with_an_object() -> None:
    back = 1.0 + 0.2 - 0.1 - 0.1  # not 1.0 to the last digit
    assert back != 1.0
    table = ranges(object_mass=(0.8, 1.0, back), action_noise=(0.0, 0.0, 0.02))
    plan = syllabus(table, 0.05, 20.0, 3.0, has_object=True)
    names = [c.name for c in plan.conditions]
    assert names[:3] == ["nominal", "held_out", "nominal/short"]
    assert [c.name for c in plan.conditions if c.group == "bounds"] == [
        "object_mass/low",
        "action_noise/high",
    ]
    assert plan.unmoved == ("object_mass/high", "action_noise/low")
    suite = [c.name for c in plan.conditions if c.group == "suite"]
    assert len(suite) == 11
    fine = {c.name for c in plan.conditions if c.group == "fine"}
    assert fine == {"nominal/fine", *(f"{name}/fine" for name in suite[1:])}
    assert len(set(names)) == len(names)
    by_name = {c.name: c for c in plan.conditions}
    for c in plan.conditions:
        reference = by_name[c.reference]
        assert (reference.steps, reference.fine) == (c.steps, c.fine)
        assert reference.script == Script()
    assert by_name["held_out"].steps == by_name["nominal"].steps == 400
    assert by_name["motor_dead"].steps == 60
    assert by_name["motor_dead"].event == 20
    assert by_name["object_mass/low"].script.ranges == {"object_mass": (0.8, 0.8)}


def test_without_an_object_nothing_is_pushed_weighed_or_lost() -> None:
    plan = syllabus([], 0.05, 20.0, 3.0, has_object=False)
    about = json.dumps([c.describe() for c in plan.conditions])
    assert "object" not in about
    assert "WrenchPulse" not in about
    assert "PoseLost" not in about


def test_short_episodes_that_are_not_shorter() -> None:
    plan = syllabus(ranges(gravity=(0.9, 1.0, 1.0)), 0.05, 2.0, 3.0, has_object=False)
    names = [c.name for c in plan.conditions]
    assert "nominal/short" not in names
    assert names.count("nominal") == 1
    assert {c.steps for c in plan.conditions} == {40}
    assert {c.reference for c in plan.conditions} == {"nominal", "nominal/fine"}


def test_select() -> None:
    table = ranges(object_mass=(0.8, 1.0, 1.0))
    plan = syllabus(table, 0.05, 20.0, 3.0, has_object=True)
    assert [c.name for c in plan.select(["bounds"])] == ["nominal/short", "object_mass/low"]
    assert [c.name for c in plan.select(["held_out", "nominal"])] == ["nominal", "held_out"]
    with pytest.raises(ValueError, match="motor_ded: unknown; expected motor_dead"):
        plan.select(["motor_ded"])
    with pytest.raises(ValueError, match="object_mass/high: this bound is at its nominal"):
        plan.select(["object_mass/high"])


# one condition


def test_a_row_is_the_arithmetic_of_its_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Scripted([Script()])
    env = BatchedEnv(
        "fingertip_reach",
        config=EnvConfig(num_envs=4),
        sim=SimConfig(threads=1),
        perturbation=world,
    )
    score = torch.tensor([3.0, 0.0, 5.0, 9.0])
    length = torch.tensor([60.0, 20.0, 60.0, 60.0])
    failed, counted = torch.tensor([[0, 1, 0, 0], [1, 1, 1, 0]]).bool()
    monkeypatch.setattr(
        "widen.train.exam.first_episodes", lambda trial: (score, length, failed, counted)
    )
    condition = Condition("x", "suite", "", Script(), 60, "x", event=20)
    row = examine_in((env, lambda obs, fresh: env.step(obs["actor"])), world, condition, 4)
    assert (row["episodes"], row["diverged"], row["goals_median"]) == (3, 1, 3.0)
    assert row["goals_mean"] == pytest.approx(8 / 3, abs=1e-4)
    assert row["goals_per_minute"] == pytest.approx(8 / (140 * 0.05 / 60), abs=1e-3)
    assert row["goals_ci"] == pytest.approx(bootstrap_mean([3, 0, 5]), abs=1e-4)
    assert row["drop_ci"] == pytest.approx(wilson(1, 3), abs=1e-4)
    assert (row["episode_seconds"], row["event_seconds"]) == (3.0, 1.0)


def test_only_the_first_episode_of_an_environment_counts() -> None:
    """Drops come early and often; to count what follows them would favour them."""
    env = BatchedEnv(
        "cube_rotate",
        config=EnvConfig(num_envs=6, episode_seconds=1.0),
        sim=SimConfig(threads=1),
        perturbation=Scripted([Script()]),
    )
    drops: list[int] = []

    def step(obs: Any, fresh: torch.Tensor) -> Any:
        if not drops or len(drops) == 10:  # throw two cubes away, twice
            qpos, qvel = env.task.nominal_state(2)
            qpos[:, env.scene.object_qpos] += 0.5
            env.sim.reset(torch.tensor([1, 4]), qpos, qvel)
        result = env.step(torch.zeros(6, 16))
        drops.append(int(result.terminated.sum()))
        return result

    _, length, failed, counted = first_episodes((env, step))
    assert [drops[0], drops[10], len(drops)] == [2, 2, 20]
    assert failed.tolist() == [False, True, False, False, True, False]
    assert length.tolist() == [20, 1, 20, 20, 1, 20]
    assert counted.all()


def test_an_episode_that_the_simulation_lost_is_not_counted() -> None:
    env = BatchedEnv(
        "cube_rotate",
        config=EnvConfig(num_envs=3, episode_seconds=0.3),
        sim=SimConfig(threads=1),
        perturbation=(world := Scripted([Script()])),
    )

    def step(obs: Any, fresh: torch.Tensor) -> Any:
        if bool(fresh.all()):
            env.sim.qvel[1] = 1e12
        return env.step(torch.zeros(3, 16))

    row = examine_in((env, step), world, Condition("x", "suite", "", Script(), 6, "x"), 3)
    assert (row["episodes"], row["diverged"], row["drop_rate"]) == (2, 1, 0.0)

    def explode(obs: Any, fresh: torch.Tensor) -> Any:
        env.sim.qvel[:] = 1e12
        return env.step(torch.zeros(3, 16))

    with pytest.raises(ValueError, match="condition x: the simulation diverged in 3 of 3"):
        examine_in((env, explode), world, Condition("x", "suite", "", Script(), 6, "x"), 3)


# a run, a policy, a file


def test_run_and_policy_agree_and_the_policy_tells(run: Path) -> None:
    options = (*FEW, "--conditions", "nominal,held_out,motor_dead,joint_noise/high,nominal/fine")
    of_run = answer_of("exam", run, *options)
    assert json.loads((run / "exam.json").read_text()) == of_run
    of_file = answer_of("exam", run / "policy.onnx", *options)
    assert json.loads((run / "policy.exam.json").read_text()) == of_file
    assert len(of_run["conditions"]) == 5
    for ours, theirs in zip(of_run["conditions"], of_file["conditions"], strict=True):
        assert numbers(ours) == numbers(theirs)
        assert ours["episodes"] == 6
        assert ours["goals_ci"][0] <= ours["goals_mean"] <= ours["goals_ci"][1]
        assert ours["drop_ci"][0] <= ours["drop_rate"] <= ours["drop_ci"][1]
    contract = answer_of("verify", run / "policy.onnx")["contract"]
    told = {row["name"]: row["goals_mean"] for row in contract["exam"]["conditions"]}
    assert told == {row["name"]: row["goals_mean"] for row in of_run["conditions"]}
    assert "examined" in widen("verify", run / "policy.onnx").out
    # exported again it is still the policy that was examined
    assert widen("export", run, "-o", run / "again.onnx").code == 0
    assert answer_of("verify", run / "again.onnx")["contract"]["exam"] == contract["exam"]
    shown = widen("exam", run, *options)
    assert (shown.code, max(map(len, shown.out.splitlines())) <= 100) == (0, True)
    assert all(row["name"] in shown.out for row in of_run["conditions"])


def test_what_is_there_is_not_done_again(run: Path) -> None:
    policy, file = run / "policy.onnx", run / "policy.exam.json"
    two = answer_of("exam", policy, *FEW, "--conditions", "nominal,nominal/short")
    three = answer_of("exam", policy, *FEW, "--conditions", "nominal,nominal/short,motor_dead")
    assert three["conditions"][:2] == two["conditions"]  # to the second, so not played again
    longer = answer_of(
        "exam", policy, "--episodes", "7", "--seconds", "0.5", "--conditions", "nominal"
    )
    assert [row["episodes"] for row in longer["conditions"]] == [7, 6, 6]
    assert longer["conditions"][1:] == three["conditions"][1:]
    shorter = answer_of(
        "exam", policy, "--episodes", "7", "--seconds", "0.3", "--conditions", "suite"
    )
    assert shorter["conditions"][0] == longer["conditions"][0]
    assert shorter["conditions"][1]["episode_seconds"] == 0.3
    # of another policy nothing is kept
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "policy_sha256": "another"}))
    fresh = answer_of("exam", policy, *FEW, "--conditions", "nominal/short")
    assert len(fresh["conditions"]) == 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_exam_that_was_ended_goes_on(run: Path, how: signal.Signals) -> None:
    options = ("--episodes", "40", "--seconds", "1", "--conditions", "suite")
    policy = run / "policy.onnx"
    command = [sys.executable, "-m", "widen.train.cli", "exam", str(policy), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    file, until = run / "policy.exam.json", time.monotonic() + 120
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(how)
    _, said = process.communicate(timeout=120)
    before = json.loads(file.read_text())["conditions"]
    assert 1 <= len(before) < 6
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert said.splitlines()[-1].startswith(
            f"interrupted; {len(before)} of 6 conditions are in"
        )
    after = answer_of("exam", policy, *options)
    assert after["conditions"][: len(before)] == before
    file.unlink()
    whole = answer_of("exam", policy, *options)
    assert [*map(numbers, after["conditions"])] == [*map(numbers, whole["conditions"])]
    assert not list(run.glob(".*tmp"))


def test_eval_in_the_held_out_world(run: Path) -> None:
    options = ("--episodes", "4", "--randomization", "exam")
    ours, theirs = (
        answer_of("eval", run, *options),
        answer_of("eval", run / "policy.onnx", *options),
    )
    assert ours["randomization"] == "exam"
    assert ours["goals"] == theirs["goals"]
    assert ours["episodes"] == 4


# mistakes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--episodes", "0"), "--episodes 0: expected 1 or more"),
        (("--seconds", "-1"), "--seconds -1: expected more than 0"),
        (("--conditions", "heldout"), "--conditions heldout: unknown; expected held_out"),
        (("--conditions", ""), "--conditions"),
        (("--backend", "gpu"), "--backend gpu: expected auto, cpu or warp"),
    ],
)
def test_mistakes(run: Path, options: tuple[str, ...], words: str) -> None:
    answer = widen("exam", run, *options)
    assert answer.code == 2
    assert words in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not (run / "exam.json").exists()


@pytest.mark.parametrize("content", ["", "notes", "[1]", '{"schema": "other/1"}', "\xff\xfe"])
def test_what_is_no_exam_is_not_overwritten(run: Path, content: str) -> None:
    (run / "exam.json").write_text(content, encoding="latin-1")
    answer = widen("exam", run, *FEW)
    assert answer.code == 2
    assert "exam.json exists and is no exam" in answer.err
    assert len(answer.err.splitlines()) == 1
    assert (run / "exam.json").read_text(encoding="latin-1") == content


def test_an_exam_of_an_older_version_is_replaced(run: Path) -> None:
    (run / "policy.exam.json").write_text('{"schema": "widen.exam/0", "conditions": 7}')
    result = answer_of("exam", run / "policy.onnx", *FEW, "--conditions", "nominal/short")
    assert [row["name"] for row in result["conditions"]] == ["nominal/short"]


def test_there_is_nothing_to_examine(tmp_path: Path) -> None:
    for subject in ("gone", "gone.onnx"):
        answer = widen("exam", tmp_path / subject)
        assert answer.code == 2
        assert len(answer.err.splitlines()) == 1


@pytest.mark.slow
def test_a_whole_exam(run: Path) -> None:
    result = answer_of("exam", run)
    assert {row["episodes"] for row in result["conditions"]} == {512}
    assert {row["group"] for row in result["conditions"]} == {
        *("nominal", "held_out", "suite", "bounds", "fine")
    }

"""The command line at work: a tiny run from its config to a robot and a film."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import SMALL, Answer, answer_of, widen

from widen.envs.hand import load_hand
from widen.train import cli_lists, cli_show, play
from widen.train.cli_policy import open_trial
from widen.train.cli_train import resume_command
from widen.train.config import load_config
from widen.train.ranks import Ranks

HEAVY = {"torch", "mujoco", "stable_baselines3", "gymnasium", "onnxruntime", "onnx", "numpy"}
VERBS = ("train", "monitor", "eval", "play", "export", "verify", "run", "list", "bench")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli")
    (path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return path


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, Any]:
    return answer_of("train", folder / "small.yaml", "--run-dir", folder / "run")


@pytest.fixture(scope="module")
def run(trained: dict[str, Any]) -> Path:
    return Path(trained["run"])


@pytest.fixture(scope="module")
def policy(trained: dict[str, Any]) -> Path:
    return Path(trained["policy"])


def test_help_is_light() -> None:
    code = (
        "import sys; from widen.train.cli import main; code = main(['--help']);"
        "print('loaded', *sys.modules, file=sys.stderr); sys.exit(code)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0
    assert all(verb in answer.stdout for verb in VERBS)
    assert not HEAVY & set(answer.stderr.split())


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("verify POLICY --json", 0, '"ok": true'),
        ("run POLICY --robot sim", 2, "which is not installed"),
        ("eval POLICY", 2, "which is not installed"),
    ],
)
def test_on_a_robot_computer(line: str, code: int, words: str, policy: Path) -> None:
    blocked = HEAVY - {"numpy", "onnxruntime"} | {"yaml"}
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(blocked)}));"
        f"from widen.train.cli import main; sys.exit(main({line.split()}))"
    ).replace("POLICY", str(policy))
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.returncode == code
    assert words in answer.stdout + answer.stderr
    assert answer.stderr.count("\n") == (0 if code == 0 else 1)


def test_version_and_bare_call() -> None:
    assert widen("--version").out == f"widen {importlib.metadata.version('widen')}\n"
    assert widen().out == widen("--help").out


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_help(verb: str) -> None:
    answer = widen(verb, "--help")
    assert answer.code == 0
    assert verb in answer.out


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("tasks", "cube_rotate"),
        ("hands", "leap"),
        ("parameters", "object_mass"),
        ("configs", "quickstart"),
    ],
)
def test_list(kind: str, name: str) -> None:
    rows = answer_of("list", kind)
    assert name in [row["name"] for row in rows]
    assert all(row["summary"] for row in rows)
    human = widen("list", kind)
    assert human.code == 0
    assert all(row["name"] in human.out for row in rows)


def test_list_of_parameters() -> None:
    """All of the catalogue with what a user must know; people see them by kind."""
    from widen.randomization.parameters import CATALOGUE

    rows = answer_of("list", "parameters")
    assert [row["name"] for row in rows] == list(CATALOGUE)
    assert len(rows) >= 35
    for row in rows:
        assert row.keys() >= {"unit", "nominal", "limits", "step", "kind", "source", "summary"}
        low, high = row["limits"]
        assert low <= row["nominal"] <= high
        assert low < high
        assert row["step"] > 0
        assert row["source"]
        assert row["unit"]
    lines = widen("list", "parameters").out.splitlines()
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of_kind = [row["name"] for row in rows if row["kind"] == kind]
        first = lines.index(f"{kind} ({len(of_kind)})") + 2
        listed = [line.split()[0] for line in lines[first:] if line[:1].strip()]
        assert listed[: len(of_kind)] == of_kind


def test_train(trained: dict[str, Any], run: Path) -> None:
    contract = {"run", "steps", "seconds", "goals_mean", "npd", "bounds_moved", "policy"}
    assert contract <= trained.keys()
    assert trained["steps"] == 16 * 4 * 3
    assert "stopped" not in trained
    for name in ("config.yaml", "environment.json", "adr.jsonl", "checkpoints", "policy.onnx"):
        assert (run / name).exists()
    assert load_config(str(run / "config.yaml")) == load_config(str(run.parent / "small.yaml"))


def test_train_says_how_to_go_on(folder: Path) -> None:
    answer = widen("train", folder / "small.yaml", "ppo.iterations=1", "--run-dir", folder / "two")
    assert answer.code == 0
    assert f"widen monitor {folder / 'two'}\n" in answer.out
    assert f"widen run {folder / 'two' / 'policy.onnx'} --robot sim\n" in answer.out
    more = answer_of(
        *("train", folder / "small.yaml", "ppo.iterations=2", "--run-dir", folder / "two"),
        "--resume",
    )
    assert more["steps"] == 16 * 4 * 2


def test_an_empty_folder_may_become_a_run(folder: Path) -> None:
    (folder / "empty").mkdir()
    assert (
        widen(*f"train {folder}/small.yaml ppo.iterations=1 --run-dir {folder}/empty".split())[0]
        == 0
    )
    assert (folder / "empty" / "policy.onnx").is_file()


def test_monitor(run: Path, folder: Path) -> None:
    state = answer_of("monitor", run, "--once")
    assert {"run", "steps", "npd", "goals_mean", "parameters"} <= state.keys()
    assert state["steps"] == 16 * 4 * 3
    keys = {"name", "unit", "nominal", "low", "high", "limit_low", "limit_high"}
    assert all(keys | {"score_low", "score_high"} <= row.keys() for row in state["parameters"])
    assert [row["name"] for row in state["parameters"]] == ["joint_damping", "joint_noise"]
    page = folder / "page.html"
    human = widen("monitor", run, "--once", "--html", page)
    assert human.code == 0
    assert "joint_damping" in human.out
    assert "joint_damping" in page.read_text()


@pytest.mark.parametrize("randomization", ["none", "current"])
def test_eval_of_run_and_policy_agree(run: Path, policy: Path, randomization: str) -> None:
    options = ("--episodes", "8", "--randomization", randomization)
    ours, theirs = answer_of("eval", run, *options), answer_of("eval", policy, *options)
    keys = {"policy", "randomization", "episodes", "goals_mean", "goals_median", "drop_rate"}
    assert keys | {"seconds"} <= ours.keys() == theirs.keys()
    assert (ours["episodes"], ours["randomization"]) == (8, randomization)
    for key in ("episodes", "goals", "drop_rate"):
        assert ours[key] == theirs[key]


@pytest.mark.parametrize("randomization", ["none", "current"])
def test_run_and_policy_move_the_hand_alike(run: Path, policy: Path, randomization: str) -> None:
    """Joint by joint, over the end of an episode: only float32 rounding may differ."""
    ways = []
    for subject in (run, policy):
        env, step = open_trial(subject, 4, randomization)
        obs, fresh = env.reset(), torch.ones(4, dtype=torch.bool)
        way = []
        for _ in range(env.max_steps + 10):
            result = step(obs, fresh)
            obs, fresh = result.obs, result.terminated | result.truncated
            way.append(env.sim.qpos.clone().numpy())
        ways.append(np.stack(way))
    assert np.abs(ways[0] - ways[0][0]).max() > 0.03  # the hand does move
    np.testing.assert_allclose(ways[0], ways[1], atol=1e-4)


def test_verify(policy: Path) -> None:
    result = answer_of("verify", policy)
    assert result["ok"] is True
    assert 0 <= result["max_error"] <= 1e-5
    assert result["contract"]["task"] == "fingertip_reach"
    assert "fingertip_reach" in widen("verify", policy).out


def test_export(run: Path, folder: Path) -> None:
    target = folder / "out.onnx"
    assert widen("export", run, "-o", target).code == 0
    ours, first = answer_of("verify", target), answer_of("verify", run / "policy.onnx")
    assert ours["contract"] == first["contract"]
    # one of ours may be replaced
    assert widen("export", run, "-o", target).code == 0
    assert widen("export", run).code == 0


@pytest.mark.realtime
@pytest.mark.parametrize("extra", [(), ("--dry-run",)])
def test_run_on_the_simulated_robot(policy: Path, extra: tuple[str, ...]) -> None:
    result = answer_of("run", policy, "--robot", "sim", "--seconds", "1", *extra)
    keys = {"goals", "seconds", "cycles", "deadline_misses", "interventions"}
    assert keys | {"cycle_ms_p50", "cycle_ms_p99"} <= result.keys()
    assert result["cycles"] + result["deadline_misses"] >= 20
    assert result["seconds"] == pytest.approx(1.0, abs=0.2)


@pytest.mark.realtime
def test_run_on_ones_own_robot(policy: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words go to stderr, so that stdout is one JSON object."""
    (folder / "chatty_hand.py").write_text(
        "import numpy as np\n"
        "from widen.deploy.robot import Measurement, MonotonicClock\n"
        "class Hand:\n"
        f"    joint_names = {load_hand('leap').joints}\n"
        "    clock, drops = MonotonicClock(), 0\n"
        "    def start(self): print('hello')\n"
        "    def read(self): return {'joint_pos': Measurement(np.zeros(16), self.clock.now())}\n"
        "    def command(self, joint_target): pass\n"
        "    def stop(self): print('bye')\n"
    )
    monkeypatch.chdir(folder)
    answer = widen("run", policy, "--robot", "chatty_hand:Hand", "--seconds", "0.2", "--json")
    assert (answer.code, answer.err) == (0, "hello\nbye\n")
    assert json.loads(answer.out)["interventions"] == 0


def test_commands_to_copy_are_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    cli_show.exported(Path("my runs/policy.onnx"), 1000, 0.0)
    cli_show.interrupted(resume_command(Path("my run"), Ranks()))
    out, err = capsys.readouterr()
    assert out.endswith("run    widen run 'my runs/policy.onnx' --robot sim\n")
    assert "widen train 'my run/config.yaml' --run-dir 'my run' --resume" in err


def test_verify_tells_what_a_robot_must_measure(policy: Path) -> None:
    words = " ".join(widen("verify", policy).out.split())
    assert "joint_pos (16; rad; frame joint; from the robot)" in words


def test_play_tells_the_figures(policy: Path) -> None:
    answer = widen("play", policy)
    assert answer.code == 0
    assert answer.out.startswith("0 goals in 2.0 s")
    assert " in 3.0 s" in widen("play", policy, "--seconds", "3").out


@pytest.mark.skipif(sys.platform != "linux", reason="not even root may write to /proc")
def test_places_that_cannot_be_written_are_one_line(run: Path) -> None:
    for line in (
        "play --video /proc/film.mp4",
        "play --video /proc/film.gif",
        "monitor --html /proc/p",
    ):
        verb, option, path = line.split()
        answer = widen(verb, run, option, path)
        assert answer.code == 2
        assert f"{path}: cannot be written: " in answer.err
        assert answer.err.count("\n") == 1


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_play_writes_a_film(run: Path, policy: Path, folder: Path, suffix: str) -> None:
    iio = pytest.importorskip("imageio.v3")
    before = os.environ.get("MUJOCO_GL")
    try:
        play.choose_gl()
    except ValueError as error:
        pytest.skip(str(error))
    finally:
        os.environ.pop("MUJOCO_GL", None)
        if before is not None:
            os.environ["MUJOCO_GL"] = before
    subject, path = (run, folder / "a.mp4") if suffix == "mp4" else (policy, folder / "a.gif")
    # in a process of its own: mujoco chose its OpenGL here when it was imported
    command = [sys.executable, "-m", "widen.train.cli", "play", str(subject), "--video", str(path)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert str(path) in answer.stdout
    frames = np.stack(list(iio.imiter(path)))[..., :3]
    if suffix == "mp4":
        assert frames.shape == (40, 480, 640, 3)
        assert iio.immeta(path)["fps"] == pytest.approx(20)
    else:  # pictures in which nothing changed are one
        assert 2 <= len(frames) <= 20
        assert frames.shape[1:] == (300, 400, 3)
    assert frames[0].std() > 10  # there is something to see
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50  # and it moves
    assert not list(folder.glob(".*"))  # nothing half written is left


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_says_how_it_goes_on(folder: Path, number: signal.Signals) -> None:
    path = folder / number.name
    command = [sys.executable, "-m", "widen.train", str(folder / "small.yaml")]
    command += ["ppo.iterations=100000", "--run-dir", str(path), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (path / "adr.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    result = json.loads(out)
    assert (result["policy"], result["stopped"]) == (None, number)
    last = err.splitlines()[-1]
    how = last.partition("widen ")[2].split()
    assert how == ["train", f"{path}/config.yaml", "--run-dir", str(path), "--resume"]
    # exactly this command, but for its length
    iterations = result["steps"] // (16 * 4) + 1
    more = answer_of(*how, f"ppo.iterations={iterations}")
    assert more["steps"] == result["steps"] + 16 * 4


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[dict[str, Any]]:
        raise TypeError("ours")

    monkeypatch.setitem(cli_lists.LISTS, "tasks", broken)
    with pytest.raises(TypeError, match="ours"):
        widen("list", "tasks")


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> list[dict[str, Any]]:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli_lists.LISTS, "tasks", interrupted)
    assert widen("list", "tasks") == Answer(130, "", "interrupted\n")

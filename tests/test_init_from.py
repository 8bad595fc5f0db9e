"""Runs that begin with the networks of another policy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from widen.deploy.runtime import OnnxPolicy
from widen.train.cli import main
from widen.train.config import RunConfig, load_config
from widen.train.init_from import CARRIED
from widen.train.run_folder import RunFolder
from widen.train.runner import Runner
from widen.train.start import start
from widen.train.trained import Trained

SMALL = (
    "env.num_envs=16",
    "env.history=1",
    "policy.hidden=[24,16]",
    "ppo.steps=8",
    "ppo.iterations=2",
    "evaluation.episodes=4",
    "env.episode_seconds=1",
)
WARMED = ("ppo.critic_warmup=3", "ppo.iterations=6", "ppo.entropy_coef=0.01", "seed=5")
CRITIC = ("value_net", "mlp_extractor.value_net", "vf_features")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "run"
    assert (
        main(["train", "cube_rotate", *SMALL, "policy.init_std=0.3", "--run-dir", str(folder)]) == 0
    )
    return folder


def config(*overrides: str) -> RunConfig:
    return load_config("cube_rotate", [*SMALL, *overrides])


def fresh(overrides: tuple[str, ...], tmp_path: Path) -> Runner:
    return start(config(*overrides), tmp_path / "second", resume=False)


def test_a_run_hands_on_all_its_networks(run: Path, tmp_path: Path) -> None:
    before = Trained.restore(RunFolder.open(run)).policy.state_dict()
    runner = fresh((f"init_from={run}", "seed=5"), tmp_path)
    for key, value in runner.policy.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, msg=key)
    noted = json.loads((tmp_path / "second" / "environment.json").read_text())["init_from"]
    assert noted == {"name": str(run), "steps": 256}


def test_with_other_parameters_the_critic_is_new(run: Path, tmp_path: Path) -> None:
    """Which it sees, so that its observation has another width."""
    drawn = ("randomization.curriculum=adr", "randomization.parameters={joint_damping: {}}")
    runner = fresh((f"init_from={run}", *drawn), tmp_path)
    before = Trained.restore(RunFolder.open(run)).policy.state_dict()
    after = runner.policy.state_dict()
    width = "mlp_extractor.value_net.0.weight"
    assert after[width].shape[1] > before[width].shape[1]
    torch.testing.assert_close(after["action_net.weight"], before["action_net.weight"])
    torch.testing.assert_close(
        after["log_std"], torch.full((16,), np.log(0.3)).float(), atol=0.1, rtol=0
    )


def test_a_run_may_explore_anew(run: Path, tmp_path: Path) -> None:
    anew = ("policy.explore_anew=true", "policy.init_std=0.45")
    after = fresh((f"init_from={run}", *anew), tmp_path).policy.state_dict()
    before = Trained.restore(RunFolder.open(run)).policy.state_dict()
    torch.testing.assert_close(after["log_std"].exp(), torch.full((16,), 0.45))
    assert (before["log_std"].exp() < 0.4).all()
    for key in after.keys() - {"log_std"}:
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=0, msg=key)


def test_a_file_acts_as_it_did(run: Path, tmp_path: Path) -> None:
    """The new policy's answer in torch is that of the file, by ONNX Runtime, to the same readings."""
    file = run / "policy.onnx"
    runner = fresh((f"init_from={file}", "policy.init_std=0.2"), tmp_path)
    reset = runner.env.reset()
    with torch.no_grad():
        action = runner.policy.mean_action(reset["actor"]).clamp(-1.0, 1.0)
    policy, home = OnnxPolicy(file), np.asarray(runner.env.scene.hand.home)
    policy.reset(16)
    readings = {key: value.float().numpy() for key, value in runner.env.task.readings().items()}
    target = policy(readings)
    wanted = home + 0.2 * action.numpy()  # relative, and 0.2 rad a step
    wanted = np.clip(wanted, runner.env.scene.lower, runner.env.scene.upper)
    np.testing.assert_allclose(target, wanted, atol=1e-5)
    moved = float(np.abs(target - home).max())
    assert moved > 1e-3
    state = runner.policy.state_dict()
    torch.testing.assert_close(state["log_std"].exp(), torch.full((16,), 0.2))
    assert state["pi_features_extractor.normalizer.count"] == CARRIED


def test_in_the_beginning_only_the_critic_learns(run: Path, tmp_path: Path) -> None:
    runner = fresh((f"init_from={run / 'policy.onnx'}", *WARMED), tmp_path)
    ppo, seen = runner.ppo, []

    def note() -> None:
        state = {
            k: v.clone() for k, v in runner.policy.state_dict().items() if "normalizer" not in k
        }
        seen.append((state, ppo.learning_rate))

    train = ppo.train

    def noting() -> None:
        note()
        train()
        note()

    ppo.train = noting  # type: ignore[method-assign]
    runner.train(lambda *_: {})
    assert len(seen) == 12
    for i in range(6):
        (before, rate), (after, later) = seen[2 * i : 2 * i + 2]
        moved = {key for key in before if not torch.equal(before[key], after[key])}
        actors = {key for key in moved if not key.startswith(CRITIC)}
        assert moved - actors
        if i < 3:
            assert not actors
            assert rate == later
        else:
            assert {"log_std", "action_net.weight"} <= actors


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("env.history=2",), ("(63,) there and (126,) here", "env.history")),
        (("policy.hidden=[24,16,8]",), ("action_net.weight", "policy")),
        (("policy.type=lstm",), ("lstm", "policy.type")),
    ],
)
@pytest.mark.parametrize("of", ["run", "file"])
def test_another_policy_is_refused(
    of: str,
    overrides: tuple[str, ...],
    said: tuple[str, ...],
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = run if of == "run" else run / "policy.onnx"
    arguments = [*SMALL, *overrides, f"init_from={path}", "--run-dir", str(tmp_path / "second")]
    assert main(["train", "cube_rotate", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert all(word in error for word in ("init_from", *said)), error
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("name", ["cube_rotat", "no/such/folder", "no/such.onnx"])
def test_a_policy_that_is_not_there(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "second"
    assert (
        main(["train", "cube_rotate", *SMALL, f"init_from={name}", "--run-dir", str(folder)]) == 2
    )
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert name in error
    assert not folder.exists()


def test_a_damaged_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a protobuf")
    assert main(["train", "cube_rotate", *SMALL, f"init_from={tmp_path / 'broken.onnx'}"]) == 2
    error = capsys.readouterr().err.strip()
    assert "broken.onnx" in error
    assert error.count("\n") == 0


def test_names_stay_as_they_were_typed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path of this computer has no business in a policy's contract."""
    monkeypatch.chdir(run.parent)
    fresh((f"init_from={run.name}",), tmp_path)
    said = yaml.safe_load((tmp_path / "second" / "config.yaml").read_text())
    assert said["init_from"] == run.name

"""A run and its policy on one simulation backend or the other, from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from command_line import SMALL, Answer, answer_of, widen
from same_runs import newest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backends")
    (path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return path


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """Trained on the CPU."""
    line = ("train", folder / "small.yaml", "sim.backend=auto", "--run-dir", folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        return Path(answer_of(*line)["run"])


def test_eval_on_another_backend_than_the_run_s(run: Path, folder: Path) -> None:
    """A run on warp is tried on the CPU where there is no GPU, and this is said."""
    given = answer_of("eval", run, "--episodes", "8", "--backend", "cpu")
    if not torch.cuda.is_available():
        assert answer_of("eval", run, "--episodes", "8")["goals"] == given["goals"]
    elsewhere = folder / "from_a_gpu"
    shutil.copytree(run, elsewhere)
    config = elsewhere / "config.yaml"
    config.write_text(config.read_text().replace("backend: auto", "backend: warp"))
    answer = widen("eval", elsewhere, "--episodes", "8", "--json")
    if not torch.cuda.is_available():
        assert answer.err == "trained on warp; there is no GPU here, so cpu simulates\n"
        assert json.loads(answer.out)["goals"] == given["goals"]
    for verb in ("eval", "play"):
        wrong = widen(verb, run, "--backend", "gpu")
        assert wrong == Answer(2, "", "error: --backend gpu: expected auto, cpu or warp\n")


def test_a_run_stays_on_its_backend(run: Path, folder: Path) -> None:
    assert json.loads((run / "environment.json").read_text())["backend"] == "cpu"
    assert newest(run)["backend"] == "cpu"
    again = ("train", folder / "small.yaml", "ppo.iterations=4", "--resume", "--run-dir")
    elsewhere = folder / "on_a_gpu"
    shutil.copytree(run, elsewhere)
    state = newest(run) | {"backend": "warp"}
    torch.save(state, max(elsewhere.glob("checkpoints/*.pt")))
    answer = widen(*again, elsewhere, "sim.backend=cpu")
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert "sim.backend: simulated by 'warp' there and by 'cpu' here" in answer.err
    # auto and cpu are the same on a machine without a GPU
    shutil.copytree(run, folder / "same")
    assert widen(*again, folder / "same", "sim.backend=cpu").code == 0


@pytest.mark.warp
def test_a_run_on_warp_from_training_to_both_backends(folder: Path) -> None:
    run = folder / "warp"
    line = ("train", folder / "small.yaml", "sim.backend=warp", "--run-dir", run)
    first = answer_of(*line, "ppo.iterations=2")
    assert first["steps"] == 16 * 4 * 2
    assert newest(run)["backend"] == "warp"
    # as a run that ended for want of room goes on
    assert answer_of(*line, "--resume", "sim.njmax=120", "sim.nconmax=64")["steps"] == 16 * 4 * 3
    for subject in (run, run / "policy.onnx"):
        for backend in ("warp", "cpu"):
            result = answer_of("eval", subject, "--episodes", "4", "--backend", backend)
            assert result["episodes"] == 4

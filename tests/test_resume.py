"""A run that is killed and resumed writes the same numbers as one that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml
from same_runs import assert_equal, log, newest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ITERATIONS = 12
CONFIG = """
task: cube_rotate
seed: 3
env: {num_envs: 32, episode_seconds: 1.0}
sim: {threads: 2}
policy: {hidden: [32]}
ppo: {steps: 8, iterations: %d, minibatches: 2, epochs: 2}
checkpoint: {every: 4}
evaluation: {episodes: 2}
randomization:
  curriculum: adr
  # thresholds that short, bad episodes cross, so that bounds move within a few iterations
  adr: {buffer: 3, widen_at: 0.0, narrow_at: -1.0}
  parameters: {object_mass: {}, hand_friction: {}, actuator_gain: {}, gravity: {},
    action_latency: {step: 0.2}, action_noise: {}, joint_bias: {}, joint_noise: {},
    object_pos_noise: {}, object_rot_bias: {}, object_delay: {step: 0.2}, object_refresh: {}}
"""


def command(config: Path, run: Path, *extra: str) -> list[str]:
    return [sys.executable, "-m", "widen.train", str(config), "--run-dir", str(run), *extra]


def train(config: Path, run: Path, *extra: str) -> None:
    subprocess.run(command(config, run, *extra), check=True, capture_output=True, cwd=run.parent)


def losses(run: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in tags}


def test_kill_and_resume_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG % ITERATIONS)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(config, whole)

    process = subprocess.Popen(
        command(config, killed), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    try:
        # kill it somewhere after the first checkpoint, in the middle of whatever it does
        while not list(killed.glob("checkpoints/*.pt")):
            assert process.poll() is None, "the run ended before its first checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (killed / "policy.onnx").exists()
    assert len([x for x in log(killed) if x["kind"] == "interval"]) < ITERATIONS
    train(config, killed, "--resume")

    assert sum(line["kind"] == "move" for line in log(whole)) >= 3
    assert log(killed) == log(whole)
    assert_equal(newest(killed), newest(whole))
    expected, got = losses(whole), losses(killed)
    assert {"train/loss", "rollout/diverged"} <= expected.keys()
    for tag, values in expected.items():
        # both processes wrote the steps between the checkpoint and the kill
        assert got[tag] == values, tag
    assert (killed / "policy.onnx").is_file()


def test_signal_ends_the_run_saved_and_resumable(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG % 4000)
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(config, run),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (run / "adr.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, 1, 2), errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    last = [line for line in log(run) if line["kind"] == "interval"][-1]
    assert newest(run)["steps"] == last["steps"]


def test_what_a_resume_changes_is_what_the_next_goes_on_from(tmp_path: Path) -> None:
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(CONFIG % 1)
    train(config, run)
    exported = (run / "policy.onnx").stat().st_mtime_ns
    train(config, run, "ppo.iterations=2", "checkpoint.every=7", "--resume")
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert (kept["ppo"]["iterations"], kept["checkpoint"]["every"]) == (2, 7)
    assert (run / "policy.onnx").stat().st_mtime_ns > exported
    policy = (run / "policy.onnx").read_bytes()
    train(run / "config.yaml", run, "--resume")  # there is nothing left to train
    assert (run / "policy.onnx").read_bytes() == policy

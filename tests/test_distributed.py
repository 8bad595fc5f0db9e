"""Several processes train one policy: real ones, that talk by gloo."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import two_ranks
from same_runs import assert_equal, log, newest

from widen.envs.sim_cpu import processors
from widen.randomization.curriculum import Records
from widen.train import ranks
from widen.train.ranks import Ranks

CONFIG = """
task: fingertip_reach
seed: 3
env: {num_envs: 8, episode_seconds: 0.5}
ppo: {steps: 4, iterations: 12, minibatches: 2, epochs: 2}
policy: {hidden: [16]}
checkpoint: {every: 4, keep: 10}
evaluation: {episodes: 2}
randomization:
  curriculum: adr
  # thresholds that short, bad episodes cross, so that bounds move within a few iterations
  adr: {buffer: 3, widen_at: 0.0, narrow_at: -1.0}
  parameters: {joint_damping: {}, joint_noise: {}, action_latency: {step: 0.2}}
"""


def environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun tells one of two processes."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # type: ignore
    path = (str(Path(two_ranks.__file__).parent), os.environ.get("PYTHONPATH", ""))
    variables = {name: str(value) for name, value in place.items()}
    return {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("distributed")
    (path / "small.yaml").write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, Any]]:
    """What two processes found out together; see `two_ranks`. They share one start."""
    two_ranks.train(Ranks(), folder / "small.yaml", folder / "one", 4)
    port = free_port()
    both = [
        subprocess.Popen(
            [sys.executable, two_ranks.__file__, str(folder)],
            env=environment(rank, port),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_two_ranks_of_n_learn_as_one_of_2n(results: list[dict[str, Any]]) -> None:
    """Same data, same minibatches: parameters, normalisers, rate and what is logged."""
    single = two_ranks.updates(Ranks(), (0, 1))
    first, second = (result["updates"] for result in results)
    for expected, ours, theirs in zip(single, first, second, strict=True):
        assert ours["rate"] == theirs["rate"] == expected["rate"]
        for name, value in expected["policy"].items():
            assert torch.equal(ours["policy"][name], theirs["policy"][name]), name
            torch.testing.assert_close(ours["policy"][name], value, rtol=1e-4, atol=2e-6)
        for name, value in expected["figures"].items():
            assert ours["figures"][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    rates = [update["rate"] for update in single]
    assert len(set(rates)) > 1
    assert single[-1]["policy"]["pi_features_extractor.normalizer.count"] == 3 * 2 * 7 * 12


def test_one_rank_of_its_own_data_learns_something_else() -> None:
    """The test above could fail: the parts differ in what is pooled."""
    both, half = two_ranks.updates(Ranks(), (0, 1))[0], two_ranks.updates(Ranks(), (0,))[0]
    for name in ("log_std", "action_net.weight", "vf_features_extractor.normalizer.mean"):
        assert not torch.allclose(both["policy"][name], half["policy"][name], rtol=1e-3)


def test_pooled_boundaries_are_judged_as_by_one_process(results: list[dict[str, Any]]) -> None:
    curriculum = two_ranks.ADR.make_curriculum()
    moves = []
    for rollout in range(3):
        parts = [two_ranks.records(rollout, part) for part in range(2)]
        joined = (np.concatenate([getattr(p, key) for p in parts]) for key in Records._fields[:3])
        oldest = np.minimum(parts[0].oldest, parts[1].oldest)
        moves += [
            vars(move) for move in curriculum.decide([Records(*joined, oldest, parts[0].next)])
        ]
        for result in results:
            assert result["decisions"][0][rollout] == curriculum.bounds.tolist()
    assert len(moves) >= 4
    assert results[0]["decisions"][1] == moves
    assert results[1]["decisions"][1] == []


def test_trouble_of_one_rank_ends_all_and_rank_0_tells(results: list[dict[str, Any]]) -> None:
    agreed, overflow, not_finite = results[0]["failures"]
    assert agreed == overflow == "ValueError: sim.nconmax: too small"
    assert not_finite.startswith("FloatingPointError: the loss became nan")
    assert results[1]["failures"] == ["Told: 2"] * 3
    # of two with bad news of their own one tells
    assert sorted(result["claims"][0] for result in results) == [False, True]
    assert not any(result["claims"][1] for result in results)


def test_steps_of_all_count_and_rank_0_alone_writes(
    results: list[dict[str, Any]], folder: Path
) -> None:
    lines = [line for line in log(folder / "whole") if line["kind"] == "interval"]
    assert [line["steps"] for line in lines] == [2 * 8 * 4 * (k + 1) for k in range(12)]
    assert [line["iteration"] for line in lines] == list(range(1, 13))
    assert results[0]["whole"]["steps"] == results[1]["whole"]["steps"] == 2 * 8 * 4 * 12
    state = newest(folder / "whole")
    own = [part["env"]["perturbation"] for part in state["ranks"]]
    assert not torch.equal(own[0]["values"], own[1]["values"])  # different draws
    # both drew from ranges that began at zero width and that rank 0 alone widened
    nominal = torch.tensor([row["nominal"] for row in lines[-1]["parameters"]])
    assert all((part["values"] != nominal).any() for part in own)
    assert state["randomizer"]["curriculum"]["num_moves"] >= 3
    # 0.5 s are 10 control steps: two or three episodes of each of 16 environments ended
    assert len(state["ppo"]["episodes"]) > 2 * 16
    events = list((folder / "whole" / "tensorboard").iterdir())
    assert len(events) == 1


def test_resume_with_fewer_and_with_more_processes(
    results: list[dict[str, Any]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = newest(folder / "one")
    assert (more["iteration"], more["steps"], len(more["ranks"])) == (6, 4 * 32 + 2 * 64, 2)
    shutil.copytree(folder / "whole", folder / "fewer")
    before = newest(folder / "fewer")
    result = two_ranks.train(Ranks(), folder / "small.yaml", folder / "fewer", 13, resume=True)
    told = "checkpoint of 2 processes, resumed with 1: the episodes of 1 process are dropped"
    assert told in capsys.readouterr().err
    after = newest(folder / "fewer")
    assert result["steps"] == after["steps"] == before["steps"] + 32
    assert (after["iteration"], len(after["ranks"])) == (13, 1)
    count = "pi_features_extractor.normalizer.count"
    assert after["ppo"]["policy"][count] == before["ppo"]["policy"][count] + 32
    # rank 0's environments went on: in 4 steps most are of the age that they had, and 4
    ages = [state["ranks"][0]["env"]["env"]["age"] for state in (before, after)]
    went_on = ages[0] + 4 < 10
    assert went_on.any()
    assert torch.equal(ages[1][went_on], ages[0][went_on] + 4)


# ---- under torchrun

pytestmark_linux = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="finds the processes in /proc"
)


class Torchrun:
    """`torchrun -m widen.train`, two processes."""

    def __init__(self, folder: Path, run: Path, *options: str, iterations: int = 12) -> None:
        self.run = run
        command = ["torchrun", "--nproc-per-node=2", f"--master-port={free_port()}", *options]
        command += ["-m", "widen.train", str(folder / "small.yaml"), "--run-dir", str(run)]
        command += [f"ppo.iterations={iterations}"]
        beside = Path(sys.executable).parent
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def signal_after_a_checkpoint(self, rank: int, number: int) -> None:
        """Send a signal to one of the two processes, in the middle of whatever it does."""
        deadline = time.monotonic() + 120
        while not list(self.run.glob("checkpoints/*.pt")):
            assert self.process.poll() is None, "the run ended before its first checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(self._worker(rank), number)

    def _worker(self, rank: int) -> int:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                variables = (process / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if parent == self.process.pid and f"RANK={rank}".encode() in variables:
                return int(process.name)
        raise AssertionError(f"no process of rank {rank}")

    def end(self) -> tuple[int, str, list[str]]:
        """Exit code, stdout, and what stands on stderr from widen's errors."""
        out, err = self.process.communicate(timeout=180)
        ours = [line for line in err.splitlines() if re.match("error|interrupted", line)]
        assert "/train/" not in err, err  # a traceback through widen
        return self.process.returncode, out, ours


@pytestmark_linux
def test_torchrun_starts_a_killed_process_again_and_nothing_is_lost(
    results: list[dict[str, Any]], folder: Path
) -> None:
    run = folder / "restarted"
    torchrun = Torchrun(folder, run, "--max-restarts=1")
    torchrun.signal_after_a_checkpoint(1, signal.SIGKILL)
    code, out, errors = torchrun.end()
    assert code == 0, errors
    assert len(errors) == 1
    assert "another process of this training died" in errors[0]
    assert f"{run}/checkpoints/" in errors[0]
    assert errors[0].endswith("torchrun starts the processes again")
    assert out.count("goals per episode in the nominal world") == 1
    assert (run / "policy.onnx").is_file()
    # exactly as if nothing had happened
    assert log(run) == log(folder / "whole")
    assert_equal(newest(run), newest(folder / "whole"))


@pytestmark_linux
def test_a_killed_process_ends_the_run_in_one_line(folder: Path) -> None:
    run = folder / "killed"
    torchrun = Torchrun(folder, run, iterations=100_000)
    torchrun.signal_after_a_checkpoint(0, signal.SIGKILL)
    code, out, errors = torchrun.end()
    assert (code, out, len(errors)) == (1, "", 1)
    saved = max((run / "checkpoints").glob("*.pt"))
    assert newest(run)["steps"] == int(saved.stem)
    assert f"last is {saved}; go on with: torchrun --nproc-per-node=2 -m widen.train" in errors[0]
    assert errors[0].endswith(f"{run}/config.yaml --run-dir {run} --resume")


@pytestmark_linux
@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_iteration(folder: Path) -> None:
    run = folder / "stopped"
    torchrun = Torchrun(folder, run, iterations=100_000)
    torchrun.signal_after_a_checkpoint(1, signal.SIGTERM)
    code, _, errors = torchrun.end()
    assert code == 1  # torchrun's own
    assert len(errors) == 1
    assert "-m widen.train" in errors[0]
    assert newest(run)["steps"] == log(run)[-1]["steps"]


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run(folder: Path) -> None:
    run, port = folder / "hangs", free_port()
    code = (
        "import sys, datetime, widen.train.ranks as ranks, widen.train.cli as cli;"
        "ranks.TIMEOUT = datetime.timedelta(seconds=8); sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "train", str(folder / "small.yaml")]
    command += ["ppo.iterations=100000", "--run-dir", str(run)]
    both = [
        subprocess.Popen(command, env=environment(rank, port), stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        while not list(run.glob("checkpoints/*.pt")):
            assert both[0].poll() is None
            time.sleep(0.01)
        both[1].send_signal(signal.SIGSTOP)
        _, errors = both[0].communicate(timeout=60)
    finally:
        both[1].kill()
        both[1].communicate()
    assert both[0].returncode == 1
    assert "Traceback" not in errors
    assert errors.count("another process of this training died or hangs") == 1


def test_a_process_that_is_still_connected_ends_at_once(folder: Path) -> None:
    """Python's own end takes down what gloo's threads may still use."""
    code = (
        "import atexit, sys; import torch.distributed as dist; import widen.train.cli as cli;"
        "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1);"
        "atexit.register(print, 'the usual end'); sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "train", str(folder / "small.yaml"), "ppo.step=1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(r"error: .*ppo\.step.*\n", ended.stderr)


def test_a_restart_does_not_take_over_a_folder_that_was_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does torchrun begin a run that its restart would not find."""
    config, run = folder / "small.yaml", folder / "before"
    two_ranks.train(Ranks(), config, run, 1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(ValueError, match="exists and is not empty"):
        two_ranks.train(Ranks(), config, run, 2)
    with pytest.raises(ValueError, match=r"--max-restarts: expected --run-dir"):
        two_ranks.train(Ranks(), config, None, 2)  # type: ignore
    # one of its own that has no checkpoint yet begins again
    own = folder / "own"
    two_ranks.train(Ranks(), config, own, 1)
    for checkpoint in own.glob("checkpoints/*.pt"):
        checkpoint.unlink()
    assert two_ranks.train(Ranks(), config, own, 2)["steps"] == 2 * 32
    assert [line["iteration"] for line in log(own) if line["kind"] == "interval"] == [1, 2]


@pytest.mark.parametrize("stop", [0, signal.SIGTERM])
def test_a_gpu_that_waits_for_the_dead_is_given_up(
    stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its events are scripted: the first one comes to pass, the second one never does."""
    asked = iter([False, False, True])

    class Event:
        def record(self, stream: Any) -> None:
            assert stream == "the stream"

        def query(self) -> bool:
            return next(asked, False)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the stream")
    monkeypatch.setattr(ranks, "TIMEOUT", timedelta(seconds=30.0 if stop else 0.1))
    monkeypatch.setattr(ranks, "_GRACE", 0.1)
    one = object.__new__(ranks.Processes)
    one.wait(torch.device("cpu"))
    one.wait(torch.device("cuda"))
    one.stop_requested = stop  # torchrun's, when another process died
    began = time.monotonic()
    with pytest.raises(ranks.RankLost, match="GPU"):
        one.wait(torch.device("cuda"))
    assert 0.1 <= time.monotonic() - began < 5.0


def test_threads_and_seeds_of_a_rank() -> None:
    first, third = Ranks(), Ranks()
    third.rank, third.local_world = 2, 2
    assert first.threads(0) == processors()
    assert third.threads(0) == max(1, processors() // 2)
    assert first.threads(3) == third.threads(3) == 3
    seeds = {first.seed(5), third.seed(5), third.seed(6), third.seed(5, begun=10)}
    assert len(seeds) == 4
    assert first.seed(5) == first.seed(5, begun=10) == 5
    assert all(0 <= seed < 1 << 32 for seed in seeds)

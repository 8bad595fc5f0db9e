"""What `gpu.py` measures; every section is a function of a `Size` and returns plain values."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.sim import SimConfig
from widen.randomization.config import RandomizationConfig
from widen.randomization.parameters import CATALOGUE
from widen.randomization.randomizer import Randomizer
from widen.train.config import load_config
from widen.train.runner import Runner

ROOT = Path(__file__).resolve().parent.parent
CUDA = torch.cuda.is_available()
CONFIG = "cube_rotate_gpu"


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    worlds: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768)
    """of the sweep over the number of environments"""
    num_envs: int = 8192
    """of everything else"""
    seconds: float = 2.0
    """measured per figure"""
    iterations: int = 8
    """of training per variant"""
    score_seconds: float = 60.0
    """of training toward a score"""
    adr_seconds: float = 90.0
    """of training with the curriculum"""
    episodes: int = 512
    """per evaluation"""


SMOKE = Size((8, 16), 16, 0.2, 2, 2.0, 2.0, 4)
"""Enough to see that every section works, on a CPU."""


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes on the device [s]."""
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def repeat(work: Callable[[], Any], seconds: float) -> float:
    """Seconds per call of `work`, over at least `seconds` and three calls [s]."""
    once = timed(work)
    count = max(3, round(seconds / max(once, 1e-6)))
    return timed(lambda: [work() for _ in range(count)]) / count


def used_memory() -> int:
    """Bytes in use on the GPU, whoever allocated them; 0 without one."""
    if not CUDA:
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


def make_env(num_envs: int, randomised: bool) -> BatchedEnv:
    """cube_rotate on warp, with every parameter over its whole limits or with none."""
    entries = dict.fromkeys(CATALOGUE) if randomised else {}
    config = RandomizationConfig.model_validate({"curriculum": "uniform", "parameters": entries})
    return BatchedEnv(
        "cube_rotate",
        config=EnvConfig(num_envs=num_envs),
        sim=SimConfig(backend="warp"),
        perturbation=Randomizer(config) if randomised else None,
        stagger=True,
    )


def simulation(size: Size) -> dict[str, Any]:
    """Environment steps per second by number of worlds, with and without randomisation."""
    rows = []
    for num_envs in size.worlds:
        for randomised in (False, True):
            gc.collect()
            if CUDA:
                torch.cuda.empty_cache()
            row: dict[str, Any] = {"worlds": num_envs, "randomised": randomised}
            try:
                row |= _simulation_row(num_envs, randomised, size.seconds)
            except Exception as error:  # out of memory at one size says nothing of the others
                row["error"] = str(error).splitlines()[0][:200]
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    return {"rows": rows}


def _simulation_row(num_envs: int, randomised: bool, seconds: float) -> dict[str, Any]:
    before = used_memory()
    began = time.perf_counter()
    env = make_env(num_envs, randomised)
    env.reset()
    actions = iter_actions(env)
    for _ in range(3):
        env.step(next(actions))
    wait()
    made = time.perf_counter() - began
    step = repeat(lambda: env.step(next(actions)), seconds)
    ctrl, wrench = env.perturbation.act(env.target, env.substeps)
    physics = repeat(lambda: env.sim.step(ctrl, wrench), seconds / 2)
    everyone = torch.ones(num_envs, dtype=torch.bool, device=env.device)
    commit = repeat(lambda: env.sim.commit(everyone), seconds / 4)
    row = {
        "env_steps_per_s": round(num_envs / step),
        "physics_steps_per_s": round(num_envs / physics),
        "step_ms": round(1e3 * step, 3),
        "physics_ms": round(1e3 * physics, 3),
        "commit_ms": round(1e3 * commit, 3),
        "memory_mb_per_env": round((used_memory() - before) / num_envs / 1e6, 4),
        "ready_s": round(made, 2),
        "divergences": env.divergences,
    }
    try:
        env.sim.check()
    except ValueError as error:
        row["overflow"] = str(error)
    return row


def iter_actions(env: BatchedEnv) -> Iterator[torch.Tensor]:
    """Random actions for ever, drawn beforehand."""
    generator = torch.Generator(env.device).manual_seed(0)
    shape = 16, env.num_envs, env.num_actions
    drawn = 0.6 * torch.randn(shape, generator=generator, device=env.device)
    while True:
        yield from drawn


def runner_of(size: Size, *overrides: str) -> Runner:
    """The GPU config on warp, at the benchmark's size."""
    common = (f"env.num_envs={size.num_envs}", "sim.backend=warp")
    runner = Runner(load_config(CONFIG, [*common, *overrides]))
    # as a training does at the end of every rollout
    runner.randomizer.settle_every = runner.config.ppo.steps
    return runner


def training(size: Size) -> dict[str, Any]:
    """Training steps per second and shares of time, by precision and compilation."""
    variants = {
        "float32": (),
        "tf32": ("ppo.precision=tf32",),
        "bfloat16": ("ppo.precision=bfloat16",),
        "float32, compiled": ("ppo.compile=true",),
        "bfloat16, compiled": ("ppo.precision=bfloat16", "ppo.compile=true"),
    }
    rows = []
    for name, overrides in variants.items():
        row: dict[str, Any] = {"variant": name}
        try:
            row |= _training_row(size, overrides)
        except Exception as error:  # a toolchain that one variant lacks says nothing of the others
            row["error"] = str(error).splitlines()[0][:200]
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        gc.collect()
    return {"rows": rows, "num_envs": size.num_envs}


def _training_row(size: Size, overrides: tuple[str, ...]) -> dict[str, Any]:
    runner = runner_of(size, *overrides)
    ppo = runner.ppo
    rollout = ppo.n_steps * ppo.n_envs
    ppo.learn(2 * rollout)  # compiles, captures, warms up
    seconds = timed(
        lambda: ppo.learn(size.iterations * rollout, log_interval=1, reset_num_timesteps=False)
    )
    shares = {
        key.removeprefix("time/share_"): round(float(value), 4)
        for key, value in ppo.last_shares.items()
    }
    return {"train_steps_per_s": round(size.iterations * rollout / seconds), "shares": shares}


def profile(size: Size) -> dict[str, Any]:
    """torch.profiler over training iterations: the operations that take longest."""
    from torch.profiler import ProfilerActivity, record_function
    from torch.profiler import profile as profiler

    def named(label: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with record_function(label):
                return work(*args, **kwargs)

        return call

    runner = runner_of(size)
    for owner, name, label in (
        (runner.env, "step", "widen: environment, physics included"),
        (runner.env.sim, "step", "widen: physics"),
        (runner.env.sim, "commit", "widen: constants of drawn models"),
        (runner.env.sim, "reset", "widen: reset of states"),
        (runner.ppo, "train", "widen: update"),
    ):
        setattr(owner, name, named(label, getattr(owner, name)))
    rollout = runner.ppo.n_steps * runner.ppo.n_envs
    runner.ppo.learn(2 * rollout)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * CUDA
    with profiler(activities=kinds) as trace:
        runner.ppo.learn(2 * rollout, reset_num_timesteps=False)
        wait()
    key = "cuda_time_total" if CUDA else "cpu_time_total"
    table = trace.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=60)
    return {"table": table, "sorted_by": key}


def score(size: Size) -> dict[str, Any]:
    """cube_rotate without randomisation, trained for a while, judged on both backends."""
    return _train_for(size, size.score_seconds, "randomization.curriculum=none")


def curriculum(size: Size) -> dict[str, Any]:
    """The config as shipped, with its curriculum."""
    return _train_for(size, size.adr_seconds)


def _train_for(size: Size, seconds: float, *overrides: str) -> dict[str, Any]:
    """Train for about so long, from the command line as a user would; then evaluate."""
    folder = Path(os.environ.get("GPU_BENCH_OUT", ".")) / f"run-{len(overrides)}"
    envs = f"env.num_envs={size.num_envs}"
    common = [CONFIG, envs, "sim.backend=warp", f"evaluation.episodes={size.episodes}", *overrides]
    rate = _iterations_per_second(size, *overrides)
    iterations = max(2, round(seconds * rate))
    began = time.perf_counter()
    result = widen(
        "train", *common, f"ppo.iterations={iterations}", "--run-dir", str(folder), "--json"
    )
    wall = time.perf_counter() - began
    curve = [
        {k: line[k] for k in ("seconds", "steps", "goals_mean", "fps")}
        for line in map(json.loads, (folder / "adr.jsonl").read_text().splitlines())
        if line["kind"] == "interval"
    ]
    thin = max(1, len(curve) // 40)
    policy = str(folder / "policy.onnx")
    episodes = ["--episodes", str(size.episodes), "--json"]
    return {
        "train": result,
        "wall_s": round(wall, 1),
        "curve": curve[::thin] + curve[-1:],
        "cpu_backend": widen("eval", policy, *episodes, "--backend", "cpu"),
        "warp_backend": widen("eval", policy, *episodes, "--backend", "warp"),
    }


def _iterations_per_second(size: Size, *overrides: str) -> float:
    runner = runner_of(size, *overrides)
    rollout = runner.ppo.n_steps * runner.ppo.n_envs
    runner.ppo.learn(2 * rollout)
    count = max(1, size.iterations // 2)
    return count / timed(lambda: runner.ppo.learn(count * rollout, reset_num_timesteps=False))


def widen(*arguments: str) -> dict[str, Any]:
    """A command of widen with --json; without the long list of single goals."""
    from widen.train.cli import main

    output = StringIO()
    with redirect_stdout(output):
        code = main(arguments)
    if code:
        raise RuntimeError(f"widen {' '.join(arguments)}: exit code {code}")
    result = json.loads(output.getvalue())
    result.pop("goals", None)
    return result


def correctness(size: Size) -> dict[str, Any]:
    """The tests marked warp: on a GPU the contract of the simulation on CUDA."""
    # only these files: others need packages that a GPU machine may not have
    marked = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if _about_warp(path)]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "warp", "-p", "no:cacheprovider", *marked],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = ran.stdout.strip().splitlines()
    return {
        "passed": ran.returncode == 0,
        "summary": lines[-1] if lines else "",
        "tail": lines[-60:],
    }


def _about_warp(path: Path) -> bool:
    return "mark.warp" in path.read_text(encoding="utf-8")


SECTIONS: dict[str, Callable[[Size], dict[str, Any]]] = {
    "simulation": simulation,
    "training": training,
    "score": score,
    "profile": profile,
    "curriculum": curriculum,
    "correctness": correctness,
}
"""In the order of their worth: a run that is cut short has measured the first ones."""

"""What `gpu.py` measures; every section is a function of a `Size` and returns plain values."""

from __future__ import annotations

import functools
import gc
import json
import math
import os
import shutil
import statistics
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
from widen.envs.probe import with_room
from widen.envs.sim import SimConfig
from widen.randomization.config import RandomizationConfig
from widen.randomization.parameters import WORLD
from widen.randomization.randomizer import Randomizer
from widen.train.config import load_config
from widen.train.runner import Runner

ROOT = Path(__file__).resolve().parent.parent
CUDA = torch.cuda.is_available()
CONFIG = "cube_rotate_gpu"


Keep = Callable[[dict[str, Any]], None]
"""writes what a section has found so far"""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    worlds: tuple[int, ...] = (8192, 1024, 32768, 2048, 16384, 4096)
    """of the sweep over the number of environments, the telling ones first"""
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
    reorient_seconds: float = 400.0
    """of training cube_reorient in the nominal world"""
    episodes: int = 512
    """per evaluation"""


SMOKE = Size((8, 16), 16, 0.2, 2, 2.0, 2.0, 2.0, 4)
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
    entries = dict.fromkeys(WORLD) if randomised else {}
    config = RandomizationConfig.model_validate({"curriculum": "uniform", "parameters": entries})
    randomizer = Randomizer(config) if randomised else None
    if randomizer is not None:
        randomizer.settle_every = 0  # there is nothing to settle, and it would wait
    return BatchedEnv(
        "cube_rotate",
        config=EnvConfig(num_envs=num_envs),
        sim=room(),
        perturbation=randomizer,
        stagger=True,
    )


@functools.cache
def room() -> SimConfig:
    """Warp with the same room for all rows, from one trial."""
    config = RandomizationConfig.model_validate(
        {"curriculum": "uniform", "parameters": dict.fromkeys(WORLD)}
    )
    warp = SimConfig(backend="warp")
    return with_room(warp, Randomizer(config), "cube_rotate", "leap", None, EnvConfig())


def simulation(size: Size, keep: Keep) -> dict[str, Any]:
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
            keep({"rows": rows})
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


def runner_of(size: Size, *overrides: str, config: str = CONFIG) -> Runner:
    """A GPU config on warp, at the benchmark's size."""
    common = (f"env.num_envs={size.num_envs}", "sim.backend=warp")
    runner = Runner(load_config(config, [*common, *overrides]))
    # as a training does at the end of every rollout
    runner.randomizer.settle_every = runner.config.ppo.steps
    return runner


def training(size: Size, keep: Keep) -> dict[str, Any]:
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
        keep({"rows": rows, "num_envs": size.num_envs})
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


def profile(size: Size, keep: Keep) -> dict[str, Any]:
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


def score(size: Size, keep: Keep) -> dict[str, Any]:
    """cube_rotate without randomisation, trained for a while, judged on both backends."""
    return _train_for(size, size.score_seconds, "randomization.curriculum=none")


def curriculum(size: Size, keep: Keep) -> dict[str, Any]:
    """The config as shipped, with its curriculum."""
    return _train_for(size, size.adr_seconds)


def reorient(size: Size, keep: Keep) -> dict[str, Any]:
    """cube_reorient without randomisation of the world: uniform goals at .4 rad."""
    return _train_for(
        size, size.reorient_seconds, "randomization.curriculum=none", config="cube_reorient_gpu"
    )


def _train_for(size: Size, seconds: float, *overrides: str, config: str = CONFIG) -> dict[str, Any]:
    """Train for about so long, from the command line as a user would; then evaluate."""
    folder = Path(os.environ.get("GPU_BENCH_OUT", ".")) / f"run-{config}-{len(overrides)}"
    envs = f"env.num_envs={size.num_envs}"
    common = [config, envs, "sim.backend=warp", f"evaluation.episodes={size.episodes}", *overrides]
    shutil.rmtree(folder, ignore_errors=True)
    rate = _iterations_per_second(size, *overrides, config=config)
    gc.collect()  # or two of these simulations would share the GPU
    if CUDA:
        torch.cuda.empty_cache()
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
    judged = {name: widen("eval", policy, *episodes, "--backend", name) for name in ("cpu", "warp")}
    apart = abs(judged["cpu"]["goals_mean"] - judged["warp"]["goals_mean"])
    spread = math.hypot(*(one["standard_error"] for one in judged.values()))
    return {
        "train": result,
        "wall_s": round(wall, 1),
        "curve": curve[::thin] + curve[-1:],
        "cpu_backend": judged["cpu"],
        "warp_backend": judged["warp"],
        # 99 times of 100, if both are the same physics
        "agree": apart <= 2.576 * spread,
    }


def _iterations_per_second(size: Size, *overrides: str, config: str) -> float:
    runner = runner_of(size, *overrides, config=config)
    rollout = runner.ppo.n_steps * runner.ppo.n_envs
    runner.ppo.learn(2 * rollout)
    count = max(1, size.iterations // 2)
    return count / timed(lambda: runner.ppo.learn(count * rollout, reset_num_timesteps=False))


def widen(*arguments: str) -> dict[str, Any]:
    """A command of widen with --json; the standard error in place of the list of goals."""
    from widen.train.cli import main

    output = StringIO()
    with redirect_stdout(output):
        code = main(arguments)
    if code:
        raise RuntimeError(f"widen {' '.join(arguments)}: exit code {code}")
    result = json.loads(output.getvalue())
    if goals := result.pop("goals", None):
        spread = statistics.stdev(goals) if len(goals) > 1 else math.inf
        result["standard_error"] = round(spread / math.sqrt(len(goals)), 3)
    return result


def correctness(size: Size, keep: Keep) -> dict[str, Any]:
    """The contract of the simulation, on CUDA where there is a GPU."""
    files = [f"tests/test_sim_{name}.py" for name in ("contract", "fields", "warp")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "warp", "-p", "no:cacheprovider", *files]
    ran = subprocess.Popen(
        command + ["-k", "cuda"] * CUDA, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert ran.stdout is not None
    lines = []
    for line in ran.stdout:
        print(line, end="", flush=True)  # into the section's log
        lines.append(line.rstrip())
    passed = ran.wait() == 0
    return {"passed": passed, "summary": lines[-1] if lines else "", "tail": lines[-60:]}


SECTIONS: dict[str, Callable[[Size, Keep], dict[str, Any]]] = {
    "correctness": correctness,
    "simulation": simulation,
    "score": score,
    "training": training,
    "profile": profile,
    "curriculum": curriculum,
    "reorient": reorient,
}

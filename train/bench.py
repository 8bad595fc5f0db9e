"""`widen bench`: what this machine does in a second, layer by layer, and against stable-baselines3.

Every ratio is the median of ratios of neighbouring blocks, so that a machine that slows down
during the run slows both sides.
"""

from __future__ import annotations

import math
import platform
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from widen.envs.batched import BatchedEnv
from widen.envs.sim_cpu import processors
from widen.randomization.parameters import CATALOGUE

from .bench_cost import against_bare, bench_env
from .bench_env import CubeRotateEnv
from .policy import PolicyConfig
from .ppo import WidenPPO
from .ppo_config import PPOConfig
from .vec_env import HandVecEnv

PACKAGES = ("widen", "mujoco", "torch", "numpy", "gymnasium", "stable-baselines3")


@dataclass(frozen=True)
class Size:
    """How much is measured. The default takes about two minutes on two cores."""

    num_envs: int = 512
    block: int = 16
    """control steps in a block; also the rollout length of PPO"""
    blocks: int = 12
    """blocks of each side of the main ratio; groups of parameters get a third"""
    rounds: int = 3
    """rounds of training: ours twice, then stable-baselines3 once on each vector"""
    default_samples: int = 16384
    """samples in one update of stable-baselines3 as it comes: 2048 steps of 8 environments"""
    memory: tuple[int, int] = (256, 1024)
    """numbers of environments between which memory is compared"""


FULL = Size()

MEASURED = {
    "bare_steps_per_s": "mujoco.batch.Batch, as many simulations and threads: rollout() alone, with "
    "the states, controls, wrenches and drawn model values that the environment's own steps had",
    "env_steps_per_s": "BatchedEnv.step with every parameter of the catalogue drawn uniformly from "
    "its whole limits, normally distributed actions of deviation 0.6, resets included; bare times "
    "the ratio",
    "env_over_bare": "median over alternating blocks",
    "train_steps_per_s": "WidenPPO on the nominal cube_rotate, rollouts and updates",
    "sb3_steps_per_s": "stable-baselines3's PPO on CubeRotateEnv, the better of DummyVecEnv(8) and "
    "SubprocVecEnv(2); the same networks, epochs, minibatches and samples in an update",
    "train_over_sb3": "median over rounds that time one after the other",
    "sb3_defaults_steps_per_s": "one iteration of stable-baselines3's PPO as it comes (minibatches "
    "of 64, 10 epochs, its own networks) on DummyVecEnv(8)",
    "train_randomized_steps_per_s": "as train_steps_per_s with every parameter",
    "memory_mb_per_env": "peak memory of one process with the randomized environment, growth from "
    "the smaller to the larger number",
}


def bench(size: Size = FULL) -> dict[str, Any]:
    """Measure this machine; rates are control steps per second.

    Returns:
        The JSON of `widen bench`: bare_steps_per_s, env_steps_per_s, env_over_bare,
        train_steps_per_s, sb3_steps_per_s, train_over_sb3, memory_mb_per_env; besides them
        sb3_defaults_steps_per_s, train_over_sb3_defaults, train_randomized_steps_per_s, layers,
        groups (what kinds of parameters cost), sb3, machine, versions and measured (how).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        everything = bench_env(size.num_envs, CATALOGUE)
        nominal = bench_env(size.num_envs, ())
        bare, full = against_bare(everything, size.block, size.blocks)
        _, task = against_bare(nominal, size.block, size.blocks // 2 + 1)
        kinds = {
            kind: against_bare(
                bench_env(size.num_envs, _of_kind(kind)), size.block, size.blocks // 3 + 1
            )[1]
            for kind in dict.fromkeys(what.kind for what in CATALOGUE.values())
        }
        training = _training(nominal, everything, size, threads)
    finally:
        torch.set_num_threads(threads)
    batch_ms = 1e3 * size.num_envs / bare
    layers = {
        "bare mujoco.batch": batch_ms,
        "+ task": batch_ms / task,
        "+ randomization": batch_ms / full,
        "+ policy inference": batch_ms / full + training.inference_ms,
        "+ PPO": 1e3 * size.num_envs / training.randomized,
    }
    return {
        "bare_steps_per_s": round(bare),
        "env_steps_per_s": round(bare * full),
        "env_over_bare": round(full, 4),
        "train_steps_per_s": round(training.sb3 * training.ratio),
        "sb3_steps_per_s": round(training.sb3),
        "train_over_sb3": round(training.ratio, 3),
        "sb3_defaults_steps_per_s": round(training.sb3_defaults),
        "train_over_sb3_defaults": round(training.sb3 * training.ratio / training.sb3_defaults, 3),
        "train_randomized_steps_per_s": round(training.randomized),
        "memory_mb_per_env": round(_memory_mb_per_env(size), 4),
        "layers": [
            {
                "layer": name,
                "steps_per_s": round(1e3 * size.num_envs / ms),
                "ms_per_batch_step": round(ms, 3),
                "over_bare": round(batch_ms / ms, 4),
            }
            for name, ms in layers.items()
        ],
        "groups": [
            {
                "kind": kind,
                "parameters": len(_of_kind(kind)),
                "ms_per_batch_step": round(batch_ms / ratio - batch_ms / task, 3),
            }
            for kind, ratio in kinds.items()
        ],
        "sb3": {name: round(rate) for name, rate in training.sb3_by_vector.items()},
        "machine": {
            "cpu": _cpu_name(),
            "processors": processors(),
            "threads": processors(),
            "num_envs": size.num_envs,
            "system": platform.platform(terse=True),
        },
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
        "measured": MEASURED,
    }


def _of_kind(kind: str) -> tuple[str, ...]:
    return tuple(name for name, what in CATALOGUE.items() if what.kind == kind)


class _Training(NamedTuple):
    sb3: float
    """steps per second of stable-baselines3 on its better vector"""
    ratio: float
    """WidenPPO's on the same task as a multiple of that"""
    randomized: float
    """WidenPPO's steps per second with every parameter"""
    inference_ms: float
    """policy inference in one step of the batch"""
    sb3_by_vector: dict[str, float]
    sb3_defaults: float
    """steps per second of stable-baselines3's PPO with its own settings on DummyVecEnv(8)"""


def _training(nominal: BatchedEnv, everything: BatchedEnv, size: Size, threads: int) -> _Training:
    ours = {"nominal": _ppo(nominal, size), "randomized": _ppo(everything, size)}
    samples = size.num_envs * size.block
    vectors: dict[str, VecEnv] = {
        "DummyVecEnv(8)": DummyVecEnv([CubeRotateEnv] * 8),
        "SubprocVecEnv(2)": SubprocVecEnv([CubeRotateEnv] * 2),
    }
    try:
        theirs = {name: _sb3(vector, samples) for name, vector in vectors.items()}
        rates: dict[str, list[float]] = {name: [] for name in (*ours, *theirs)}
        for _ in range(size.rounds):
            for name, ppo in ours.items():
                rates[name].append(_learn(ppo, 2 * samples))
            torch.set_num_threads(threads)
            for name, ppo in theirs.items():
                rates[name].append(_learn(ppo, samples))
            torch.set_num_threads(1)
        torch.set_num_threads(threads)
        dummy = vectors["DummyVecEnv(8)"]
        as_it_comes = PPO("MlpPolicy", dummy, n_steps=size.default_samples // 8, device="cpu")
        defaults = _learn(as_it_comes, size.default_samples)
        torch.set_num_threads(1)
    finally:
        for vector in vectors.values():
            vector.close()
    best = [max(pair) for pair in zip(*(rates[name] for name in theirs), strict=True)]
    return _Training(
        sb3=median(best),
        ratio=median(a / b for a, b in zip(rates["nominal"], best, strict=True)),
        randomized=median(rates["randomized"]),
        inference_ms=_inference_ms(ours["randomized"], everything),
        sb3_by_vector={name: median(rates[name]) for name in theirs},
        sb3_defaults=defaults,
    )


def _ppo(env: BatchedEnv, size: Size) -> WidenPPO:
    vector = HandVecEnv(env, privileged=True)
    return WidenPPO(vector, PPOConfig(steps=size.block), seed=0, device=env.device)


def _sb3(vector: VecEnv, samples: int) -> PPO:
    """Their PPO with our settings; it neither normalises observations nor adapts its rate."""
    ours, policy = PPOConfig(), PolicyConfig()
    return PPO(
        "MlpPolicy",
        vector,
        learning_rate=ours.learning_rate,
        n_steps=samples // vector.num_envs,
        batch_size=samples // ours.minibatches,
        n_epochs=ours.epochs,
        gamma=ours.gamma,
        gae_lambda=ours.gae_lambda,
        max_grad_norm=ours.max_grad_norm,
        policy_kwargs={
            "net_arch": {"pi": policy.hidden, "vf": policy.hidden},
            "activation_fn": torch.nn.ELU,
            "log_std_init": math.log(policy.init_std),
        },
        device="cpu",
        seed=0,
    )


def _learn(ppo: PPO, samples: int) -> float:
    """Steps per second of whole iterations."""
    began = time.perf_counter()
    ppo.learn(samples, reset_num_timesteps=False)
    return samples / (time.perf_counter() - began)


def _inference_ms(ppo: WidenPPO, env: BatchedEnv) -> float:
    obs, seconds = env.reset(), []
    for _ in range(30):
        began = time.perf_counter()
        actions, _, _ = ppo.policy.sample(obs, ppo.generator)
        seconds.append(time.perf_counter() - began)
        obs = env.step(actions).obs
    return 1e3 * median(seconds)


def _memory_mb_per_env(size: Size) -> float:
    """From fresh processes, because memory that was used once is not given back."""
    few, many = size.memory
    peaks = []
    for num_envs in (few, many):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peaks.append(pool.submit(_peak_mb, replace(size, num_envs=num_envs)).result())
    return (peaks[1] - peaks[0]) / (many - few)


def _peak_mb(size: Size) -> float:
    """Peak memory of this process after a few steps of the randomized environment [MB]."""
    torch.set_num_threads(1)
    env = bench_env(size.num_envs, CATALOGUE)
    env.reset()
    for _ in range(5):
        env.step(torch.zeros(env.num_envs, env.num_actions))
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the process that started this one
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def render(result: dict[str, Any]) -> RenderableType:
    """The same for people; with "parameters", where they hold what `parameter_costs` found."""
    machine = result["machine"]
    layers = Table(title=f"{machine['num_envs']} environments on {machine['threads']} threads")
    for heading in ("layer", "steps/s", "ms per step of the batch", "of bare"):
        layers.add_column(heading, justify="left" if heading == "layer" else "right")
    for row in result["layers"]:
        rate, share = f"{row['steps_per_s']:,}", f"{row['over_bare']:.2f}"
        layers.add_row(row["layer"], rate, f"{row['ms_per_batch_step']:.2f}", share)
    groups = Table("parameters", "of them", "ms per step of the batch")
    for row in result["groups"]:
        groups.add_row(row["kind"], str(row["parameters"]), f"{row['ms_per_batch_step']:.2f}")
    vectors = ", ".join(f"{name} {rate:,}" for name, rate in result["sb3"].items())
    text = (
        f"environment / bare MuJoCo    {result['env_over_bare']:.2f}\n"
        f"training / stable-baselines3 {result['train_over_sb3']:.1f}"
        f"  ({result['train_steps_per_s']:,} against {result['sb3_steps_per_s']:,} steps/s;"
        f" {vectors})\n"
        f"             with its defaults {result['train_over_sb3_defaults']:.1f}"
        f"  ({result['sb3_defaults_steps_per_s']:,} steps/s)\n"
        f"memory per environment       {result['memory_mb_per_env']:.3f} MB\n"
        f"{machine['cpu']}, {machine['processors']} processors; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    )
    if "parameters" not in result:
        return Group(layers, groups, Text(text))
    costs = Table(
        "parameter alone", "kind", "own ms per step of the batch", "and in the simulation"
    )
    for row in sorted(result["parameters"], key=lambda row: -row["ms_per_batch_step"]):
        figures = (f"{row[key]:+.2f}" for key in ("ms_per_batch_step", "simulation_ms"))
        costs.add_row(row["name"], row["kind"], *figures)
    return Group(layers, groups, costs, Text(text))

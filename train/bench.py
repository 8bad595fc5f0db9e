"""`widen bench`: what this machine does in a second, layer by layer, and against stable-baselines3.

Every ratio is the median of ratios of neighbouring blocks, so that a machine that slows down
during the run slows both sides.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from widen.envs.sim_cpu import processors
from widen.randomization.parameters import CATALOGUE

from .bench_cost import PARAMETERS, Bare, against_bare, bench_env, env_block, random_actions
from .bench_memory import memory_mb_per_env
from .bench_training import (
    DEFAULT_SAMPLES,
    against_sb3,
    make_ppo,
    policy_share,
    training_against_bare,
)
from .config import RunConfig, load_config

PACKAGES = ("widen", "mujoco", "torch", "numpy", "gymnasium", "stable-baselines3")


@dataclass(frozen=True)
class Size:
    """How much is measured. The default takes about two minutes on two cores."""

    overrides: tuple[str, ...] = ()
    """of the config quickstart, whose environments, rollouts, networks and update are measured"""
    blocks: int = 12
    """blocks of each side of the main ratio; groups of parameters get a third"""
    rounds: int = 3
    """rounds of training: ours twice, then stable-baselines3 once on each vector"""
    default_samples: int = DEFAULT_SAMPLES
    """samples in one update of stable-baselines3 as it comes"""
    memory: tuple[int, int] = (256, 1024)
    """numbers of environments between which memory is compared"""

    def config(self) -> RunConfig:
        """The quick start with this size's overrides."""
        return load_config("quickstart", self.overrides)


FULL = Size()

MEASURED = {
    "bare_steps_per_s": "mujoco.batch.Batch, as many simulations and threads: rollout() alone, with "
    "the states, controls, wrenches and drawn model values that the environment's own steps had",
    "env_steps_per_s": "BatchedEnv.step with every parameter of the catalogue that cube_rotate knows "
    "drawn uniformly from its whole limits, normally distributed actions of deviation 0.6, resets "
    "included; bare times the ratio",
    "env_over_bare": "median over alternating blocks",
    "train_steps_per_s": "WidenPPO on the nominal cube_rotate, rollouts and updates as in quickstart",
    "sb3_steps_per_s": "stable-baselines3's PPO on CubeRotateEnv, the better of DummyVecEnv and "
    "SubprocVecEnv; the same networks, epochs, minibatches and samples in an update",
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
        The JSON of `widen bench`: what `layers` and `training` return, memory_mb_per_env, machine,
        versions and measured (how).
    """
    config = size.config()
    return {
        **layers(size),
        **training(size),
        "memory_mb_per_env": round(memory_mb_per_env(*size.memory), 4),
        "machine": machine() | {"threads": processors(), "num_envs": config.env.num_envs},
        "versions": versions(),
        "measured": MEASURED,
    }


def layers(size: Size = FULL) -> dict[str, Any]:
    """What each layer on top of bare MuJoCo costs.

    Returns:
        bare_steps_per_s, env_steps_per_s, env_over_bare, train_randomized_steps_per_s, layers
        (from bare stepping to PPO, each with all before it) and groups (what kinds of parameters
        cost).
    """
    threads, config = torch.get_num_threads(), size.config()
    num_envs, block = config.env.num_envs, config.ppo.steps
    torch.set_num_threads(1)
    try:
        everything = bench_env(num_envs, PARAMETERS)
        bare, full = against_bare(everything, block, size.blocks)
        _, task = against_bare(bench_env(num_envs, ()), block, size.blocks // 2 + 1)
        kinds = {
            kind: against_bare(bench_env(num_envs, _of_kind(kind)), block, size.blocks // 3 + 1)[1]
            for kind in dict.fromkeys(CATALOGUE[name].kind for name in PARAMETERS)
        }
        ppo = make_ppo(everything, config)
        inference = policy_share(ppo, everything)
        everything.reset()
        actions = random_actions(everything, block, torch.Generator().manual_seed(0))
        steps = env_block(everything, actions).steps
        trained = training_against_bare(ppo, Bare(everything), steps, num_envs * block, size.rounds)
    finally:
        torch.set_num_threads(threads)
    batch_ms = 1e3 * num_envs / bare
    milliseconds = {
        "bare mujoco.batch": batch_ms,
        "+ task": batch_ms / task,
        "+ randomization": batch_ms / full,
        "+ policy inference": batch_ms / full * (1.0 + inference),
        "+ PPO": batch_ms / trained,
    }
    return {
        "bare_steps_per_s": round(bare),
        "env_steps_per_s": round(bare * full),
        "env_over_bare": round(full, 4),
        "train_randomized_steps_per_s": round(bare * trained),
        "layers": [
            {
                "layer": name,
                "steps_per_s": round(1e3 * num_envs / ms),
                "ms_per_batch_step": round(ms, 3),
                "over_bare": round(batch_ms / ms, 4),
            }
            for name, ms in milliseconds.items()
        ],
        "groups": [
            {
                "kind": kind,
                "parameters": len(_of_kind(kind)),
                "ms_per_batch_step": round(batch_ms / ratio - batch_ms / task, 3),
            }
            for kind, ratio in kinds.items()
        ],
    }


def training(size: Size = FULL) -> dict[str, Any]:
    """Training against stable-baselines3.

    Returns:
        train_steps_per_s, sb3_steps_per_s, train_over_sb3, sb3_defaults_steps_per_s,
        train_over_sb3_defaults, and sb3 (the rate on each kind of vector).
    """
    found = against_sb3(size.config(), size.rounds, size.default_samples)
    return {
        "train_steps_per_s": round(found.ours),
        "sb3_steps_per_s": round(found.sb3),
        "train_over_sb3": round(found.ratio, 3),
        "sb3_defaults_steps_per_s": round(found.defaults),
        "train_over_sb3_defaults": round(found.ours / found.defaults, 3),
        "sb3": {name: round(rate) for name, rate in found.vectors.items()},
    }


def _of_kind(kind: str) -> tuple[str, ...]:
    return tuple(name for name in PARAMETERS if CATALOGUE[name].kind == kind)


def machine() -> dict[str, Any]:
    """cpu (its name), processors that this process may use, and the system."""
    return {
        "cpu": _cpu_name(),
        "processors": processors(),
        "system": platform.platform(terse=True),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide the figures."""
    found = {name: metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | found


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

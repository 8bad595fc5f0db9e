"""Memory that environments take, measured in processes of their own."""

from __future__ import annotations

import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch

from .bench_cost import PARAMETERS, bench_env
from .bench_training import make_ppo
from .config import load_config

Result = TypeVar("Result")


def in_fresh_process(what: Callable[..., Result], *arguments: object) -> Result:
    """Call a module's function in a new process: memory that was used once is not given back."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(what, *arguments).result()


def memory_mb_per_env(few: int, many: int, trains: bool = False) -> float:
    """Growth of a process's peak memory from `few` to `many` environments [MB]; see `peak_mb`."""
    peaks = [in_fresh_process(peak_mb, num_envs, trains) for num_envs in (few, many)]
    return (peaks[1] - peaks[0]) / (many - few)


def peak_mb(num_envs: int, trains: bool) -> float:
    """Peak memory of this process after a few steps of the randomized cube_rotate [MB].

    Args:
        num_envs: how many.
        trains: also one iteration of PPO, with the quick start's rollouts, networks and update.
    """
    torch.set_num_threads(1)
    env = bench_env(num_envs, PARAMETERS)
    if trains:
        config = load_config("quickstart", [f"env.num_envs={num_envs}"])
        make_ppo(env, config).learn(num_envs * config.ppo.steps)
    else:
        env.reset()
        for _ in range(5):
            env.step(torch.zeros(env.num_envs, env.num_actions))
    return own_peak_mb()


def own_peak_mb() -> float:
    """Most memory that this process has had in use [MB]."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the process that started this one
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

"""Environments in which scripts are played."""

from __future__ import annotations

from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.sim import SimConfig
from widen.randomization.scripted import Script, Scripted


def world_of(*scripts: Script, num_envs: int = 3, seed: int = 5) -> tuple[BatchedEnv, Scripted]:
    world = Scripted(scripts, seed)
    config = EnvConfig(num_envs=num_envs, episode_seconds=2.0)
    return BatchedEnv(
        "cube_rotate", config=config, sim=SimConfig(threads=1), perturbation=world
    ), world

"""How good a policy is: goals per episode over whole episodes, drops included."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from widen.envs.batched import BatchedEnv, EnvConfig, Obs, StepResult
from widen.envs.objects import ObjectChoice
from widen.envs.sim import SimConfig
from widen.randomization.config import RandomizationConfig
from widen.randomization.randomizer import Randomizer

from .config import RunConfig
from .policy import HandPolicy

# Far from the seeds people train with, so that a policy is never examined on its own draws.
SEED = 7_919_000
MOST_ENVS = 256

Step = Callable[[Obs, Tensor], StepResult]
"""One control step from the observations and a mask (N,) of environments that begin an episode."""
Trial = tuple[BatchedEnv, Step]
"""Environments to try a policy in, and its control step there."""


def ranges_config(table: Iterable[dict[str, Any]]) -> RandomizationConfig:
    """Fixed ranges as a monitor's or a contract's table states them: `current` randomization."""
    parameters = {
        row["name"]: {
            "range": (row["low"], row["high"]),
            "limits": (row["limit_low"], row["limit_high"]),
        }
        for row in table
    }
    return RandomizationConfig.model_validate({"curriculum": "uniform", "parameters": parameters})


def evaluation_env(
    task: str,
    hand: str,
    object_name: ObjectChoice,
    env: EnvConfig,
    sim: SimConfig,
    randomization: RandomizationConfig,
    episodes: int,
    seed: int = SEED,
) -> BatchedEnv:
    """Environments for `evaluate`, in which every episode is whole."""
    return BatchedEnv(
        task,
        hand,
        object_name,
        env.model_copy(update={"num_envs": min(episodes, MOST_ENVS)}),
        sim,
        Randomizer(randomization, seed) if randomization.parameters else None,
        seed=seed,
    )


def policy_trial(
    config: RunConfig,
    policy: HandPolicy,
    episodes: int,
    randomization: RandomizationConfig,
    sim: SimConfig,
) -> Trial:
    """The deterministic policy in environments of its own.

    Args:
        config: of the run that trained it.
        policy: is moved to the environments' device.
        episodes: as `evaluation_env` takes it.
        randomization: fixed ranges, or none.
        sim: settings that may differ from the run's, as by another backend.
    """
    env = evaluation_env(
        config.task, config.hand, config.object, config.trial_env, sim, randomization, episodes
    )
    return env, policy_step(policy, env)


def policy_step(policy: HandPolicy, env: BatchedEnv) -> Step:
    """The control step of the deterministic policy, which is moved to the environments' device."""
    policy = policy.to(env.device)
    policy.set_training_mode(False)
    state = policy.initial_state(env.num_envs)

    @torch.no_grad()
    def step(obs: Obs, fresh: Tensor) -> StepResult:
        nonlocal state
        action, state = policy.advance(obs["actor"], policy.begin(state, fresh))
        return env.step(action)

    return step


def evaluate(
    env: BatchedEnv,
    step: Step,
    episodes: int,
) -> dict[str, Any]:
    """Run `episodes` episodes, the same number in every environment.

    Counting the first that end would favour the short ones, which are the drops.

    Args:
        env: without staggering.
        step: of the policy that is judged.
        episodes: rounded up to a multiple of the number of environments.

    Returns:
        episodes, goals_mean, goals_median, drop_rate, goals (list), diverged (episodes that the
        simulation lost; they are not among the others), seconds.

    Raises:
        ValueError: the simulation loses more episodes than there are to count.
    """
    began = time.perf_counter()
    quota = -(-episodes // env.num_envs)
    done = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
    goals: list[float] = []
    drops, lost_before = 0, env.divergences
    obs = env.reset()
    fresh = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    while int(done.min()) < quota:
        result = step(obs, fresh)
        ended = result.episodes.rows()
        ids = ended["env_ids"]
        wanted = done[ids] < quota
        goals += ended["score"][wanted].tolist()
        drops += int(ended["failed"][wanted].sum())
        done[ids] += 1
        if (lost := env.divergences - lost_before) > quota * env.num_envs:
            raise ValueError(
                f"evaluation: the simulation diverged {lost} times in {len(goals)} whole episodes;"
                " expected a stable one: raise sim.substeps, or look at the hand's gains and masses"
            )
        obs, fresh = result.obs, result.terminated | result.truncated
    env.sim.check()
    scores = torch.tensor(goals)
    return {
        "episodes": len(goals),
        "goals_mean": round(float(scores.mean()), 4),
        "goals_median": float(scores.quantile(0.5)),
        "drop_rate": round(drops / len(goals), 4),
        "goals": goals,
        "diverged": env.divergences - lost_before,
        "seconds": round(time.perf_counter() - began, 3),
    }

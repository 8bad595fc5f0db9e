"""Training against stable-baselines3: the same task, networks and update on its own vectors."""

from __future__ import annotations

import math
import time
import warnings
from statistics import median
from typing import Any, NamedTuple

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from widen.envs.batched import BatchedEnv
from widen.envs.sim_cpu import processors

from .accelerate import torch_threads
from .bench_cost import bench_env
from .bench_env import CubeRotateEnv
from .config import RunConfig
from .ppo import WidenPPO
from .vec_env import HandVecEnv

DUMMY = 8
"""environments of the DummyVecEnv; more do not make it faster"""
DEFAULT_SAMPLES = 16384
"""samples in one update of stable-baselines3 as it comes: 2048 steps of 8 environments"""
_ACTIVATIONS = {"elu": torch.nn.ELU, "relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}


class Comparison(NamedTuple):
    """Steps per second of whole iterations, rollouts and updates."""

    ours: float
    """the better of theirs, times the ratio"""
    ratio: float
    """median over rounds of ours over the better of theirs in that round"""
    vectors: dict[str, float]
    """stable-baselines3 on each kind of vector with our networks and update: medians"""
    defaults: float
    """stable-baselines3 with its own networks and settings, on DummyVecEnv"""

    @property
    def sb3(self) -> float:
        """The better of the vectors."""
        return max(self.vectors.values())


def against_sb3(
    config: RunConfig, rounds: int, default_samples: int = DEFAULT_SAMPLES
) -> Comparison:
    """Measure both in turn, `rounds` times.

    Args:
        config: whose networks, rollouts and update both sides get. The task is the nominal
            cube_rotate.
        rounds: ours twice, then stable-baselines3 once on each vector.
        default_samples: of stable-baselines3 as it comes; a multiple of DUMMY.
    """
    threads, subprocesses = torch.get_num_threads(), max(2, processors())
    ours = make_ppo(bench_env(config.env.num_envs, ()), config)
    samples = config.env.num_envs * config.ppo.steps
    vectors: dict[str, VecEnv] = {
        f"DummyVecEnv({DUMMY})": DummyVecEnv([CubeRotateEnv] * DUMMY),
        f"SubprocVecEnv({subprocesses})": SubprocVecEnv([CubeRotateEnv] * subprocesses),
    }
    rates: dict[str, list[float]] = {name: [] for name in ("ours", *vectors)}
    try:
        theirs = {name: make_sb3(vector, config) for name, vector in vectors.items()}
        for _ in range(rounds):
            with torch_threads(1):
                rates["ours"].append(learn(ours, 2 * samples))
            for name, ppo in theirs.items():
                rates[name].append(learn(ppo, ppo.n_steps * ppo.n_envs))
        dummy = vectors[f"DummyVecEnv({DUMMY})"]
        as_it_comes = PPO("MlpPolicy", dummy, n_steps=default_samples // DUMMY, device="cpu")
        defaults = learn(as_it_comes, default_samples)
    finally:
        torch.set_num_threads(threads)
        for vector in vectors.values():
            vector.close()
    best = [max(pair) for pair in zip(*(rates[name] for name in vectors), strict=True)]
    medians = {name: median(rates[name]) for name in vectors}
    ratio = median(a / b for a, b in zip(rates["ours"], best, strict=True))
    return Comparison(max(medians.values()) * ratio, ratio, medians, defaults)


def make_ppo(env: BatchedEnv, config: RunConfig) -> WidenPPO:
    """Ours on an environment, with the config's networks and update."""
    vector = HandVecEnv(env, privileged=True)
    return WidenPPO(vector, config.ppo, config.policy, seed=0, device=env.device)


def make_sb3(vector: VecEnv, config: RunConfig) -> PPO:
    """Their PPO with the config's networks and update, and as many samples in a rollout as the
    number of its environments allows; it neither normalises observations nor adapts its rate.
    """
    ours, policy = config.ppo, config.policy
    steps = config.env.num_envs * ours.steps // vector.num_envs
    critic = policy.hidden if policy.critic_hidden is None else policy.critic_hidden
    with warnings.catch_warnings():
        # a last minibatch that is smaller by a few samples
        warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
        return PPO(
            "MlpPolicy",
            vector,
            learning_rate=ours.learning_rate,
            n_steps=steps,
            batch_size=-(-steps * vector.num_envs // ours.minibatches),
            n_epochs=ours.epochs,
            gamma=ours.gamma,
            gae_lambda=ours.gae_lambda,
            clip_range=ours.clip_range,
            ent_coef=ours.entropy_coef,
            vf_coef=ours.value_coef,
            max_grad_norm=ours.max_grad_norm,
            normalize_advantage=ours.normalize_advantage,
            policy_kwargs={
                "net_arch": {"pi": list(policy.hidden), "vf": list(critic)},
                "activation_fn": _ACTIVATIONS[policy.activation],
                "log_std_init": math.log(policy.init_std),
            },
            device="cpu",
            seed=0,
        )


def learn(ppo: PPO, samples: int) -> float:
    """Steps per second of whole iterations."""
    began = time.perf_counter()
    ppo.learn(samples, reset_num_timesteps=False)
    return samples / (time.perf_counter() - began)


def policy_share(ppo: WidenPPO, env: BatchedEnv, steps: int = 30) -> float:
    """Time that the policy takes for its actions, as a share of the environment's step."""
    obs, pairs = env.reset(), []
    for _ in range(steps):
        began = time.perf_counter()
        actions, _, _ = ppo.policy.sample(obs, ppo.generator)
        decided = time.perf_counter()
        obs = env.step(actions).obs
        pairs.append((decided - began, time.perf_counter() - decided))
    return median(policy / step for policy, step in pairs)


def training_against_bare(
    ppo: WidenPPO, bare: Any, steps: list[Any], samples: int, rounds: int
) -> float:
    """Training's speed as a share of bare stepping, blocks of which come before every iteration.

    Args:
        ppo: what trains.
        bare: a `bench_cost.Bare` of as many environments.
        steps: the motion of a block, as `bench_cost.env_block` recorded it.
        samples: control steps in an iteration of `ppo`.
        rounds: how often; the median counts.
    """
    learn(ppo, samples)
    ratios = []
    for _ in range(rounds):
        rate = len(steps) * ppo.n_envs / bare.repeat(steps)
        ratios.append(learn(ppo, samples) / rate)
    return median(ratios)

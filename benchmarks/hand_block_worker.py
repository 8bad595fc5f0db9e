"""Measures gymnasium-robotics' HandManipulateBlock; `hand_block.py` starts this in another
environment, which has no widen.

Takes its settings as JSON in its first argument. For each line on stdin, "alone", "vector" or
"train", measures once and prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import metadata
from statistics import median
from typing import Any

import gymnasium
import gymnasium_robotics
import mujoco
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import SubprocVecEnv

ENV = "HandManipulateBlock-v1"
ACTIVATIONS = {"elu": torch.nn.ELU, "relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}
STATE = mujoco.mjtState.mjSTATE_INTEGRATION


def make() -> gymnasium.Env[Any, Any]:
    gymnasium.register_envs(gymnasium_robotics)
    return gymnasium.make(ENV)


class Worker:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.rng = settings, np.random.default_rng(0)
        self.single = make()
        self.single.reset(seed=0)
        self.vector = SubprocVecEnv([make] * settings["processes"])
        self.vector.reset()
        policy, processes = settings["policy"], settings["processes"]
        self.ppo = PPO(
            "MultiInputPolicy",
            self.vector,
            n_steps=settings["samples"] // processes,
            policy_kwargs={
                "net_arch": {"pi": policy["hidden"], "vf": policy["hidden"]},
                "activation_fn": ACTIVATIONS[policy["activation"]],
            },
            device="cpu",
            seed=0,
            **settings["ppo"],
        )

    def alone(self) -> dict[str, Any]:
        """One environment, and the same steps of its physics by mj_step alone."""
        inner: Any = self.single.unwrapped
        model, data, substeps = inner.model, inner.data, inner.n_substeps
        state = np.empty(mujoco.mj_stateSize(model, int(STATE)))
        pairs = []
        scratch = mujoco.MjData(model)
        for _ in range(self.settings["steps"]):
            action = self.rng.uniform(-1.0, 1.0, self.single.action_space.shape)
            mujoco.mj_getState(model, data, state, int(STATE))
            began = time.perf_counter()
            *_, truncated, _ = self.single.step(action.astype(np.float32))
            taken = time.perf_counter() - began
            mujoco.mj_setState(model, scratch, state, int(STATE))
            scratch.ctrl[:] = data.ctrl
            began = time.perf_counter()
            mujoco.mj_step(model, scratch, substeps)
            pairs.append((taken, time.perf_counter() - began))
            if truncated:
                self.single.reset()
        return {
            "steps_per_s": 1.0 / median(step for step, _ in pairs),
            "bare_steps_per_s": 1.0 / median(bare for _, bare in pairs),
            "over_bare": median(bare / step for step, bare in pairs),
            "control_hz": 1.0 / inner.dt,
            "substeps": substeps,
            "versions": {
                name: metadata.version(name)
                for name in ("gymnasium-robotics", "mujoco", "stable-baselines3", "torch")
            },
        }

    def vectorised(self) -> dict[str, Any]:
        """The vector alone, resets included."""
        processes, steps = self.vector.num_envs, self.settings["steps"]
        width = self.vector.action_space.shape
        actions = self.rng.uniform(-1.0, 1.0, (steps, processes, *width)).astype(np.float32)
        began = time.perf_counter()
        for action in actions:
            self.vector.step(action)
        return {"steps_per_s": processes * steps / (time.perf_counter() - began)}

    def train(self) -> dict[str, Any]:
        """One rollout and its update."""
        samples = self.ppo.n_steps * self.ppo.n_envs
        began = time.perf_counter()
        self.ppo.learn(samples, reset_num_timesteps=False)
        return {"steps_per_s": samples / (time.perf_counter() - began)}


def main() -> None:
    worker = Worker(json.loads(sys.argv[1]))
    ways = {"alone": worker.alone, "vector": worker.vectorised, "train": worker.train}
    for line in sys.stdin:
        print(json.dumps(ways[line.strip()]()), flush=True)
    worker.vector.close()


if __name__ == "__main__":
    main()

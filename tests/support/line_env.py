"""Points on lines: an environment so small that PPO learns it in seconds, and PPO on it."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from widen.envs.batched import Episodes, StepResult
from widen.train.policy import PolicyConfig
from widen.train.ppo import PPOConfig, WidenPPO
from widen.train.vec_env import HandVecEnv


class LineEnv:
    """Points on lines, pushed toward a target; out of bounds fails, 12 steps are the limit."""

    masked = False

    def __init__(self, num_envs: int = 16, private: int = 2, nu: int = 2) -> None:
        self.num_envs, self.private, self.num_actions = num_envs, private, nu
        self.device = torch.device("cpu")
        self.num_actor_obs, self.num_critic_obs = 2 * nu, 2 * nu + private
        self.generator = torch.Generator().manual_seed(5)
        self.x = self.target = torch.zeros(num_envs, nu)
        self.age, self.total, self.score = torch.zeros(3, num_envs)

    def _random(self) -> torch.Tensor:
        return torch.rand(self.num_envs, self.num_actions, generator=self.generator) * 2 - 1

    def _obs(self) -> dict[str, torch.Tensor]:
        actor = torch.cat([self.x, self.target], -1)
        age = (self.age / 12.0).unsqueeze(-1).expand(-1, self.private)
        return {"actor": actor, "critic": torch.cat([actor, age], -1)}

    def reset(self) -> dict[str, torch.Tensor]:
        self.x, self.target = self._random(), self._random()
        self.age = torch.arange(self.num_envs).remainder(12).float()  # staggered
        self.total, self.score = torch.zeros(2, self.num_envs)
        return self._obs()

    def step(self, action: torch.Tensor) -> StepResult:
        self.x = self.x + 0.3 * action
        distance = (self.x - self.target).norm(dim=-1)
        effort = -0.01 * action.square().sum(-1)
        reward = effort - distance
        near = distance < 0.15
        self.age, self.total, self.score = self.age + 1, self.total + reward, self.score + near
        failed = self.x.abs().amax(-1) > 1.6
        truncated = (self.age >= 12) & ~failed
        done = failed | truncated
        episodes = Episodes(done, self.score, self.age, self.total, failed)
        final = self._obs()
        row = done.unsqueeze(-1)
        self.x = torch.where(row, self._random(), self.x)
        self.target = torch.where(row, self._random(), self.target)
        self.age, self.total, self.score = (x * ~done for x in (self.age, self.total, self.score))
        terms = {"effort": effort.mean(), "distance": -distance.mean()}
        return StepResult(self._obs(), reward, failed, truncated, final, episodes, terms)

    def state(self) -> dict:
        tensors = {k: getattr(self, k).clone() for k in ("x", "target", "age", "total", "score")}
        return tensors | {"generator": self.generator.get_state()}

    def load(self, state: dict) -> None:
        self.generator.set_state(state["generator"])
        for key in ("x", "target", "age", "total", "score"):
            setattr(self, key, state[key].clone())


class Memory(KVWriter):
    """Keeps what the logger writes, one dict per iteration."""

    def __init__(self) -> None:
        self.rows: list[dict] = []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append(dict(key_values))


def make(
    config: PPOConfig,
    env: LineEnv | None = None,
    policy_config: PolicyConfig | None = None,
    **more: Any,
) -> WidenPPO:
    """Its written log is `log_of(ppo)`."""
    vec_env = HandVecEnv(env or LineEnv(), privileged=True)  # type: ignore
    if config.threads == 0:  # more than one thread is slower at this size
        config = config.model_copy(update={"threads": 1})
    policy_config = policy_config or PolicyConfig(hidden=[16, 16])
    ppo = WidenPPO(vec_env, config, policy_config, device="cpu", **{"seed": 3, **more})
    ppo.set_logger(Logger(None, [Memory()]))
    return ppo


def log_of(ppo: WidenPPO) -> list[dict]:
    return ppo.logger.output_formats[0].rows  # type: ignore


def learn(ppo: WidenPPO, iterations: int, callback: BaseCallback | None = None) -> WidenPPO:
    fresh = ppo.num_timesteps == 0
    ppo.learn(iterations * ppo.n_steps * ppo.n_envs, callback, reset_num_timesteps=fresh)
    return ppo

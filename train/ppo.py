"""PPO of stable-baselines3 on a batched environment, without leaving its device.

The policy class, logger, callbacks and schedules are the library's. Different are: rollouts are
taken as whole batches of tensors, actor and critic see different observations, the policy
normalises them, and the learning rate follows the KL divergence.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, MaybeCallback
from stable_baselines3.common.utils import obs_as_tensor, safe_mean
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.nn import functional as F

from .buffer import DeviceRolloutBuffer
from .policy import HandPolicy, PolicyConfig
from .ppo_config import PPOConfig, minibatch_size

_EPISODE_WINDOW = 200
_RATE_FACTOR = 1.3


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class WidenPPO(PPO):
    """PPO for a `VecEnv` that has the batched environment as its attribute `batched`.

    `learn(iterations * steps * num_envs)`, callbacks, `set_logger`, `predict`, `save` and `load`
    work as in stable-baselines3. For an exact resume use `training_state` instead of `save`, and
    call `learn(..., reset_num_timesteps=False)` with the steps that remain.
    """

    policy: HandPolicy  # type: ignore[assignment]
    rollout_buffer: DeviceRolloutBuffer  # type: ignore[assignment]
    generator: torch.Generator
    """draws actions and minibatches; nothing else here is random after construction"""

    def __init__(
        self,
        env: VecEnv | None,
        config: PPOConfig | None = None,
        policy_config: PolicyConfig | None = None,
        *,
        seed: int | None = None,
        device: torch.device | str = "auto",
        tensorboard_log: str | None = None,
        verbose: int = 0,
        policy: type[HandPolicy] = HandPolicy,
        _init_setup_model: bool = True,
    ) -> None:
        """
        Args:
            env: None only where `load` calls this.
            device: should be the environment's.
            seed: of networks, actions, minibatches and, through `env.seed`, the environment.

        Raises:
            ValueError: see `minibatch_size`.
        """
        config = config or PPOConfig()
        self.config = config
        self._seconds = {"simulation": 0.0, "inference": 0.0, "update": 0.0}
        self._written_at = time.perf_counter()
        self._log_due = False
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]
            learning_rate=config.learning_rate,
            n_steps=config.steps,
            batch_size=2 if env is None else minibatch_size(env.num_envs, config),
            n_epochs=config.epochs,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            clip_range=config.clip_range,
            normalize_advantage=config.normalize_advantage,
            ent_coef=config.entropy_coef,
            vf_coef=config.value_coef,
            max_grad_norm=config.max_grad_norm,
            rollout_buffer_class=DeviceRolloutBuffer,
            # The library's own target_kl stops an update early; here it steers the rate.
            target_kl=None,
            stats_window_size=_EPISODE_WINDOW,
            policy_kwargs={"config": policy_config or PolicyConfig()},
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        self.generator = torch.Generator(self.device)
        if self.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.seed)
        self.rollout_buffer.generator = self.generator

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "generator"]

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        prepared = super()._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        # After a reset these are the VecEnv's numpy arrays, after a resume already tensors.
        self._last_obs: Any = {
            key: x.clone()
            for key, x in obs_as_tensor(self._last_obs, self.device).items()  # type: ignore
        }
        self._last_episode_starts: Any = torch.as_tensor(
            self._last_episode_starts, device=self.device
        )
        self._written_at = time.perf_counter()
        return prepared

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[kind] += time.perf_counter() - start

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Fill the buffer.

        `callback.locals` are tensors, but "dones", which the library's own callbacks count with
        numpy. There is no "infos": what became of an episode is in `result.episodes`. Tensors of
        a step's result must not be written again by the next step.
        """
        with _torch_threads(1):
            return self._collect(env, callback, rollout_buffer, n_rollout_steps)

    def _collect(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int
    ) -> bool:
        batched: Any = env.batched  # type: ignore[attr-defined]
        term_sums: dict[str, Tensor] = {}
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        for _ in range(n_rollout_steps):
            with self._timed("inference"):
                actions, values, log_probs = self.policy.sample(self._last_obs, self.generator)
            with self._timed("simulation"):
                result = batched.step(actions.clamp(-1.0, 1.0))
            new_obs, rewards = result.obs, result.reward
            dones = result.terminated | result.truncated

            self.num_timesteps += env.num_envs
            callback.update_locals(locals() | {"dones": dones.cpu().numpy()})
            if not callback.on_step():
                return False

            self._remember_episodes(result.episodes)
            for name, mean in result.terms.items():
                term_sums[name] = term_sums.get(name, 0.0) + mean
            with self._timed("inference"):
                rewards = self._with_time_outs(rewards, result.truncated, result.final_obs)
            rollout_buffer.add(
                self._last_obs, actions, rewards, self._last_episode_starts, values, log_probs
            )
            self._last_obs, self._last_episode_starts = new_obs, dones

        with torch.no_grad():
            last_values = self.policy.predict_values(self._last_obs)
        rollout_buffer.compute_returns_and_advantage(last_values, self._last_episode_starts)
        for name, total in term_sums.items():
            self.logger.record_mean(f"reward/{name}", float(total) / n_rollout_steps)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    @torch.no_grad()
    def _with_time_outs(
        self, rewards: Tensor, truncated: Tensor, final_obs: dict[str, Tensor]
    ) -> Tensor:
        """Scaled rewards (N,), with gamma V(terminal observation) where time ran out."""
        rewards = rewards * self.config.reward_scale
        env_ids = truncated.nonzero().flatten()
        if len(env_ids):
            rows = {key: x[env_ids] for key, x in final_obs.items()}
            rewards[env_ids] += self.gamma * self.policy.predict_values(rows).flatten()
        return rewards

    def _remember_episodes(self, episodes: dict[str, Tensor]) -> None:
        if not len(episodes["score"]):
            return
        assert self.ep_info_buffer is not None
        columns = (episodes[key].tolist() for key in ("return", "length", "score", "failed"))
        for values in zip(*columns, strict=True):
            self.ep_info_buffer.append(
                dict(zip(("r", "l", "score", "failed"), values, strict=True))
            )

    def dump_logs(self, iteration: int = 0) -> None:
        """Have the log written after the update that follows.

        The library writes it before, so that an update's figures appear one iteration late, the
        last one's never, and those pending at a checkpoint would be lost. `iteration`, which
        begins anew when a run is resumed, is not used.
        """
        del iteration
        self._log_due = True

    def _write_log(self) -> None:
        self._log_due = False
        if self.ep_info_buffer:
            episodes = list(self.ep_info_buffer)
            self.logger.record("rollout/goals_mean", safe_mean([e["score"] for e in episodes]))
            self.logger.record("rollout/drop_rate", safe_mean([e["failed"] for e in episodes]))
        now = time.perf_counter()
        for kind, seconds in self._seconds.items():
            self.logger.record(f"time/share_{kind}", seconds / (now - self._written_at))
            self._seconds[kind] = 0.0
        self._written_at = now
        super().dump_logs(self.iteration)

    @property
    def iteration(self) -> int:
        """Rollouts collected since the run began, resumes included."""
        return self.num_timesteps // (self.n_steps * self.n_envs)

    def train(self) -> None:
        """One update from the buffer; then the normalisers and the learning rate follow."""
        threads = self.config.threads or _processors()
        with self._timed("update"), _torch_threads(threads):
            self.policy.set_training_mode(True)
            self._update_learning_rate(self.policy.optimizer)
            clip_range: float = self.clip_range(self._current_progress_remaining)  # type: ignore
            stats = torch.stack([self._epoch(clip_range) for _ in range(self.n_epochs)])
            self._n_updates += self.n_epochs
            kl = self._log_update(stats, clip_range)
            # Only now: the probabilities of a rollout and of its update need one normaliser.
            self.policy.update_normalizers(
                {key: x.flatten(0, 1) for key, x in self.rollout_buffer.observations.items()}
            )
            self._adapt_learning_rate(kl)
        if self._log_due:
            self._write_log()

    def _epoch(self, clip_range: float) -> Tensor:
        """One pass over the buffer; returns what `_losses` measured, (minibatches, 6)."""
        optimizer, parameters = self.policy.optimizer, list(self.policy.parameters())
        measured = []
        for batch in self.rollout_buffer.get(self.batch_size):
            loss, stats = self._losses(batch, clip_range)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            optimizer.step()
            measured.append(stats)
        return torch.stack(measured)

    def _losses(self, batch: DictRolloutBufferSamples, clip_range: float) -> tuple[Tensor, Tensor]:
        """PPO's clipped objective (Schulman et al., arXiv 1707.06347).

        Returns:
            loss to minimise; policy loss, value loss, entropy loss, clip fraction, KL and total
            loss as one tensor (6,) without gradient, so that nothing waits for the device.
        """
        values, log_prob, entropy = self.policy.evaluate_actions(batch.observations, batch.actions)
        advantages = batch.advantages
        if self.normalize_advantage:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        log_ratio = log_prob - batch.old_log_prob
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
        policy_loss = -torch.min(advantages * ratio, advantages * clipped).mean()
        value_loss = F.mse_loss(values.flatten(), batch.returns)
        entropy_loss = -entropy.mean()
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        with torch.no_grad():
            # Schulman's low-variance estimate, joschu.net/blog/kl-approx.html; never negative.
            kl = (ratio - 1.0 - log_ratio).mean()
            clip_fraction = ((ratio - 1.0).abs() > clip_range).float().mean()
            stats = torch.stack([policy_loss, value_loss, entropy_loss, clip_fraction, kl, loss])
        return loss, stats

    def _log_update(self, stats: Tensor, clip_range: float) -> float:
        """Record stats (epochs, minibatches, 6) under the library's names; returns the KL.

        Raises:
            FloatingPointError: the loss is not finite; the networks are lost.
        """
        means = stats.mean(dim=(0, 1)).tolist()
        kl, loss = float(stats[-1, :, 4].mean()), float(stats[-1, -1, 5])
        if not math.isfinite(means[5]):
            raise FloatingPointError(
                f"the loss became {means[5]} after {self.num_timesteps} steps: a reward or an "
                "observation was not finite, or ppo.learning_rate is too high"
            )
        returns, values = self.rollout_buffer.returns, self.rollout_buffer.values
        unexplained = ((returns - values).var() / returns.var()).item()
        names = ("policy_gradient_loss", "value_loss", "entropy_loss", "clip_fraction")
        for name, value in zip(names, means, strict=False):
            self.logger.record(f"train/{name}", value)
        # As in the library: the divergence over the last epoch, the loss of the last minibatch.
        self.logger.record("train/approx_kl", kl)
        self.logger.record("train/loss", loss)
        self.logger.record("train/explained_variance", 1.0 - unexplained)
        self.logger.record("train/std", self.policy.log_std.exp().mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        return kl

    def _adapt_learning_rate(self, kl: float) -> None:
        """Once per update, one step toward the target. Per minibatch the rate oscillates."""
        target, rate = self.config.target_kl, self.learning_rate
        assert isinstance(rate, float)
        if target is None:
            return
        if kl > 2.0 * target:
            rate = max(rate / _RATE_FACTOR, self.config.learning_rate_min)
        elif kl < 0.5 * target:
            rate = min(rate * _RATE_FACTOR, self.config.learning_rate_max)
        self.learning_rate = rate
        self._setup_lr_schedule()

    def training_state(self) -> dict[str, Any]:
        """Everything that the next iteration depends on, except the environment.

        A copy, of tensors and plain values only: `torch.load(weights_only=True)` reads it.
        Take it between iterations: after an update, for example in `on_rollout_start`.
        """
        return copy.deepcopy(
            {
                "policy": self.policy.state_dict(),
                "optimizer": self.policy.optimizer.state_dict(),
                "learning_rate": self.learning_rate,
                "num_timesteps": self.num_timesteps,
                "n_updates": self._n_updates,
                "generator": self.generator.get_state(),
                "episodes": list(self.ep_info_buffer or ()),
                "last_obs": self._last_obs,
                "last_episode_starts": self._last_episode_starts,
            }
        )

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Continue from a `training_state` of an algorithm made with the same config."""
        self.policy.load_state_dict(state["policy"])
        self.policy.optimizer.load_state_dict(state["optimizer"])
        self.learning_rate = state["learning_rate"]
        self._setup_lr_schedule()
        self.num_timesteps = state["num_timesteps"]
        self._n_updates = state["n_updates"]
        self.generator.set_state(state["generator"].cpu())
        self.ep_info_buffer = deque(state["episodes"], maxlen=_EPISODE_WINDOW)
        self.ep_success_buffer = deque(maxlen=_EPISODE_WINDOW)
        self._last_obs = {key: x.to(self.device) for key, x in state["last_obs"].items()}
        self._last_episode_starts = state["last_episode_starts"].to(self.device)

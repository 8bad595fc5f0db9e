"""PPO of stable-baselines3 on a batched environment, without leaving its device.

The policy class, logger, callbacks and schedules are the library's. Different are: rollouts are
taken as whole batches of tensors, actor and critic see different observations, the policy
normalises them, the learning rate follows the KL divergence, and several processes may train
together. On a GPU nothing waits for the device between the ends of a rollout and of an update.
"""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import obs_as_tensor, safe_mean
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from widen.envs.batched import StepResult

from .accelerate import backward_precision, compiled, network_precision, torch_threads
from .buffer import DeviceRolloutBuffer, EndedEpisodes
from .learning_rate import adapted
from .loss import STATS, clipped_loss
from .policy import HandPolicy, PolicyConfig, State
from .pooling import average_gradients, normalized, unexplained_variance
from .ppo_config import PPOConfig, minibatch_size
from .ranks import Ranks
from .recurrent import check_settings, policy_class
from .timing import Stopwatch

_EPISODE_WINDOW = 200


class WidenPPO(PPO):
    """PPO for a `VecEnv` that has the batched environment as its attribute `batched`.

    `learn(iterations * steps * num_envs * processes)`, callbacks, `set_logger`, `predict`, `save`
    and `load` work as in stable-baselines3. For an exact resume use `training_state` instead of
    `save`, and call `learn(..., reset_num_timesteps=False)` with the steps that remain.

    Several processes that are given their `ranks` train one policy: each with environments of its
    own, as many in every process. They start from the networks of rank 0, and gradients, losses,
    normalisers and episode figures are those of all. Callbacks run in every process and must stop
    the training in all of them or in none.
    """

    policy: HandPolicy  # type: ignore[assignment]
    rollout_buffer: DeviceRolloutBuffer  # type: ignore[assignment]
    generator: torch.Generator
    """draws actions and minibatches; nothing else here is random after construction"""
    iteration: int = 0
    """rollouts collected since the run began, resumes included"""

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
        policy: type[HandPolicy] | None = None,
        ranks: Ranks | None = None,
        _init_setup_model: bool = True,
    ) -> None:
        """
        Args:
            env: None only where `load` calls this.
            device: should be the environment's.
            seed: of networks, actions, minibatches and, through `env.seed`, the environment;
                processes that train together need different ones.
            policy: where `load` calls this; else the class that policy_config names.
            ranks: the processes that train together; None for this one alone.

        Raises:
            ValueError: see `minibatch_size` and `check_settings`.
        """
        config, policy_config = config or PPOConfig(), policy_config or PolicyConfig()
        policy = policy or policy_class(policy_config)
        if env is not None:
            check_settings(policy_config, config, env.num_envs)
        self.config, self.ranks = config, ranks or Ranks()
        self.last_shares: dict[str, float] = {}
        """parts of the last logged interval's time: simulation, inference, update"""
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
            rollout_buffer_class=policy.rollout_buffer_class,
            # The library's own target_kl stops an update early; here it steers the rate.
            target_kl=None,
            stats_window_size=_EPISODE_WINDOW,
            policy_kwargs={"config": policy_config},
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
        self._stopwatch = Stopwatch(self.device)
        self._episodes = EndedEpisodes(self.n_steps, self.n_envs, self.device)
        self._state: State = ()
        self._act, self._loss = self.policy.act, clipped_loss
        if self.config.compile:
            self._act, self._loss = compiled(self._act), compiled(self._loss)

    def _excluded_save_params(self) -> list[str]:
        ours = ["generator", "ranks", "_stopwatch", "_episodes", "_state", "_act", "_loss"]
        return [*super()._excluded_save_params(), *ours]

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:  # then new episodes begin
            self._state = self.policy.initial_state(self.n_envs)
        prepared = super()._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        if reset_num_timesteps:
            self.iteration = 0
        # After a reset these are the VecEnv's numpy arrays, after a resume already tensors.
        self._last_obs: Any = {
            key: x.clone()
            for key, x in obs_as_tensor(self._last_obs, self.device).items()  # type: ignore
        }
        self._last_episode_starts: Any = torch.as_tensor(
            self._last_episode_starts, device=self.device
        )
        self.ranks.copy_(self.policy.state_dict().values())
        self._written_at = time.perf_counter()
        return prepared

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Fill the buffer.

        `callback.locals` are tensors, but on a CPU "dones", which the library's own callbacks
        count with numpy. There is no "infos": what became of an episode is in `result.episodes`.
        Tensors of a step's result must not be written again by the next step.
        """
        with torch_threads(1):
            return self._collect(env, callback, rollout_buffer, n_rollout_steps)

    def _collect(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int
    ) -> bool:
        batched: Any = env.batched  # type: ignore[attr-defined]
        term_sums: dict[str, Tensor] = {}
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        rollout_buffer.initial_state = self._state
        self.gamma = rollout_buffer.gamma = self.config.gamma_at(self.iteration)
        callback.on_rollout_start()
        for step in range(n_rollout_steps):
            with self._stopwatch.section("inference"), self._precision():
                noise = self.policy.noise(self._last_obs, self.generator)
                actions, values, log_probs, *state = self._act(self._last_obs, noise, *self._state)
            with self._stopwatch.section("simulation"):
                result = batched.step(actions.clamp(-1.0, 1.0))
            new_obs, rewards = result.obs, result.reward
            dones = result.terminated | result.truncated

            self.num_timesteps += env.num_envs * self.ranks.world
            on_host = {"dones": dones.numpy()} if dones.device.type == "cpu" else {}
            callback.update_locals(locals() | on_host)
            if not callback.on_step():
                return False

            self._episodes.add(step, result.episodes)
            for name, mean in result.terms.items():
                term_sums[name] = term_sums.get(name, 0.0) + mean
            with self._stopwatch.section("inference"), self._precision():
                rewards = self._with_time_outs(rewards, result, batched.masked)
            rollout_buffer.add(
                self._last_obs, actions, rewards, self._last_episode_starts, values, log_probs
            )
            self._last_obs, self._last_episode_starts = new_obs, dones
            self._state = self.policy.begin(tuple(state), dones)

        with torch.no_grad(), self._precision():
            last_values = self.policy.predict_values(self._last_obs)
        rollout_buffer.compute_returns_and_advantage(last_values, self._last_episode_starts)
        self.iteration += 1
        self._log_rollout(term_sums, n_rollout_steps)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _precision(self) -> Any:
        """Around every pass through the networks; see `network_precision`."""
        return network_precision(self.config.precision, self.device)

    @torch.no_grad()
    def _with_time_outs(self, rewards: Tensor, result: StepResult, masked: bool) -> Tensor:
        """Scaled rewards (N,), with gamma V(terminal observation) where time ran out."""
        rewards = rewards * self.config.reward_scale
        if masked:
            worth = self.gamma * self.policy.predict_values(result.final_obs).flatten()
            return torch.where(result.truncated, rewards + worth, rewards)
        env_ids = result.truncated.nonzero().flatten()
        if len(env_ids):
            rows = {key: x[env_ids] for key, x in result.final_obs.items()}
            rewards[env_ids] += self.gamma * self.policy.predict_values(rows).flatten()
        return rewards

    def _log_rollout(self, term_sums: dict[str, Tensor], steps: int) -> None:
        """Take the rollout's episodes and reward terms, of all ranks, from the device."""
        if term_sums:
            sums = self._read(self.ranks.mean_(torch.stack(list(term_sums.values()))))
            for name, total in zip(term_sums, sums, strict=True):
                self.logger.record_mean(f"reward/{name}", total / steps)
        assert self.ep_info_buffer is not None
        tables = self.ranks.gather(self._read(self._episodes.table()))
        self.ep_info_buffer.extend(EndedEpisodes.read(tables))

    def _read(self, x: Tensor) -> Any:
        """A tensor's numbers as a list. Waits for the device."""
        self.ranks.wait(self.device)
        return x.tolist()

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
        seconds, now = self._stopwatch.read(), time.perf_counter()
        self.last_shares = {kind: x / (now - self._written_at) for kind, x in seconds.items()}
        for kind, share in self.last_shares.items():
            self.logger.record(f"time/share_{kind}", share)
        self._written_at = now
        super().dump_logs(self.iteration)

    def train(self) -> None:
        """One update from the buffer; then the normalisers and the learning rate follow."""
        threads = self.ranks.threads(self.config.threads)
        with self._stopwatch.section("update"), torch_threads(threads):
            self.policy.set_training_mode(True)
            self._update_learning_rate(self.policy.optimizer)
            clip_range: float = self.clip_range(self._current_progress_remaining)  # type: ignore
            stats = torch.stack([self._epoch(clip_range) for _ in range(self.n_epochs)])
            self._n_updates += self.n_epochs
            kl = self._log_update(stats, clip_range)
            # Only now: the probabilities of a rollout and of its update need one normaliser.
            observations = self.rollout_buffer.observations
            self.policy.update_normalizers(
                {key: x.flatten(0, 1) for key, x in observations.items()}, self.ranks
            )
            if not self._critic_only:  # else nothing moved
                self.learning_rate = adapted(self.learning_rate, kl, self.config)  # type: ignore
            self._setup_lr_schedule()
        if self._log_due:
            self._write_log()

    @property
    def _critic_only(self) -> bool:
        """Of the update after rollout `iteration`."""
        return 0 < self.iteration <= self.config.critic_warmup

    def _epoch(self, clip_range: float) -> Tensor:
        """One pass over the buffer; returns what `clipped_loss` measured, (minibatches, 6)."""
        optimizer, parameters = self.policy.optimizer, list(self.policy.parameters())
        order = self.rollout_buffer.shuffled(self.batch_size)
        advantages = self.rollout_buffer.advantages.flatten()[torch.stack(order)]
        if self.normalize_advantage:
            advantages = normalized(advantages, self.ranks)
        entropy_coef = self.ent_coef
        if self._critic_only:  # no gradient for the actor
            advantages, entropy_coef = torch.zeros_like(advantages), 0.0
        measured = []
        for indices, advantage in zip(order, advantages, strict=True):
            batch = self.rollout_buffer._get_samples(indices)._replace(advantages=advantage)
            with self._precision():
                loss, stats = self._loss(self.policy, batch, clip_range, entropy_coef, self.vf_coef)
            optimizer.zero_grad(set_to_none=True)
            with backward_precision(self.config.precision):
                loss.backward()
            stats = average_gradients(parameters, stats, self.ranks)
            torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            optimizer.step()
            measured.append(stats)
        return torch.stack(measured)

    def _log_update(self, stats: Tensor, clip_range: float) -> float:
        """Record stats (epochs, minibatches, 6) under the library's names; returns the KL.

        Raises:
            FloatingPointError: the loss is not finite; the networks are lost.
        """
        means, buffer = stats.mean(dim=(0, 1)), self.rollout_buffer
        std = self.policy.log_std.detach().exp().mean()
        unexplained = unexplained_variance(buffer.returns, buffer.values, self.ranks)
        # As in the library: the divergence over the last epoch, the loss of the last minibatch.
        late = torch.stack((stats[-1, :, 4].mean(), stats[-1, -1, 5], std, unexplained))
        *logged, unexplained, mean_loss = self._read(torch.cat((means[:4], late, means[5:])))
        if not math.isfinite(mean_loss):
            lost = FloatingPointError(
                f"the loss became {mean_loss} after {self.num_timesteps} steps: a reward or an "
                "observation was not finite, or ppo.learning_rate is too high"
            )
            self.ranks.fail(lost)
        names = (*STATS, "std")
        for name, value in zip(names, logged, strict=True):
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/explained_variance", 1.0 - unexplained)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        return logged[names.index("approx_kl")]

    def training_state(self) -> dict[str, Any]:
        """Everything that the next iteration depends on, except the environment.

        Under "shared" what all ranks have in common (of the episodes' figures rank 0's count),
        under "own" what is this rank's. A copy, of tensors and plain values only:
        `torch.load(weights_only=True)` reads it. Take it between iterations: after an update,
        for example in `on_rollout_start`.
        """
        shared = {
            "policy": self.policy.state_dict(),
            "optimizer": self.policy.optimizer.state_dict(),
            "learning_rate": self.learning_rate,
            "num_timesteps": self.num_timesteps,
            "iteration": self.iteration,
            "n_updates": self._n_updates,
            "episodes": list(self.ep_info_buffer or ()),
        }
        own = {
            "generator": self.generator.get_state(),
            "last_obs": self._last_obs,
            "last_episode_starts": self._last_episode_starts,
            "policy_state": self._state,
        }
        return copy.deepcopy({"shared": shared, "own": own})

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Continue from a `training_state` of an algorithm made with the same config.

        Where its "own" is None, this rank begins fresh episodes.
        """
        shared, own = state["shared"], state["own"]
        self.policy.load_state_dict(shared["policy"])
        self.policy.optimizer.load_state_dict(shared["optimizer"])
        self.learning_rate = shared["learning_rate"]
        self._setup_lr_schedule()
        self.num_timesteps, self.iteration = shared["num_timesteps"], shared["iteration"]
        self._n_updates = shared["n_updates"]
        self.ep_info_buffer = deque(shared["episodes"], maxlen=_EPISODE_WINDOW)
        self.ep_success_buffer = deque(maxlen=_EPISODE_WINDOW)
        self._last_obs = None
        if own is not None:
            self.generator.set_state(own["generator"].cpu())
            self._last_obs = {key: x.to(self.device) for key, x in own["last_obs"].items()}
            self._last_episode_starts = own["last_episode_starts"].to(self.device)
            self._state = tuple(x.to(self.device) for x in own["policy_state"])

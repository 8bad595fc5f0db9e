"""A run from its config to its exported policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor
from torch.utils._pytree import tree_map

from widen.envs.batched import BatchedEnv
from widen.envs.sim import resolve_backend
from widen.randomization.randomizer import Randomizer

from .callbacks import Line, RunCallback
from .checkpoint import reading, save_checkpoint
from .config import RunConfig, dump_config
from .evaluate import evaluate, policy_trial, ranges_config
from .events import events_logger, told_once
from .policy import HandPolicy
from .ppo import WidenPPO
from .progress import ProgressDisplay
from .ranks import Ranks
from .run_folder import RunFolder
from .signals import stop_when_saved
from .vec_env import HandVecEnv

Export = Callable[["Runner", Path], Any]


class Runner:
    """One run in memory: the environment, the randomizer, PPO, and the folder.

    Under torchrun every process has one, with env.num_envs environments of its own; their
    `train`, `state_dict` and `load_state_dict` belong together.

    Args:
        config: validated.
        run: its folder.
        ranks: the processes that train together; None for this one alone.
        begun: iteration in which this process joins the run.

    Raises:
        ValueError: settings that do not fit the task or the machine.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunFolder | None = None,
        ranks: Ranks | None = None,
        begun: int = 0,
    ) -> None:
        # rollouts use one thread and updates several; see WidenPPO
        torch.set_num_threads(1)
        self.config, self.run, self.ranks = config, run, ranks or Ranks()
        self.backend = resolve_backend(config.sim)
        _check_gpus(self.backend, self.ranks)
        seed = self.ranks.seed(config.seed, begun)
        self.randomizer = Randomizer(config.randomization, seed, self.ranks.rank)
        self.randomizer.settle_every = 0  # `RunCallback` lets it decide after every rollout
        threads = self.ranks.threads(config.sim.threads)
        self.env = BatchedEnv(
            config.task,
            config.hand,
            config.object,
            config.env,
            config.sim.model_copy(update={"threads": threads}),
            self.randomizer,
            seed=seed,
            stagger=True,
        )
        self.ppo = WidenPPO(
            HandVecEnv(self.env, privileged=True),
            config.ppo,
            config.policy,
            seed=seed,
            device=self.env.device,
            ranks=self.ranks,
        )
        self.began_with: dict[str, Any] | None = None
        """whose networks these were in the beginning, see `begin_with`"""
        self.seconds, self._saved_steps, self._trained = 0.0, 0, False

    @property
    def policy(self) -> HandPolicy:
        """As it is now."""
        return self.ppo.policy

    @property
    def steps(self) -> int:
        """Control steps taken, in all processes and environments."""
        return self.ppo.num_timesteps

    def state_dict(self) -> dict[str, Any]:
        """Everything an exact continuation needs, as tensors and plain values, on rank 0.

        What the ranks have in common stands there once, what is each one's own in the list
        "ranks": so the number of processes may change.
        """
        ppo = self.ppo.training_state()
        own = {"ppo": ppo["own"], "env": self.env.state_dict()}
        del own["env"]["perturbation"]["shared"]
        return {
            "config": dump_config(self.config),
            "backend": self.backend,
            "steps": self.steps,
            "iteration": self.ppo.iteration,
            "seconds": self.seconds,
            "ppo": ppo["shared"],
            "randomizer": self.randomizer.shared_state(),
            "ranks": self.ranks.gather(tree_map(_on_cpu, own)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`. A rank that has no part in it begins fresh episodes."""
        own = None
        shared, parts = state["randomizer"], state["ranks"]
        if self.ranks.rank < len(parts):
            own = parts[self.ranks.rank]
            perturbation = {**own["env"]["perturbation"], "shared": shared}
            self.env.load_state_dict({**own["env"], "perturbation": perturbation})
        self.randomizer.load_shared_state(shared)
        for dropped in parts[self.ranks.world :]:
            self.randomizer.abandon(dropped["env"]["perturbation"])
        self.ppo.load_training_state({"shared": state["ppo"], "own": own and own["ppo"]})
        self.seconds = float(state["seconds"])

    def restore_from(self, state: dict[str, Any], path: Path) -> None:
        """`load_state_dict` of a file.

        Raises:
            ValueError: something in it is missing or does not fit, as from another version.
        """
        with reading(path):
            self.load_state_dict(state)

    def train(self, export: Export) -> dict[str, Any]:
        """Train to the configured iteration; then rank 0 exports and evaluates.

        Args:
            export: writes the policy of this runner to a path; `widen.deploy.export.export_runner`,
                handed in because training knows nothing of deployment.

        Returns:
            The JSON of `widen train`: run, steps, seconds, goals_mean, npd, bounds_moved, policy,
            and "stopped", the number of the signal, if one ended it early (then policy is None,
            as it is on other ranks).

        Raises:
            RankLost: another process died.
            OSError: the run folder cannot be written; its last checkpoint is as it was.
        """
        assert self.run is not None
        first = self.ranks.first
        with told_once():
            self.ppo.set_logger(events_logger(self.run.tensorboard) if first else Logger(None, []))
            stopped = self._learn()
        self.ranks.leave()
        summary = {
            "run": str(self.run.path),
            "steps": self.steps,
            "seconds": round(self.seconds, 1),
            "goals_mean": None,
            "npd": self.randomizer.npd(),
            "bounds_moved": self.randomizer.curriculum.num_moves,
            "policy": None,
        }
        if stopped:
            # the next rollout had begun; it is not in the checkpoint
            return {**summary, "steps": self._saved_steps, "stopped": stopped}
        return {**summary, **self._finish(export)} if first else summary

    def _learn(self) -> int:
        """Train, on rank 0 before the user's eyes; the number of the signal that stopped it, or 0."""
        total, left = self.config.ppo.iterations, self.config.ppo.iterations - self.ppo.iteration
        if left <= 0:
            return 0
        self._trained = True
        with ProgressDisplay(total) if self.ranks.first else nullcontext() as display:

            def report(interval: Line, others: Sequence[Line]) -> None:
                assert self.run is not None
                assert display is not None
                self.run.append(*others, interval)
                display.update(interval, [line for line in others if line["kind"] == "move"])

            callback = self._callback = RunCallback(
                self.ranks,
                self.randomizer,
                report,
                self._save,
                self.config.checkpoint.every,
                total,
                self.seconds,
            )
            with stop_when_saved(self.ranks):
                rollout = self.ppo.n_steps * self.ppo.n_envs * self.ranks.world
                self.ppo.learn(left * rollout, callback, reset_num_timesteps=self.steps == 0)
        # a signal may have come while the last iteration was being saved
        return callback.stopped or self.ranks.stop_requested

    def _finish(self, export: Export) -> dict[str, Any]:
        """Write policy.onnx and try the deterministic policy in the nominal world."""
        assert self.run is not None
        if self._trained or not self.run.policy.is_file():  # else an exam's summary would be lost
            export(self, self.run.policy)
        result = self.evaluate(self.config.evaluation.episodes)
        goals = {key: result[key] for key in ("goals_mean", "goals_median", "drop_rate")}
        return {**goals, "policy": str(self.run.policy)}

    def evaluate(self, episodes: int) -> dict[str, Any]:
        """Goals of the deterministic policy in the nominal world; see `evaluate`."""
        trial = policy_trial(self.config, self.policy, episodes, ranges_config(()), self.config.sim)
        return evaluate(*trial, episodes)

    def _save(self) -> None:
        assert self.run is not None
        self.seconds, self._saved_steps = self._callback.seconds, self.steps
        state = self.state_dict()
        if self.ranks.first:
            save_checkpoint(self.run, state, self.config.checkpoint.keep)


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def _check_gpus(backend: str, ranks: Ranks) -> None:
    count = torch.cuda.device_count()
    if backend == "warp" and 0 < count < ranks.local_world:
        raise ValueError(
            f"torchrun: {ranks.local_world} processes on a machine with {count} GPUs; expected"
            f" --nproc-per-node={count} or fewer: one GPU serves one process"
        )

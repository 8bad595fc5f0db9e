"""A run from its config to its exported policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import configure
from torch import Tensor

from widen.envs.batched import BatchedEnv, Obs, StepResult
from widen.randomization.randomizer import Randomizer

from .callbacks import RunCallback
from .checkpoint import check_same_config, latest_checkpoint, load_checkpoint, save_checkpoint
from .config import RunConfig, dump_config, parse_config
from .evaluate import Trial, evaluate, evaluation_env, ranges_config
from .ppo import WidenPPO
from .progress import ProgressDisplay
from .run_folder import RunFolder, default_path
from .vec_env import HandVecEnv

Export = Callable[["Runner", Path], Any]


class Runner:
    """One run in memory: the environment, the randomizer, PPO, and the folder.

    Args:
        config: validated.
        run: its folder.

    Raises:
        ValueError: settings that do not fit the task.
    """

    def __init__(self, config: RunConfig, run: RunFolder | None = None) -> None:
        # rollouts use one thread and updates several; see WidenPPO
        torch.set_num_threads(1)
        self.config, self.run = config, run
        self.randomizer = Randomizer(config.randomization, config.seed)
        self.env = BatchedEnv(
            config.task,
            config.hand,
            config.object,
            config.env,
            config.sim,
            self.randomizer,
            seed=config.seed,
            stagger=True,
        )
        self.ppo = WidenPPO(
            HandVecEnv(self.env, privileged=True),
            config.ppo,
            config.policy,
            seed=config.seed,
            device=self.env.device,
        )
        self.seconds, self._saved_steps = 0.0, 0

    @classmethod
    def restore(cls, run: RunFolder, checkpoint: Path | None = None) -> Runner:
        """The run as its newest (or the given) checkpoint left it.

        Raises:
            ValueError: no run, no checkpoint, a damaged one, or one of another config.
        """
        config = parse_config(run.read_config(), str(run.config))
        path = checkpoint or latest_checkpoint(run)
        state = load_checkpoint(path)
        check_same_config(state["config"], dump_config(config), path)
        runner = cls(config, run)
        runner.restore_from(state, path)
        return runner

    def state_dict(self) -> dict[str, Any]:
        """Everything an exact continuation needs, as tensors and plain values."""
        return {
            "config": dump_config(self.config),
            "steps": self.ppo.num_timesteps,
            "seconds": self.seconds,
            "ppo": self.ppo.training_state(),
            "env": self.env.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.env.load_state_dict(state["env"])
        self.ppo.load_training_state(state["ppo"])
        self.seconds = float(state["seconds"])

    def restore_from(self, state: dict[str, Any], path: Path) -> None:
        """`load_state_dict` of a file.

        Raises:
            ValueError: something in it is missing or does not fit, as from another version.
        """
        try:
            self.load_state_dict(state)
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(
                f"{path}: expected a checkpoint of this version of widen: {reason}"
            ) from error

    def train(self, export: Export) -> dict[str, Any]:
        """Train to the configured iteration, evaluate, export.

        Args:
            export: writes the policy of this runner to a path; `widen.deploy.export.export_runner`,
                handed in because training knows nothing of deployment.

        Returns:
            The JSON of `widen train`: run, steps, seconds, goals_mean, npd, bounds_moved, policy,
            and "stopped", the number of the signal, if one ended it early (then policy is None).
        """
        assert self.run is not None
        total = self.config.ppo.iterations
        self.ppo.set_logger(configure(str(self.run.tensorboard), ["tensorboard"]))
        with ProgressDisplay(total) as display:
            callback = RunCallback(
                self.run,
                self.randomizer,
                display,
                self._save,
                self.config.checkpoint.every,
                total,
                self.seconds,
            )
            self._callback = callback
            with callback.stop_on_signals():
                rollout = self.config.ppo.steps * self.env.num_envs
                left = total * rollout - self.ppo.num_timesteps
                if left > 0:
                    new = self.ppo.num_timesteps == 0
                    self.ppo.learn(left, callback, log_interval=1, reset_num_timesteps=new)
        summary = {
            "run": str(self.run.path),
            "steps": self.ppo.num_timesteps,
            "seconds": round(self.seconds, 1),
            "goals_mean": None,
            "npd": self.randomizer.npd(),
            "bounds_moved": self.randomizer.curriculum.num_moves,
            "policy": None,
        }
        if callback.stopped:
            # the next rollout had begun; it is not in the checkpoint
            return {**summary, "steps": self._saved_steps, "stopped": callback.stop_requested}
        return {**summary, **self._finish(export)}

    def _finish(self, export: Export) -> dict[str, Any]:
        """Evaluate the deterministic policy in the nominal world and write policy.onnx."""
        assert self.run is not None
        result = self.evaluate(self.config.evaluation.episodes)
        export(self, self.run.policy)
        goals = {key: result[key] for key in ("goals_mean", "goals_median", "drop_rate")}
        return {**goals, "policy": str(self.run.policy)}

    def evaluate(self, episodes: int, randomization: str = "none") -> dict[str, Any]:
        """Goals of the deterministic policy; randomization "none" or "current"."""
        return evaluate(*self.trial(episodes, randomization), episodes)

    def trial(self, episodes: int, randomization: str = "none") -> Trial:
        """The deterministic policy in environments of its own; arguments as for `evaluate`."""
        ranges = ranges_config(self.randomizer.table() if randomization == "current" else ())
        env = evaluation_env(
            self.config.task,
            self.config.hand,
            self.config.object,
            self.config.env,
            self.config.sim,
            ranges,
            episodes,
        )
        policy = self.ppo.policy
        policy.set_training_mode(False)

        @torch.no_grad()
        def step(obs: Obs, fresh: Tensor) -> StepResult:
            return env.step(policy.mean_action(obs["actor"]))

        return env, step

    def _save(self) -> None:
        assert self.run is not None
        self.seconds, self._saved_steps = self._callback.seconds, self.ppo.num_timesteps
        save_checkpoint(self.run, self.state_dict(), self.config.checkpoint.keep)


def start(config: RunConfig, run_dir: Path | None, resume: bool) -> Runner:
    """A runner for a new run, or for the continuation of one.

    Args:
        config: what the user asked for.
        run_dir: the folder; None for one named after task and time.
        resume: continue the run in run_dir.

    Raises:
        ValueError: the folder exists, or holds a run of another config.
    """
    if not resume:
        runner = Runner(config)  # mistakes in the config surface before a folder is made
        runner.run = RunFolder.create(run_dir or default_path(config.task), dump_config(config))
        return runner
    if run_dir is None:
        raise ValueError("--resume: expected --run-dir with the folder of the run to continue")
    run = RunFolder.open(run_dir)
    path = latest_checkpoint(run)
    state = load_checkpoint(path)
    check_same_config(state["config"], dump_config(config), path)
    runner = Runner(config, run)
    runner.restore_from(state, path)
    run.rewind(runner.ppo.num_timesteps)
    return runner

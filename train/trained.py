"""A run's policy, without the environments in which it was trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from widen.envs.batched import BatchedEnv
from widen.randomization.randomizer import Randomizer

from .checkpoint import check_same_config, latest_checkpoint, load_checkpoint, reading
from .config import RunConfig, dump_config, parse_config
from .evaluate import evaluation_env, ranges_config
from .policy import HandPolicy
from .recurrent import policy_class
from .run_folder import RunFolder


@dataclass(frozen=True)
class Trained:
    """What a checkpoint says of the policy; it needs neither the run's backend nor its memory."""

    config: RunConfig
    policy: HandPolicy
    randomizer: Randomizer
    """knows the run's ranges; of no environment"""
    steps: int

    @classmethod
    def restore(cls, run: RunFolder, checkpoint: Path | None = None) -> Trained:
        """From a run's newest (or the given) checkpoint.

        Raises:
            ValueError: no run, no checkpoint, a damaged one, or one of another config.
        """
        config = parse_config(run.read_config(), str(run.config))
        path = checkpoint or latest_checkpoint(run)
        state = load_checkpoint(path)
        check_same_config(state["config"], dump_config(config), path)
        randomizer = Randomizer(config.randomization)
        with reading(path):
            randomizer.curriculum.load_state_dict(state["randomizer"]["curriculum"])
            policy = _policy(config, state["ppo"]["policy"])
            return cls(config, policy, randomizer, int(state["steps"]))

    @cached_property
    def env(self) -> BatchedEnv:
        """One environment of the run's task, to look at."""
        config, nominal = self.config, ranges_config(())
        sim = config.sim.model_copy(update={"backend": "cpu"})
        return evaluation_env(
            config.task, config.hand, config.object, config.trial_env, sim, nominal, episodes=1
        )


def _policy(config: RunConfig, state: dict[str, Any]) -> HandPolicy:
    def box(width: int) -> spaces.Space:
        return spaces.Box(-np.inf, np.inf, (width,), np.float32)

    entries = {"actor": "pi_features_extractor", "critic": "vf_features_extractor"}
    seen = {key: box(len(state[f"{name}.normalizer.mean"])) for key, name in entries.items()}
    actions = spaces.Box(-1.0, 1.0, (len(state["log_std"]),), np.float32)
    with torch.random.fork_rng(devices=[]):
        policy = policy_class(config.policy)(
            spaces.Dict(seen), actions, lambda _: 0.0, config.policy
        )
    policy.load_state_dict(state)
    policy.set_training_mode(False)
    return policy

"""A policy that is to be tried, wherever it comes from: a run, or a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.objects import ObjectChoice
from widen.envs.perturbation import Perturbation
from widen.envs.sim import SimConfig
from widen.envs.task import task_class

from .config import dump_config
from .evaluate import SEED, Step, Trial, policy_step
from .trained import Trained


@dataclass(frozen=True)
class Candidate:
    """What there is to know of a policy before it meets an environment.

    Attributes:
        name: as the user named it.
        digest: of its weights and of what it was made for; another policy has another.
        task, hand, object: what it was trained on.
        env: settings of its environments.
        sim: settings of the simulation.
        ranges: at the end of its training, as `Randomizer.table` gives them.
        make_step: its control step in given environments.
    """

    name: str
    digest: str
    task: str
    hand: str
    object: ObjectChoice
    env: EnvConfig
    sim: SimConfig
    ranges: list[dict[str, Any]]
    make_step: Callable[[BatchedEnv], Step]

    @property
    def episode_seconds(self) -> float:
        """Length of its task's episodes."""
        return self.env.episode_seconds or task_class(self.task).episode_seconds

    @property
    def has_object(self) -> bool:
        return task_class(self.task).object is not None

    def open(
        self, perturbation: Perturbation | None, num_envs: int, sim: SimConfig | None = None
    ) -> Trial:
        """The policy in environments of its own, in which every episode is whole.

        Args:
            perturbation: None for the nominal world.
            num_envs: number of environments.
            sim: settings that differ from the candidate's own.
        """
        config = self.env.model_copy(update={"num_envs": num_envs})
        env = BatchedEnv(
            self.task, self.hand, self.object, config, sim or self.sim, perturbation, seed=SEED
        )
        return env, self.make_step(env)


def of_run(trained: Trained, name: str, sim: SimConfig) -> Candidate:
    """The policy of a run's checkpoint.

    Args:
        trained: as restored.
        name: as the user named it.
        sim: settings on this machine.
    """
    config = trained.config
    return Candidate(
        name,
        digest_of(trained),
        config.task,
        config.hand,
        config.object,
        config.trial_env,
        sim,
        trained.randomizer.table(),
        lambda env: policy_step(trained.policy, env),
    )


def digest_of(trained: Trained) -> str:
    """Of weights, config and ranges."""
    told = hashlib.sha256()
    about = {"config": dump_config(trained.config), "ranges": trained.randomizer.table()}
    told.update(json.dumps(about, sort_keys=True).encode())
    for name, value in sorted(trained.policy.state_dict().items()):
        told.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        told.update(value.detach().cpu().numpy().tobytes())
    return told.hexdigest()

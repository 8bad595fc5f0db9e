"""Many environments of one task as one object: the way of one control step."""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from .encoder import ObservationEncoder
from .hand import load_hand
from .perturbation import NoPerturbation, Perturbation
from .scene import Scene, build_scene
from .sim import BatchSim, SimConfig, make_sim
from .task import Outcome, Task, task_class

Obs = dict[str, Tensor]


class EnvConfig(BaseModel):
    """The environment's own settings."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    num_envs: int = Field(default=512, ge=1, le=1 << 20)
    """environments simulated side by side"""
    control_hz: float = Field(default=20.0, gt=0, le=1000)
    """policy decisions per second"""
    episode_seconds: float | None = Field(default=None, gt=0, le=86_400)
    """episodes are truncated after this; null: the task's own"""
    history: int = Field(default=3, ge=1, le=100)
    """frames in the actor's observation"""
    rewards: dict[str, float] = {}
    """weights of reward terms that differ from the task's own"""


class StepResult(NamedTuple):
    """What a control step gives back; every array has one row per environment unless said."""

    obs: Obs
    """"actor" (N, n) and "critic" (N, m), float32; of the new episode where one ended"""
    reward: Tensor
    """(N,) float32"""
    terminated: Tensor
    """(N,) bool: the task failed, or the simulation diverged"""
    truncated: Tensor
    """(N,) bool: time is up and nothing else happened"""
    final_obs: Obs
    """as `obs`, but the last observation of the old episode where one ended"""
    episodes: dict[str, Tensor]
    """of the K counted episodes that ended: "score", "length", "return", "failed", each (K,)"""
    terms: dict[str, Tensor]
    """mean over environments of every weighted reward term, scalars"""


class BatchedEnv:
    """N environments on the simulation's device, reset as they finish.

    Args:
        task: name of a task.
        hand: name or path of a hand.
        object_name: name of an object; None for the task's own.
        config, sim: settings.
        perturbation: what stands between the policy and the ideal world; None for nothing.
        seed: of everything random in the task.
        stagger: begin the first episodes at random ages, so that not all end at once. They are
            not counted in `episodes`.

    Raises:
        ValueError: an unknown name, or settings that do not fit the task.
    """

    def __init__(
        self,
        task: str,
        hand: str = "leap",
        object_name: str | None = None,
        config: EnvConfig | None = None,
        sim: SimConfig | None = None,
        perturbation: Perturbation | None = None,
        *,
        seed: int = 0,
        stagger: bool = False,
    ) -> None:
        config, sim = config or EnvConfig(), sim or SimConfig()
        kind = task_class(task)
        if object_name is not None and kind.object is None:
            raise ValueError(f"object: task {task} has no object, got {object_name!r}")
        self.config, self.stagger = config, stagger
        self.control_dt = 1.0 / config.control_hz
        self.substeps = sim.substeps
        self.scene: Scene = build_scene(
            load_hand(hand),
            object_name or kind.object,
            timestep=self.control_dt / sim.substeps,
            iterations=sim.iterations,
        )
        self.perturbation = perturbation if perturbation is not None else NoPerturbation()
        self.sim: BatchSim = make_sim(
            self.scene.model,
            config.num_envs,
            sim,
            model_fields=self.perturbation.model_fields,
            current_sensors=kind.uses_sensors,
            wrench_body=self.scene.object_body,
        )
        self.num_envs, self.device = config.num_envs, self.sim.device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.task: Task = kind(self.scene, self.sim, self.generator)
        self.weights = _weights(kind.weights, config.rewards)
        self._term_weights = torch.tensor(list(self.weights.values()), device=self.device)
        seconds = config.episode_seconds or kind.episode_seconds
        self.max_steps = max(1, round(seconds * config.control_hz))
        self.perturbation.attach(self.sim, self.scene, self.control_dt)
        self.encoder = ObservationEncoder(kind.frame(self.scene), config.history)
        self.actions = kind.make_actions(self.scene)
        for module in (self.encoder, self.actions):
            module.to(self.device)
        self.num_actions = len(self.scene.joint_qpos)
        self._allocate()

    def _allocate(self) -> None:
        n, dev = self.num_envs, self.device
        self.target = torch.zeros(n, self.num_actions, device=dev)
        self.last_action = torch.zeros(n, self.num_actions, device=dev)
        self.past = torch.zeros(n, self.encoder.history_width, device=dev)
        self.age = torch.zeros(n, dtype=torch.int64, device=dev)
        self.score = torch.zeros(n, device=dev)
        self.returns = torch.zeros(n, device=dev)
        self.counted = torch.ones(n, dtype=torch.bool, device=dev)
        self.divergences = 0
        self.last_readings: dict[str, Tensor] = {}

    @property
    def num_actor_obs(self) -> int:
        """Width of obs["actor"]."""
        return self.encoder.width

    @property
    def num_critic_obs(self) -> int:
        """Width of obs["critic"]."""
        state = self.task.privileged().shape[1]
        return self.encoder.frame.width + state + self.perturbation.num_privileged

    @torch.no_grad()
    def reset(self) -> Obs:
        """Begin new episodes everywhere. The observations: "actor" (N, n), "critic" (N, m)."""
        everyone = torch.arange(self.num_envs, device=self.device)
        self._begin(everyone)
        if self.stagger:
            self.age = torch.randint(
                self.max_steps, (self.num_envs,), generator=self.generator, device=self.device
            )
            self.counted = self.age == 0
        return self._observe_fresh(everyone, None)

    @torch.no_grad()
    def step(self, action: Tensor) -> StepResult:
        """One control step from actions (N, nu) in -1..1; what lies outside is clipped."""
        action = action.clamp(-1.0, 1.0)
        return self.step_target(self.actions(action, self.target), action)

    @torch.no_grad()
    def step_target(self, target: Tensor, action: Tensor) -> StepResult:
        """One control step from joint targets (N, nu) [rad], as an exported policy gives them."""
        self.target, self.last_action = target, action
        ctrl, wrench = self.perturbation.act(target, self.substeps)
        self.sim.step(ctrl, wrench)
        diverged = self._repair()
        outcome = self.task.evaluate(action)
        reward, terms = self._reward(outcome, diverged)
        self.age += 1
        self.score += outcome.success & ~diverged
        self.returns += reward
        terminated = outcome.failure | diverged
        truncated = (self.age >= self.max_steps) & ~terminated
        final_obs = self._observe()
        ended = (terminated | truncated).nonzero()[:, 0]
        obs, episodes = final_obs, self._finish(ended, terminated, diverged)
        if len(ended):
            self._begin(ended)
            obs = self._observe_fresh(ended, final_obs)
        return StepResult(obs, reward, terminated, truncated, final_obs, episodes, terms)

    def _repair(self) -> Tensor:
        """Put diverged environments at home, so that all that follows is finite; (N,) bool."""
        diverged = self.sim.diverged.clone()
        ids = diverged.nonzero()[:, 0]
        if len(ids):
            self.divergences += len(ids)
            self.sim.reset(ids, *self.task.nominal_state(len(ids)))
        return diverged

    def _reward(self, outcome: Outcome, diverged: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if outcome.terms.keys() != self.weights.keys():
            raise KeyError(f"terms {list(outcome.terms)} and weights {list(self.weights)} differ")
        raw = torch.stack([outcome.terms[name] for name in self.weights])
        reward = (self._term_weights @ raw).masked_fill(diverged, 0.0)
        means = self._term_weights * raw.mean(1)
        return reward, dict(zip(self.weights, means.unbind(), strict=True))

    def _observe(self) -> Obs:
        true = self.task.readings()
        self.last_readings = self.perturbation.observe(true)
        frame = self.encoder.frame(self.last_readings, self.target, self.last_action)
        actor, self.past = self.encoder.next(frame, self.past)
        if self.last_readings is not true:
            frame = self.encoder.frame(true, self.target, self.last_action)
        return {"actor": actor, "critic": self._critic(frame, None)}

    def _observe_fresh(self, env_ids: Tensor, obs: Obs | None) -> Obs:
        """Observations after new episodes began in env_ids; the other rows are those of obs."""
        true = self.task.readings(env_ids)
        measured = self.perturbation.observe_reset(true, env_ids)
        target, action = self.target[env_ids], self.last_action[env_ids]
        frame = self.encoder.frame(measured, target, action)
        fresh = {"actor": self.encoder.first(frame)}
        if measured is not true:
            frame = self.encoder.frame(true, target, action)
        fresh["critic"] = self._critic(frame, env_ids)
        if obs is None or len(env_ids) == self.num_envs:
            self.last_readings = measured
        else:
            self.last_readings = _replace(self.last_readings, measured, env_ids)
            # copies: the old ones were given away
            fresh = _replace(obs, fresh, env_ids)
        self.past = fresh["actor"][:, : self.encoder.history_width]
        return fresh

    def _critic(self, frame: Tensor, env_ids: Tensor | None) -> Tensor:
        """The critic's observation around a true frame, of all or some environments."""
        drawn = self.perturbation.privileged()
        drawn = drawn if env_ids is None else drawn[env_ids]
        return torch.cat((frame, self.task.privileged(env_ids), drawn), -1)

    def _finish(self, ended: Tensor, failed: Tensor, diverged: Tensor) -> dict[str, Tensor]:
        """Report the episodes that ended, to the perturbation and to the caller."""
        counted = self.counted[ended] & ~diverged[ended]
        if len(ended):
            self.perturbation.end(ended, self.score[ended], counted)
        ids = ended[counted]
        return {
            "score": self.score[ids],
            "length": self.age[ids],
            "return": self.returns[ids],
            "failed": failed[ids],
            "env_ids": ids,
        }

    def _begin(self, env_ids: Tensor) -> None:
        self.perturbation.begin(env_ids)
        qpos, qvel = self.task.reset(env_ids)
        self.sim.reset(env_ids, qpos, qvel)
        # new tensors: the caller may still hold the old ones
        self.target = self.target.index_put((env_ids,), qpos[:, self.task.joints].float())
        self.last_action = self.last_action.index_fill(0, env_ids, 0.0)
        for array in (self.age, self.score, self.returns):
            array[env_ids] = 0
        self.counted[env_ids] = True

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact continuation needs, as tensors and plain values."""
        own = {name: getattr(self, name).clone() for name in _STATE}
        return {
            "env": own,
            "divergences": self.divergences,
            "generator": self.generator.get_state(),
            "readings": {name: value.clone() for name, value in self.last_readings.items()},
            "task": self.task.state_dict(),
            "sim": self.sim.state_dict(),
            "perturbation": self.perturbation.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        for name in _STATE:
            setattr(self, name, state["env"][name].to(self.device).clone())
        self.divergences = int(state["divergences"])
        self.generator.set_state(state["generator"])
        self.last_readings = {
            name: value.to(self.device).clone() for name, value in state["readings"].items()
        }
        self.sim.load_state_dict(state["sim"])
        self.task.load_state_dict(state["task"])
        self.perturbation.load_state_dict(state["perturbation"])


_STATE = ("target", "last_action", "past", "age", "score", "returns", "counted")


def _replace(whole: dict[str, Tensor], part: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    return {name: value.index_put((ids,), part[name]) for name, value in whole.items()}


def _weights(default: dict[str, float], changed: dict[str, float]) -> dict[str, float]:
    for name in changed:
        if name not in default:
            near = difflib.get_close_matches(name, default, 3, 0.4) or sorted(default)
            raise ValueError(f"env.rewards.{name}: unknown term; expected one of {', '.join(near)}")
    return {**default, **changed}

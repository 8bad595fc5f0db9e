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
from .rows import count, merge, put, take
from .scene import ObjectChoice, Scene, build_scene
from .sim import BatchSim, SimConfig, make_sim, resolve_backend
from .task import Outcome, Task, task_class

Obs = dict[str, Tensor]


class EnvConfig(BaseModel):
    """The environment's own settings."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    num_envs: int = Field(default=512, ge=1, le=1 << 20)
    """environments simulated side by side; under torchrun, in every process"""
    control_hz: float = Field(default=20.0, gt=0, le=1000)
    """policy decisions per second"""
    episode_seconds: float | None = Field(default=None, gt=0, le=86_400)
    """episodes are truncated after this; null: the task's own"""
    history: int = Field(default=3, ge=1, le=100)
    """frames in the actor's observation"""
    target_lead: float | None = Field(default=None, gt=0, le=10)
    """joint targets are kept this close to the measured joints [rad], as fast as an action moves them;
    null: anywhere within the limits"""
    task: dict[str, float] = {}
    """settings that differ from the task's own, such as success_angle"""
    rewards: dict[str, float] = {}
    """weights of reward terms that differ from the task's own"""


class Episodes(NamedTuple):
    """The episodes that ended in a step; every array (N,), so that its shape tells nothing.

    Where none ended, score, length and returns are those up to now.
    """

    counted: Tensor
    """bool: an episode ended here, and its score says something about the policy"""
    score: Tensor
    """goals reached"""
    length: Tensor
    """control steps"""
    returns: Tensor
    """sum of rewards"""
    failed: Tensor
    """bool: it ended by failure and not by time"""

    def rows(self) -> dict[str, Tensor]:
        """Only the K counted ones: "score", "length", "return", "failed", "env_ids", each (K,).

        Waits for the device.
        """
        ids = self.counted.nonzero()[:, 0]
        return {
            "score": self.score[ids],
            "length": self.length[ids],
            "return": self.returns[ids],
            "failed": self.failed[ids],
            "env_ids": ids,
        }


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
    episodes: Episodes
    """the episodes that ended in this step"""
    terms: dict[str, Tensor]
    """mean over environments of every weighted reward term, scalars"""


class BatchedEnv:
    """N environments on the simulation's device, reset as they finish.

    On a GPU nothing in `step` waits for the device, a randomizer that settles by itself apart:
    what begins anew is named by a mask, and its values are computed for all environments. On a
    CPU that would be a waste, so there it is named by ids. `masked` tells which.

    Args:
        task: name of a task.
        hand: name or path of a hand.
        object_name: as a config says it: the name of an object, a mapping, or a list of these, of
            which environment i has the i-th, and so around; None for the task's own.
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
        object_name: ObjectChoice = None,
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
        perturbation = perturbation if perturbation is not None else NoPerturbation()
        if foreign := {*perturbation.task_parameters}.difference(kind.parameters):
            known = ", ".join(kind.parameters) or "none of the kind"
            raise ValueError(
                f"randomization.parameters.{min(foreign)}: task {task} does not know it; expected"
                f" {known}"
            )
        self.substeps = sim.substeps
        self.perturbation = perturbation
        self.scene: Scene = build_scene(
            load_hand(hand).posed(kind.pose),
            object_name or kind.object,
            timestep=self.control_dt / sim.substeps,
            iterations=sim.iterations,
            contact_dims=self.perturbation.contact_dims,
            movable_centre="body_ipos" in self.perturbation.model_fields,
        )
        if resolve_backend(sim) == "warp":
            from .probe import with_room  # which makes a BatchedEnv

            sim = with_room(sim, self.perturbation, task, hand, object_name, config)
        self.sim: BatchSim = make_sim(
            self.scene.model,
            config.num_envs,
            sim,
            model_fields=self.perturbation.model_fields,
            sensors=kind.sensors,
            wrench_body=self.scene.object_body,
            variants=self.scene.variants,
        )
        self.num_envs, self.device, self.masked = config.num_envs, self.sim.device, self.sim.masked
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.task: Task = kind(self.scene, self.sim, self.generator, config.task)
        self.task.control_dt = self.control_dt
        self.weights = _weights(kind.weights, config.rewards)
        self._term_weights = torch.tensor(list(self.weights.values()), device=self.device)
        seconds = config.episode_seconds or kind.episode_seconds
        self.max_steps = max(1, round(seconds * config.control_hz))
        self.perturbation.attach(self.sim, self.scene, self.control_dt)
        self.encoder = ObservationEncoder(kind.frame(self.scene), config.history)
        self.actions = kind.make_actions(self.scene)
        self.actions.lead = config.target_lead
        for module in (self.encoder, self.actions):
            module.to(self.device)
        self.num_actions = len(self.scene.joint_qpos)
        self._allocate()

    def _allocate(self) -> None:
        n, dev = self.num_envs, self.device
        self._everyone = torch.arange(n, device=dev)
        self.target = torch.zeros(n, self.num_actions, device=dev)
        self.last_action = torch.zeros(n, self.num_actions, device=dev)
        self.past = torch.zeros(n, self.encoder.history_width, device=dev)
        self.age = torch.zeros(n, dtype=torch.int64, device=dev)
        self.score = torch.zeros(n, device=dev)
        self.returns = torch.zeros(n, device=dev)
        self.counted = torch.ones(n, dtype=torch.bool, device=dev)
        self._divergences = torch.zeros((), dtype=torch.int64, device=dev)
        self.last_readings: dict[str, Tensor] = {}

    @property
    def divergences(self) -> int:
        """Times that an environment was begun anew because its simulation diverged."""
        return int(self._divergences)

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
        everyone = self._which(torch.ones(self.num_envs, dtype=torch.bool, device=self.device))
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
        measured = self.last_readings["joint_pos"]
        return self.step_target(self.actions(action, self.target, measured), action)

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
        late = self.age >= self.max_steps
        truncated = (late if outcome.expired is None else late | outcome.expired) & ~terminated
        final_obs = self._observe()
        ended = terminated | truncated
        counted = ended & self.counted & ~diverged
        # copies, because what begins anew is zeroed
        totals = self.score.clone(), self.age.clone(), self.returns.clone()
        episodes = Episodes(counted, *totals, terminated)
        obs, which = final_obs, self._which(ended)
        if self.masked or len(which):
            # one that diverged is judged by what it reached: bounds that break the simulation would
            # else be judged by their survivors
            judged = self.counted & ended
            self.perturbation.end(which, take(self.score, which), take(judged, which))
            self._begin(which)
            obs = self._observe_fresh(which, final_obs)
        return StepResult(obs, reward, terminated, truncated, final_obs, episodes, terms)

    def _which(self, mask: Tensor) -> Tensor:
        """Environments as this simulation likes to be told of them; see `rows`."""
        return mask if self.masked else mask.nonzero()[:, 0]

    def _repair(self) -> Tensor:
        """Put diverged environments at home, so that all that follows is finite; (N,) bool."""
        diverged = self.sim.diverged.clone()
        which = self._which(diverged)
        if self.masked or len(which):
            self._divergences += diverged.sum()
            self.sim.reset(which, *self.task.nominal_state(count(which)))
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
        frame, real = self._frames(self.last_readings, true, self.target, self.last_action)
        actor, self.past = self.encoder.next(frame, self.past)
        return {"actor": actor, "critic": self._critic(real, None)}

    def _frames(
        self, measured: dict[str, Tensor], true: dict[str, Tensor], target: Tensor, action: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The frame as it is measured, and as it is."""
        if measured is true:
            frame = self.encoder.frame(true, target, action)
            return frame, frame
        # side by side: what counts with so few rows is the number of operations
        both = {name: torch.cat((measured[name], true[name])) for name in true}
        frames = self.encoder.frame(both, target.repeat(2, 1), action.repeat(2, 1))
        first, second = frames.tensor_split(2)
        return first, second

    def _observe_fresh(self, which: Tensor, obs: Obs | None) -> Obs:
        """Observations after episodes began in `which`; the other rows are those of obs."""
        ids = None if self.masked else which
        true = self.task.readings(ids)
        measured = self.perturbation.observe_reset(true, which)
        target, action = take(self.target, which), take(self.last_action, which)
        frame, real = self._frames(measured, true, target, action)
        fresh = {"actor": self.encoder.first(frame), "critic": self._critic(real, ids)}
        if obs is None:  # everyone began
            self.last_readings = measured
        else:
            self.last_readings = _merge(self.last_readings, which, measured)
            # copies: the old ones were given away
            fresh = _merge(obs, which, fresh)
        self.past = fresh["actor"][:, : self.encoder.history_width]
        return fresh

    def _critic(self, frame: Tensor, env_ids: Tensor | None) -> Tensor:
        """The critic's observation around a true frame, of all or some environments."""
        drawn = self.perturbation.privileged()
        drawn = drawn if env_ids is None else drawn[env_ids]
        return torch.cat((frame, self.task.privileged(env_ids), drawn), -1)

    def _begin(self, which: Tensor) -> None:
        self.perturbation.begin(which)
        for name, values in self.perturbation.task_values().items():
            put(getattr(self.task, name), which, take(values, which))
        qpos, qvel = self._new_states(which)
        self.sim.reset(which, qpos, qvel)
        # new tensors: the caller may still hold the old ones
        self.target = merge(self.target, which, qpos[:, self.task.joints].float())
        self.last_action = merge(self.last_action, which, 0.0)
        for array in (self.age, self.score, self.returns):
            put(array, which, 0)
        put(self.counted, which, True)

    def _new_states(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """The task's new episodes. With a mask it begins them everywhere, and most are undone."""
        if not self.masked:
            return self.task.reset(which)
        before = self.task.state_dict()
        qpos, qvel = self.task.reset(self._everyone)
        for name, old in before.items():
            setattr(self.task, name, merge(old, which, getattr(self.task, name)))
        return qpos, qvel

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
        self._divergences.fill_(int(state["divergences"]))
        self.generator.set_state(state["generator"])
        self.last_readings = {
            name: value.to(self.device).clone() for name, value in state["readings"].items()
        }
        self.sim.load_state_dict(state["sim"])
        self.task.load_state_dict(state["task"])
        self.perturbation.load_state_dict(state["perturbation"])


_STATE = ("target", "last_action", "past", "age", "score", "returns", "counted")


def _merge(whole: dict[str, Tensor], which: Tensor, part: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: merge(value, which, part[name]) for name, value in whole.items()}


def _weights(default: dict[str, float], changed: dict[str, float]) -> dict[str, float]:
    for name in changed:
        if name not in default:
            near = difflib.get_close_matches(name, default, 3, 0.4) or sorted(default)
            raise ValueError(f"env.rewards.{name}: unknown term; expected one of {', '.join(near)}")
    return {**default, **changed}

"""What a task is, and the table of those that exist."""

from __future__ import annotations

import difflib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .actions import ActionPipeline
from .encoder import Frame
from .layout import Reading
from .scene import Scene
from .sim import BatchSim, Sensors

# name -> module:class; tasks are imported when they are asked for
TASKS = {
    "cube_reorient": "cube_reorient:CubeReorient",
    "cube_rotate": "cube_rotate:CubeRotate",
    "fingertip_reach": "fingertip_reach:FingertipReach",
}


class Outcome(NamedTuple):
    """What one control step was worth. Every array has one row per environment."""

    terms: dict[str, Tensor]
    """raw reward terms (N,), not yet weighted"""
    success: Tensor
    """(N,) bool: a goal was reached in this step; the score counts these"""
    failure: Tensor
    """(N,) bool: the episode ends, for example the object was dropped"""
    expired: Tensor | None = None
    """(N,) bool: the episode is cut short, as by the time for one goal; None for nowhere"""


class Task(ABC):
    """One manipulation task over N simulations; a task is one file.

    Subclasses set the class attributes, describe the policy's two ends by the class methods, and
    keep goals and whatever else they need from step to step in tensors named in `state`.
    """

    summary: ClassVar[str]
    object: ClassVar[str | None] = None
    """default object, or None for a task without one"""
    frame: ClassVar[type[Frame]]
    """what the actor sees of one instant"""
    pose: ClassVar[str | None] = None
    """how the hand is held, of `Hand.poses`; None for its own home"""
    episode_seconds: ClassVar[float]
    weights: ClassVar[dict[str, float]]
    """default weight of every reward term"""
    sensors: ClassVar[Sensors] = "none"
    """what `sim.sensordata` holds: as recent as the task needs it"""
    settings: ClassVar[dict[str, float]] = {}
    """what a config may set under env.task, with the defaults; all above 0"""
    parameters: ClassVar[tuple[str, ...]] = ()
    """names of tensors (N,) in `state` that the randomization may set as an episode begins: how hard
    the task is; as made, they hold the nominal values"""
    state: ClassVar[tuple[str, ...]]
    """names of all tensors (N, ...) that change from step to step: a checkpoint holds them, and with
    masks `reset` draws for all environments and these are put back where no episode begins"""

    control_dt: float = 0.05
    """seconds of a control step; the environment sets it"""

    def __init__(
        self,
        scene: Scene,
        sim: BatchSim,
        generator: torch.Generator,
        settings: Mapping[str, float] | None = None,
    ) -> None:
        """settings: those that differ from the task's own; see `with_settings`."""
        self.set_to = with_settings(type(self), settings)
        self.scene = scene
        self.sim = sim
        self.generator = generator
        self.joints = torch.as_tensor(scene.joint_qpos, device=sim.device)
        self.dofs = torch.as_tensor(scene.joint_dof, device=sim.device)
        self.home = torch.tensor(scene.hand.home, device=sim.device, dtype=torch.float64)
        self._start = torch.tensor(sim.model.qpos0, device=sim.device)
        self._start[self.joints] = self.home
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Make the tensors that the task works with; `scene`, `sim` and `set_to` are known."""

    @classmethod
    @abstractmethod
    def layout(cls, scene: Scene) -> tuple[Reading, ...]:
        """The readings that the actor is given, in order."""

    @classmethod
    @abstractmethod
    def make_actions(cls, scene: Scene) -> ActionPipeline:
        """What an action means."""

    @classmethod
    @abstractmethod
    def goal_rule(cls, scene: Scene, settings: Mapping[str, float]) -> dict[str, Any]:
        """How goals follow one another, in plain values, so that a controller can do it too.

        settings: all of them.
        """

    @abstractmethod
    def reset(self, env_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Draw new episodes for environments (K,): qpos (K, nq) and qvel (K, nv), float64."""

    @abstractmethod
    def evaluate(self, action: Tensor) -> Outcome:
        """Judge the step just taken and set the next goal where one was reached.

        For all environments at once, without asking how many: a GPU need not wait then.
        """

    @abstractmethod
    def readings(self, env_ids: Tensor | None = None) -> dict[str, Tensor]:
        """True readings as `layout` names them, float32, of all or some environments."""

    @abstractmethod
    def privileged(self, env_ids: Tensor | None = None) -> Tensor:
        """True state for the critic, beside the true frame, (K, m) float32."""

    def rand(self, *shape: int) -> Tensor:
        """Uniform numbers in [-1, 1), float64, from the task's own generator."""
        return (
            torch.rand(
                *shape, device=self.sim.device, dtype=torch.float64, generator=self.generator
            )
            * 2
            - 1
        )

    def rows(self, env_ids: Tensor | None) -> Any:
        """An index of these environments' rows; all of them for None, without a copy."""
        return slice(None) if env_ids is None else env_ids

    def joint_pos(self, env_ids: Tensor | None) -> Tensor:
        """True joint positions (K, nu) [rad], float32."""
        return self.sim.qpos[self.rows(env_ids)].float().index_select(1, self.joints)

    def joint_vel(self, env_ids: Tensor | None) -> Tensor:
        """True joint velocities (K, nu) [rad/s], float32."""
        return self.sim.qvel[self.rows(env_ids)].float().index_select(1, self.dofs)

    def object_pose(self, env_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """True position (K, 3) [m] and unit quaternion (K, 4) of the object, float32."""
        start = self.scene.object_qpos
        # a copy, even of a float32 simulation's live array: poses are handed out as readings
        pose = self.sim.qpos[self.rows(env_ids), start : start + 7].to(torch.float32, copy=True)
        return pose[:, :3], pose[:, 3:]

    def nominal_state(self, count: int) -> tuple[Tensor, Tensor]:
        """The model's own qpos (count, nq) with the hand at home, and zero qvel (count, nv)."""
        still = torch.zeros(count, self.sim.model.nv, dtype=torch.float64, device=self.sim.device)
        return self._start.repeat(count, 1), still

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the tensors named in `state`."""
        return {name: getattr(self, name).clone() for name in self.state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        for name in self.state:
            getattr(self, name).copy_(state[name])


def with_settings(kind: type[Task], changed: Mapping[str, float] | None) -> dict[str, float]:
    """A task's settings, some of them changed.

    Raises:
        ValueError: a setting that the task does not have, or one that is not above 0.
    """
    for name, value in (changed or {}).items():
        if name not in kind.settings:
            near = difflib.get_close_matches(name, kind.settings, 3, 0.4) or sorted(kind.settings)
            expected = f"expected one of {', '.join(near)}" if near else "the task has none"
            raise ValueError(f"env.task.{name}: unknown setting; {expected}")
        if not value > 0.0:
            raise ValueError(f"env.task.{name}: expected a number above 0, got {value:g}")
    return {**kind.settings, **(changed or {})}


def task_class(name: str) -> type[Task]:
    """The task of this name.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 3, 0.4) or sorted(TASKS)
        raise ValueError(f"task: unknown task {name!r}; expected one of {', '.join(near)}")
    module, attribute = TASKS[name].split(":")
    return getattr(importlib.import_module(f".{module}", __package__), attribute)

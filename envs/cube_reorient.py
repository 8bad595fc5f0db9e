"""cube_reorient: bring a cube to any rotation, again and again, without dropping it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .cube import SETTINGS, CubeTask
from .layout import GOAL_QUAT, OBJECT_QUAT
from .rotations import quat_mul, random_rotation
from .scene import Scene


class CubeReorient(CubeTask):
    """Goals uniform over all rotations; the episode ends with a drop or a goal not reached in time.

    `goal_angle` (N,) limits the rotation from where the object is to the next goal [rad]; at pi,
    the nominal value, goals do not depend on where the object is.
    """

    summary = "bring a cube to successive rotations, uniform over all of them"
    pose = "cradle"
    episode_seconds = 60.0
    free_offset = 0.02
    weights = {  # noqa: RUF012 - read only, declared ClassVar in Task
        "rotation": 10.0,  # rad turned toward the goal
        "goal": 5.0,
        "thumb": 0.0,  # times how far the thumb was used for it
        "fingers": 0.0,
        "offset": -3.0,  # m beyond free_offset
        "depth": 0.0,  # m that hand and object are pressed into each other
        "action": -0.002,
        "drop": -5.0,  # more teaches to hold still
    }
    settings = {**SETTINGS, "goal_seconds": 8.0}  # noqa: RUF012
    parameters = ("goal_angle",)
    state = (*CubeTask.state, "goal_angle")

    def prepare(self) -> None:
        super().prepare()
        self.goal_angle = torch.full((self.sim.num_envs,), math.pi, device=self.sim.device)

    @classmethod
    def goal_rule(cls, scene: Scene, settings: Mapping[str, float]) -> dict[str, Any]:
        rule = {"kind": "random_rotations", "reading": GOAL_QUAT.name, "of": OBJECT_QUAT.name}
        return {**rule, "reached": settings["success_angle"], "seconds": settings["goal_seconds"]}

    def start_quat(self, count: int) -> Tensor:
        """Any; in the nest the cube comes to lie on some side or edge."""
        whole = torch.full((count,), math.pi, device=self.sim.device, dtype=torch.float64)
        return random_rotation(whole, self.generator)

    def next_goal(self, quat: Tensor, goal: Tensor | None, which: Tensor | None) -> Tensor:
        turn = random_rotation(self.goal_angle[self.rows(which)], self.generator)
        return quat_mul(turn, quat)

    def expired(self) -> Tensor:
        return self.since >= round(self.set_to["goal_seconds"] / self.control_dt)

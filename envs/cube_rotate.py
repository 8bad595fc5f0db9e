"""cube_rotate: turn a cube in the palm, a quarter turn clockwise at a time, without dropping it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .cube import CubeTask
from .layout import GOAL_QUAT, OBJECT_QUAT
from .rotations import quat_from_rotvec, quat_mul
from .scene import Scene

TURN = -math.pi / 2  # about the palm's axis, from one goal to the next [rad]


class CubeRotate(CubeTask):
    """Goals follow one another about the palm's axis; a drop ends the episode."""

    summary = "turn a cube about the palm's axis through successive quarter turns"
    pose = "cradle"
    episode_seconds = 20.0
    weights = {  # noqa: RUF012 - read only, declared ClassVar in Task
        "rotation": 10.0,  # rad turned toward the goal
        "goal": 5.0,
        "thumb": 0.0,  # times how far the thumb was used for it
        "fingers": 0.0,
        "offset": -3.0,  # m beyond free_offset
        "depth": 0.0,  # m that hand and object are pressed into each other
        "action": -0.002,
        "tilt": -0.1,  # 1 - cos of the cube's tilt
        "drop": -20.0,
    }

    def prepare(self) -> None:
        super().prepare()
        self.turn = quat_from_rotvec(torch.tensor([0.0, 0.0, TURN], device=self.sim.device))

    @classmethod
    def goal_rule(cls, scene: Scene, settings: Mapping[str, float]) -> dict[str, Any]:
        # the first goal is one step from the nearest turn about `axis` to the measured pose
        rule = {"kind": "rotation_sequence", "reading": GOAL_QUAT.name, "of": OBJECT_QUAT.name}
        return {**rule, "axis": [0.0, 0.0, 1.0], "step": TURN, "reached": settings["success_angle"]}

    def start_quat(self, count: int) -> Tensor:
        """Flat on the palm at any yaw."""
        half_yaw = 0.5 * math.pi * self.rand(count)
        none = torch.zeros_like(half_yaw)
        return torch.stack((half_yaw.cos(), none, none, half_yaw.sin()), -1)

    def next_goal(self, quat: Tensor, goal: Tensor | None, which: Tensor | None) -> Tensor:
        return quat_mul(self.turn, quat if goal is None else goal)

    def more_terms(self, quat: Tensor) -> dict[str, Tensor]:
        upset = quat[:, 1:3]
        return {"tilt": 2.0 * (upset * upset).sum(-1)}  # 1 - R_zz

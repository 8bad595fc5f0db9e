"""cube_rotate: turn a cube in the palm, a quarter turn clockwise at a time, without dropping it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .actions import ActionPipeline
from .encoder import Frame
from .layout import GOAL_QUAT, OBJECT_POS, OBJECT_QUAT, Reading, joint_pos
from .rotations import quat_angle, quat_from_rotvec, quat_mul, quat_mul_conj, quat_to_6d
from .scene import Scene
from .task import Outcome, Task

TURN = -math.pi / 2  # about the palm's axis, from one goal to the next [rad]
REACHED = 0.4  # a goal counts within this angle [rad]
DROPPED = 0.1  # from the resting place [m]
FREE_OFFSET = 0.02  # from the resting place without penalty [m]


class CubeRotateFrame(Frame):
    """Joints, tracking errors, last action, cube pose, and the rotation that is left to do."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.width = 3 * len(scene.hand.home) + 3 + 6 + 6

    def forward(self, readings: dict[str, Tensor], target: Tensor, last_action: Tensor) -> Tensor:
        cube = readings["object_quat"]
        left_to_do = quat_mul_conj(readings["goal_quat"], cube)
        rotations = quat_to_6d(torch.stack((cube, left_to_do), -2)).flatten(-2)  # 12
        offset = 20.0 * (readings["object_pos"] - self.nest)  # 3
        return torch.cat((*self.joints(readings, target, last_action), offset, rotations), -1)


class CubeRotate(Task):
    """Goals follow one another about the palm's axis; a drop ends the episode."""

    summary = "turn a cube about the palm's axis through successive quarter turns"
    object = "cube"
    frame = CubeRotateFrame
    episode_seconds = 20.0
    weights = {  # noqa: RUF012 - read only, declared ClassVar in Task
        "rotation": 10.0,  # rad turned toward the goal
        "goal": 5.0,
        "offset": -3.0,  # m beyond FREE_OFFSET
        "action": -0.002,
        "tilt": -0.1,  # 1 - cos of the cube's tilt
        "drop": -20.0,
    }
    state = ("goal", "distance")

    def __init__(self, scene: Scene, sim: Any, generator: torch.Generator) -> None:
        super().__init__(scene, sim, generator)
        self.nest = torch.tensor(scene.hand.nest, device=sim.device)
        self.turn = quat_from_rotvec(torch.tensor([0.0, 0.0, TURN], device=sim.device))
        self.above = self.nest + torch.tensor([-0.008, 0.0, 0.014], device=sim.device)
        cube = scene.object_dof + torch.arange(6, device=sim.device)
        self.moving = torch.cat((self.dofs, cube))  # hand, cube's linear, cube's angular velocity
        self.scale = torch.tensor([0.3] * len(self.dofs) + [5.0] * 3 + [0.5] * 3, device=sim.device)
        self.goal = torch.zeros(sim.num_envs, 4, device=sim.device)
        self.distance = torch.zeros(sim.num_envs, device=sim.device)

    @classmethod
    def layout(cls, scene: Scene) -> tuple[Reading, ...]:
        return joint_pos(len(scene.hand.home)), OBJECT_POS, OBJECT_QUAT, GOAL_QUAT

    @classmethod
    def make_actions(cls, scene: Scene) -> ActionPipeline:
        return ActionPipeline("relative", 0.2, scene.hand.home, scene.lower, scene.upper)

    @classmethod
    def goal_rule(cls, scene: Scene) -> dict[str, Any]:
        # the first goal is one step from the nearest turn about `axis` to the measured pose
        rule = {"kind": "rotation_sequence", "reading": GOAL_QUAT.name, "of": OBJECT_QUAT.name}
        return {**rule, "axis": [0.0, 0.0, 1.0], "step": TURN, "reached": REACHED}

    def reset(self, env_ids: Tensor) -> tuple[Tensor, Tensor]:
        qpos, qvel = self.nominal_state(len(env_ids))
        start = self.scene.object_qpos
        # a little above the palm, anywhere within 6 mm, at any yaw: it falls into the nest
        drawn = self.rand(len(env_ids), 4)
        qpos[:, start : start + 3] = self.above + 0.006 * drawn[:, :3]
        half_yaw = 0.5 * math.pi * drawn[:, 3]
        qpos[:, start + 3], qpos[:, start + 6] = half_yaw.cos(), half_yaw.sin()
        quat = qpos[:, start + 3 : start + 7].float()
        # a new tensor, here and in `evaluate`: the old goals were handed out as readings
        self.goal = self.goal.index_copy(0, env_ids, quat_mul(self.turn, quat))
        self.distance[env_ids] = abs(TURN)
        return qpos, qvel

    def evaluate(self, action: Tensor) -> Outcome:
        pos, quat = self.object_pose()
        distance = quat_angle(quat, self.goal)
        offset = torch.linalg.vector_norm(pos - self.nest, dim=-1)
        success, failure = distance < REACHED, offset > DROPPED
        upset = quat[:, 1:3]
        terms = {
            "rotation": self.distance - distance,
            "goal": success.float(),
            "offset": (offset - FREE_OFFSET).clamp(min=0.0),
            "action": (action * action).sum(-1),
            "tilt": 2.0 * (upset * upset).sum(-1),  # 1 - R_zz
            "drop": failure.float(),
        }
        following = quat_mul(self.turn, self.goal)
        self.goal = torch.where(success[:, None], following, self.goal)
        self.distance = torch.where(success, quat_angle(quat, following), distance)
        return Outcome(terms, success, failure)

    def readings(self, env_ids: Tensor | None = None) -> dict[str, Tensor]:
        pos, quat = self.object_pose(env_ids)
        joints, goal = self.joint_pos(env_ids), self.goal[self.rows(env_ids)]
        return {"joint_pos": joints, "object_pos": pos, "object_quat": quat, "goal_quat": goal}

    def privileged(self, env_ids: Tensor | None = None) -> Tensor:
        return self.sim.qvel[self.rows(env_ids)].float().index_select(1, self.moving) * self.scale

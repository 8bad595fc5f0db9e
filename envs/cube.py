"""What tasks that turn an object in the hand have in common: what is seen, and what is rewarded."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from .actions import ActionPipeline
from .encoder import Frame
from .layout import GOAL_QUAT, OBJECT_POS, OBJECT_QUAT, Reading, joint_pos
from .rotations import nearest_upright, quat_angle, quat_mul_conj, quat_to_6d
from .scene import Scene
from .task import Outcome, Task

SETTINGS = {
    "success_angle": 0.4,  # within which a goal counts [rad]
    "drop_distance": 0.1,  # of the object from its resting place, which ends the episode [m]
}


TOUCH_SHARE = 0.3  # of the time, from which on a finger counts as used


class CubeFrame(Frame):
    """Joints, tracking errors, last action, the object's pose, and the rotation left to do.

    Of rotations that look the same, a cube has 24, the one nearest to the identity is shown: the
    hand feels no difference, and the rotation left to do tells what the others would. What is
    learned of one side of the cube then holds for all of them.
    """

    symmetries: Tensor

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.width = 3 * len(scene.hand.home) + 3 + 6 + 6
        self.keep("symmetries", scene.object_symmetries)

    def forward(self, readings: dict[str, Tensor], target: Tensor, last_action: Tensor) -> Tensor:
        measured = readings["object_quat"]
        left_to_do = quat_mul_conj(readings["goal_quat"], measured)
        upright = nearest_upright(measured, self.symmetries)
        rotations = quat_to_6d(torch.stack((upright, left_to_do), -2)).flatten(-2)  # 12
        offset = 20.0 * (readings["object_pos"] - self.nest)  # 3
        return torch.cat((*self.joints(readings, target, last_action), offset, rotations), -1)


class CubeTask(Task):
    """Rotations to reach, one after another; dropping the object ends the episode.

    Subclasses choose the goals. Tensors of the state: `goal` (N, 4), `distance` (N,) to it [rad],
    `since` (N,) control steps since the last goal, `touched` (N, fingers) those of them in which the
    last link of each finger, or any of the thumb, touched the object.

    Two terms of the reward, "thumb" and "fingers", pay for goals that were reached with the thumb and
    with two other fingers, in proportion to how long these touched, up to `TOUCH_SHARE` of the time.
    Touching is worth nothing by itself, or the hand would learn to hold still.
    """

    object = "cube"
    sensors = "late"
    frame = CubeFrame
    free_offset: float = 0.02
    """from the resting place without penalty [m]"""
    settings = SETTINGS
    state = ("goal", "distance", "since", "touched")

    def prepare(self) -> None:
        scene, sim = self.scene, self.sim
        self.nest = torch.tensor(scene.hand.nest, device=sim.device)
        self.above = self.nest + torch.tensor([-0.008, 0.0, 0.014], device=sim.device)
        cube = scene.object_dof + torch.arange(6, device=sim.device)
        self.moving = torch.cat((self.dofs, cube))  # hand, cube's linear, cube's angular velocity
        self.scale = torch.tensor([0.3] * len(self.dofs) + [5.0] * 3 + [0.5] * 3, device=sim.device)
        self.goal = torch.zeros(sim.num_envs, 4, device=sim.device)
        self.distance = torch.zeros(sim.num_envs, device=sim.device)
        self.since = torch.zeros(sim.num_envs, device=sim.device)
        tips = scene.hand.fingertips
        self.touched = torch.zeros(sim.num_envs, len(tips), device=sim.device)
        numbers = np.r_[*(scene.sensor(f"{tip}_touch") for tip in tips)]
        self.touch_sensors = torch.as_tensor(numbers, device=sim.device)
        self.depth_sensor = scene.sensor("object_depth").start

    @classmethod
    def layout(cls, scene: Scene) -> tuple[Reading, ...]:
        return joint_pos(len(scene.hand.home)), OBJECT_POS, OBJECT_QUAT, GOAL_QUAT

    @classmethod
    def make_actions(cls, scene: Scene) -> ActionPipeline:
        return ActionPipeline("relative", 0.2, scene.hand.home, scene.lower, scene.upper)

    @abstractmethod
    def start_quat(self, count: int) -> Tensor:
        """Rotations (count, 4) of the object as episodes begin, float64."""

    @abstractmethod
    def next_goal(self, quat: Tensor, goal: Tensor | None, which: Tensor | None) -> Tensor:
        """Goals (K, 4) that follow `goal`, None for the first of an episode.

        Args:
            quat: rotations of the object now (K, 4).
            goal: the ones before (K, 4).
            which: environments, ids (K,); None for all.
        """

    def reset(self, env_ids: Tensor) -> tuple[Tensor, Tensor]:
        qpos, qvel = self.nominal_state(len(env_ids))
        start = self.scene.object_qpos
        # a little above the palm, anywhere within 6 mm: it falls into the nest
        qpos[:, start : start + 3] = self.above + 0.006 * self.rand(len(env_ids), 3)
        qpos[:, start + 3 : start + 7] = self.start_quat(len(env_ids))
        quat = qpos[:, start + 3 : start + 7].float()
        goal = self.next_goal(quat, None, env_ids)
        # a new tensor, here and in `evaluate`: the old goals were handed out as readings
        self.goal = self.goal.index_copy(0, env_ids, goal)
        self.since[env_ids], self.touched[env_ids] = 0.0, 0.0
        self.distance[env_ids] = quat_angle(quat, goal)
        return qpos, qvel

    def evaluate(self, action: Tensor) -> Outcome:
        pos, quat = self.object_pose()
        distance = quat_angle(quat, self.goal)
        offset = torch.linalg.vector_norm(pos - self.nest, dim=-1)
        success = distance < self.set_to["success_angle"]
        failure = offset > self.set_to["drop_distance"]
        self.since = self.since + 1.0
        self.touched = self.touched + (self.sim.sensordata[:, self.touch_sensors] > 0.0)
        thumb, fingers = self.used()
        terms = {
            "rotation": self.distance - distance,
            "goal": success.float(),
            "thumb": thumb * success,
            "fingers": fingers * success,
            "offset": (offset - self.free_offset).clamp(min=0.0),
            "depth": self.depth(),
            "action": (action * action).sum(-1),
            **self.more_terms(quat),
            "drop": failure.float(),
        }
        following = self.next_goal(quat, self.goal, None)
        self.goal = torch.where(success[:, None], following, self.goal)
        self.distance = torch.where(success, quat_angle(quat, following), distance)
        self.since = self.since.masked_fill(success, 0.0)
        self.touched = self.touched.masked_fill(success[:, None], 0.0)
        return Outcome(terms, success, failure, self.expired())

    def depth(self) -> Tensor:
        """How far the deepest contact has pressed hand and object into each other, (N,) [m].

        A contact gives way in simulation, the more the harder it is pressed; a real one does not.
        """
        return -self.sim.sensordata[:, self.depth_sensor].float().clamp(max=0.0)

    def used(self) -> tuple[Tensor, Tensor]:
        """How far the thumb (N,), and the two busiest other fingers (N,), were used since the last goal.

        Both 0 to 1; of a hand with fewer other fingers, all of them count.
        """
        share = (self.touched / self.since[:, None] / TOUCH_SHARE).clamp(max=1.0)
        others = share[:, :-1]
        busiest = others.topk(min(2, others.shape[1]), dim=1).values
        return share[:, -1], busiest.mean(1) if busiest.shape[1] else torch.zeros_like(share[:, -1])

    def more_terms(self, quat: Tensor) -> dict[str, Tensor]:
        """Terms of the subclass's own, each (N,)."""
        return {}

    def expired(self) -> Tensor | None:
        """See `Outcome.expired`."""
        return None

    def readings(self, env_ids: Tensor | None = None) -> dict[str, Tensor]:
        pos, quat = self.object_pose(env_ids)
        joints, goal = self.joint_pos(env_ids), self.goal[self.rows(env_ids)]
        return {"joint_pos": joints, "object_pos": pos, "object_quat": quat, "goal_quat": goal}

    def privileged(self, env_ids: Tensor | None = None) -> Tensor:
        return self.sim.qvel[self.rows(env_ids)].float().index_select(1, self.moving) * self.scale

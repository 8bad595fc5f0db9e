"""fingertip_reach: bring every fingertip to its target; a target reached gives the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from .actions import ActionPipeline
from .encoder import Frame
from .layout import Reading, joint_pos
from .scene import Scene
from .task import Outcome, Task

REACHED = 0.02  # every tip this near its target [m]
SPREAD = 0.8  # targets are tips of poses up to this far from home in every joint [rad]
NUM_TARGETS = 512


class FingertipReachFrame(Frame):
    """Joints, tracking errors, last action, and targets; the tips are for the policy to know."""

    centre: Tensor

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.keep("centre", tip_positions(scene, np.array(scene.hand.home)[None])[0])
        self.width = 3 * len(scene.hand.home) + self.centre.numel()

    def forward(self, readings: dict[str, Tensor], target: Tensor, last_action: Tensor) -> Tensor:
        goal = 20.0 * (readings["goal_tips"] - self.centre).flatten(1)  # 3 for each tip
        return torch.cat((*self.joints(readings, target, last_action), goal), -1)


class FingertipReach(Task):
    """Free motion of the bare hand: the first thing to run on a new one."""

    summary = "move all fingertips to random reachable points, one set after another"
    frame = FingertipReachFrame
    episode_seconds = 10.0
    weights = {"progress": 50.0, "distance": -10.0, "goal": 2.0, "action": -0.002}  # noqa: RUF012
    settings = {"success_distance": REACHED}  # noqa: RUF012
    sensors = "current"
    state = ("goal", "distance")

    def prepare(self) -> None:
        scene, sim = self.scene, self.sim
        spans = [scene.sensor(f"{tip}_pos") for tip in scene.hand.fingertips]
        numbers = [i for span in spans for i in range(span.start, span.stop)]
        self.tip_sensors = torch.tensor(numbers, device=sim.device)
        self.targets = torch.tensor(reachable_targets(scene), dtype=torch.float32).to(sim.device)
        self.goal = torch.zeros(sim.num_envs, len(spans), 3, device=sim.device)
        self.distance = torch.zeros(sim.num_envs, device=sim.device)

    @classmethod
    def layout(cls, scene: Scene) -> tuple[Reading, ...]:
        tips = Reading("goal_tips", (len(scene.hand.fingertips), 3), "m", "hand_base", "goal")
        return joint_pos(len(scene.hand.home)), tips

    @classmethod
    def make_actions(cls, scene: Scene) -> ActionPipeline:
        home, lower, upper = scene.hand.home, scene.lower, scene.upper
        return ActionPipeline("absolute", SPREAD, home, lower, upper, smoothing=0.5)

    @classmethod
    def goal_rule(cls, scene: Scene, settings: Mapping[str, float]) -> dict[str, Any]:
        values = np.round(reachable_targets(scene)[:64], 5).tolist()
        rule = {"kind": "points", "reading": "goal_tips", "of": "fingertip_pos", "values": values}
        return {**rule, "reached": settings["success_distance"], "seconds": 2.0}

    def reset(self, env_ids: Tensor) -> tuple[Tensor, Tensor]:
        qpos, qvel = self.nominal_state(len(env_ids))
        # a new tensor: the old goals were handed out as readings
        self.goal = self.goal.index_copy(0, env_ids, self._draw(len(env_ids)))
        # the tips are known only after the reset: no progress is counted in the first step
        self.distance[env_ids] = torch.nan
        return qpos, qvel

    def evaluate(self, action: Tensor) -> Outcome:
        tips = self._tips()
        gaps = torch.linalg.vector_norm(tips - self.goal, dim=-1)  # (N, tips)
        distance, success = gaps.mean(-1), (gaps < self.set_to["success_distance"]).all(-1)
        before = torch.where(self.distance.isnan(), distance, self.distance)
        terms = {
            "progress": before - distance,
            "distance": distance,
            "goal": success.float(),
            "action": action.square().sum(-1),
        }
        # drawn for every environment, so that the random numbers do not depend on who succeeded
        new = self._draw(len(gaps))
        self.goal = torch.where(success[:, None, None], new, self.goal)
        fresh = torch.linalg.vector_norm(tips - self.goal, dim=-1).mean(-1)
        self.distance = torch.where(success, fresh, distance)
        return Outcome(terms, success, torch.zeros_like(success))

    def readings(self, env_ids: Tensor | None = None) -> dict[str, Tensor]:
        return {"joint_pos": self.joint_pos(env_ids), "goal_tips": self.goal[self.rows(env_ids)]}

    def privileged(self, env_ids: Tensor | None = None) -> Tensor:
        gaps = self.goal[self.rows(env_ids)] - self._tips(env_ids)
        return torch.cat((0.3 * self.joint_vel(env_ids), 20.0 * gaps.flatten(1)), -1)

    def _draw(self, count: int) -> Tensor:
        device = self.sim.device
        pick = torch.randint(NUM_TARGETS, (count,), generator=self.generator, device=device)
        return self.targets[pick]

    def _tips(self, env_ids: Tensor | None = None) -> Tensor:
        """Fingertip positions (K, tips, 3) [m], float32."""
        tips = self.sim.sensordata[self.rows(env_ids)][:, self.tip_sensors].float()
        return tips.reshape(len(tips), -1, 3)


def tip_positions(scene: Scene, joints: np.ndarray) -> np.ndarray:
    """Forward kinematics: joint positions (K, nu) [rad] -> fingertips (K, tips, 3) [m]."""
    data = mujoco.MjData(scene.model)
    sites = [scene.model.site(tip).id for tip in scene.hand.fingertips]
    tips = np.empty((len(joints), len(sites), 3))
    for row, pose in zip(tips, joints, strict=True):
        data.qpos[scene.joint_qpos] = pose
        mujoco.mj_kinematics(scene.model, data)
        row[:] = data.site_xpos[sites]
    return tips


def reachable_targets(scene: Scene) -> np.ndarray:
    """Fingertips (NUM_TARGETS, tips, 3) [m] of random poses near home, always the same ones."""
    rng = np.random.default_rng(0)
    poses = scene.hand.home + SPREAD * rng.uniform(-1, 1, (NUM_TARGETS, len(scene.hand.home)))
    return tip_positions(scene, np.clip(poses, scene.lower, scene.upper))

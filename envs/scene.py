"""A compiled scene: one hand, perhaps one object, and where to find their numbers."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from .hand import Hand


@dataclass(frozen=True)
class Scene:
    """A model and the addresses a task needs.

    Attributes:
        model: compiled MjModel; its world frame is the hand base.
        hand: the hand in it.
        joint_qpos: (nu,) addresses in qpos of the hand's joints, actuator order.
        joint_dof: (nu,) addresses in qvel.
        lower, upper: (nu,) joint limits [rad].
        object_body: body name of the object, or None.
        object_qpos: address in qpos of the object's free joint (3 position, 4 quaternion).
        object_dof: address in qvel (3 linear world, 3 angular body).
        hand_geoms, object_geoms: geom ids.
    """

    model: mujoco.MjModel
    hand: Hand
    joint_qpos: np.ndarray
    joint_dof: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    object_body: str | None
    object_qpos: int
    object_dof: int
    hand_geoms: np.ndarray
    object_geoms: np.ndarray

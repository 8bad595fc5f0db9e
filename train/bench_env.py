"""The yardstick of `widen bench`: cube_rotate as one plain gymnasium.Env with one MjModel.

Written for one environment in numpy and floats, without anything of the batched one but the scene
and the task's constants, so that a test can hold each against the other.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from widen.envs.cube import SETTINGS
from widen.envs.cube_rotate import TURN, CubeRotate
from widen.envs.hand import load_hand
from widen.envs.scene import build_scene

Quat = tuple[float, float, float, float]

CONTROL_HZ = 20.0
SUBSTEPS = 3
HISTORY = 3
SCALE = 0.2  # [rad] that an action of 1 moves a joint target
PLACE = 0.006  # [m] half width of the box in which a cube is dropped
ABOVE = (-0.008, 0.0, 0.014)  # [m] its centre from the resting place


class CubeRotateEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """The nominal cube_rotate on the LEAP hand: the actor's observation, actions in -1..1."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self) -> None:
        hand = load_hand("leap").posed(CubeRotate.pose)
        self._scene = build_scene(hand, "cube", timestep=1.0 / (CONTROL_HZ * SUBSTEPS))
        self._data = mujoco.MjData(self._scene.model)
        self._home = np.array(hand.home)
        # targets are float32, as the policy's actions are
        self._lower = self._scene.lower.astype(np.float32)
        self._upper = self._scene.upper.astype(np.float32)
        self._nest = np.array(hand.nest)
        self._weights = CubeRotate.weights
        self._max_steps = round(CubeRotate.episode_seconds * CONTROL_HZ)
        # a view costs less than a fancy index, and the joints are in actuator order
        joints, start = self._scene.joint_qpos, self._scene.object_qpos
        assert (np.diff(joints) == 1).all()
        self._joints = self._data.qpos[joints[0] : joints[-1] + 1]
        self._cube_pos = self._data.qpos[start : start + 3]
        self._cube_quat = self._data.qpos[start + 3 : start + 7]
        nu = len(joints)
        self._frame = np.empty(3 * nu + 15)
        self._obs = np.zeros(HISTORY * len(self._frame), np.float32)
        self._target, self._action = self._home.astype(np.float32), np.zeros(nu, np.float32)
        self._goal: Quat = (1.0, 0.0, 0.0, 0.0)
        self._distance, self._age = 0.0, 0
        self.observation_space = spaces.Box(-np.inf, np.inf, self._obs.shape, np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (nu,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; `options`: the cube's "position" [m] and "quat", if not drawn."""
        super().reset(seed=seed)
        position = self._nest + ABOVE + PLACE * self.np_random.uniform(-1.0, 1.0, 3)
        quat = _about_z(self.np_random.uniform(-math.pi, math.pi))
        if options:
            position, quat = options["position"], options["quat"]
        mujoco.mj_resetData(self._scene.model, self._data)
        self._joints[:] = self._home
        self._cube_pos[:], self._cube_quat[:] = position, quat
        self._goal = _times(_about_z(TURN), quat)
        self._distance, self._age = abs(TURN), 0
        self._target, self._action = self._home.astype(np.float32), np.zeros_like(self._action)
        self._write_frame()
        self._obs[:] = np.tile(self._frame, HISTORY)
        return self._obs.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        width = len(self._frame)
        self._action = np.minimum(np.maximum(action, -1.0), 1.0)
        target = self._target + SCALE * self._action
        self._target = np.minimum(np.maximum(target, self._lower), self._upper)
        self._data.ctrl[:] = self._target
        mujoco.mj_step(self._scene.model, self._data, SUBSTEPS)
        self._age += 1
        reward, success, dropped = self._judge()
        self._write_frame()
        self._obs[width:] = self._obs[:-width].copy()
        self._obs[:width] = self._frame
        truncated = self._age >= self._max_steps and not dropped
        return self._obs.copy(), reward, dropped, truncated, {"goal": success}

    def _judge(self) -> tuple[float, bool, bool]:
        """Reward, whether a goal was reached (then the next is set), whether the cube fell."""
        quat = _floats(self._cube_quat)
        distance = _angle(quat, self._goal)
        offset = math.dist(self._cube_pos.tolist(), self._nest.tolist())
        success = distance < SETTINGS["success_angle"]
        dropped = offset > SETTINGS["drop_distance"]
        weight = self._weights
        reward = (
            weight["rotation"] * (self._distance - distance)
            + weight["goal"] * success
            + weight["offset"] * max(offset - CubeRotate.free_offset, 0.0)
            + weight["action"] * float(self._action @ self._action)
            + weight["tilt"] * 2.0 * (quat[1] ** 2 + quat[2] ** 2)
            + weight["drop"] * dropped
        )
        if success:
            self._goal = _times(_about_z(TURN), self._goal)
            distance = _angle(quat, self._goal)
        self._distance = distance
        return reward, success, dropped

    def _write_frame(self) -> None:
        nu, frame, quat = len(self._home), self._frame, _floats(self._cube_quat)
        w, x, y, z = quat
        frame[:nu] = 2.0 * (self._joints - self._home)
        frame[nu : 2 * nu] = 5.0 * (self._target - self._joints)
        frame[2 * nu : 3 * nu] = self._action
        frame[3 * nu : 3 * nu + 3] = 20.0 * (self._cube_pos - self._nest)
        left_to_do = _times(self._goal, (w, -x, -y, -z))
        frame[3 * nu + 3 :] = _columns(_upright(quat)) + _columns(left_to_do)


def _floats(quat: np.ndarray) -> Quat:
    w, x, y, z = quat.tolist()
    return w, x, y, z


def _about_z(angle: float) -> Quat:
    return math.cos(0.5 * angle), 0.0, 0.0, math.sin(0.5 * angle)


def _times(p: Quat, q: Quat) -> Quat:
    a, b, c, d = p
    w, x, y, z = q
    return (
        a * w - b * x - c * y - d * z,
        a * x + b * w + c * z - d * y,
        a * y - b * z + c * w + d * x,
        a * z + b * y - c * x + d * w,
    )


def _angle(p: Quat, q: Quat) -> float:
    """Angle [rad] of the rotation between p and q."""
    w, x, y, z = _times(p, (q[0], -q[1], -q[2], -q[3]))
    return 2.0 * math.atan2(math.hypot(x, y, z), abs(w))


def _upright(quat: Quat) -> Quat:
    """Of the 24 rotations under which the cube looks the same, the one by the smallest angle.

    The symmetry to undo is the one nearest to `quat`: its components are equal or 0, as many of
    the largest of `quat` as bring it nearest, with their signs.
    """
    order = sorted(range(4), key=lambda i: -abs(quat[i]))
    size = [abs(quat[i]) for i in order]
    nearness = (size[0], math.sqrt(0.5) * (size[0] + size[1]), 0.5 * sum(size))
    count = (1, 2, 4)[nearness.index(max(nearness))]
    part = 1.0 / math.sqrt(count)
    w, x, y, z = (math.copysign(part, quat[i]) if i in order[:count] else 0.0 for i in range(4))
    return _times(quat, (w, -x, -y, -z))


def _columns(quat: Quat) -> tuple[float, ...]:
    """The first two columns of the rotation matrix, one after the other."""
    w, x, y, z = quat
    first = 1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y)
    second = 2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x)
    return (*first, *second)

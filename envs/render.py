"""Pictures of a scene, offscreen."""

from __future__ import annotations

from collections.abc import Mapping

import mujoco
import numpy as np

from .scene import Scene

GHOST = (1.0, 1.0, 1.0, 0.55)  # red, green, blue, opacity of a goal pose
POINT = (0.16, 0.66, 0.36, 0.7)  # of a point to be reached
POINT_RADIUS = 0.008  # [m]
# Where the goal pose of an object is shown, from its resting place [m], and how large: in sight and
# in the way of nothing.
BESIDE = (-0.11, -0.03, 0.045)
GHOST_SCALE = 0.6


class SceneRenderer:
    """Renders states of a scene from its own camera.

    Needs an OpenGL context; without a display set MUJOCO_GL to egl or osmesa before mujoco is
    imported.

    Raises:
        ValueError: there is no OpenGL context to be had.
    """

    def __init__(self, scene: Scene, width: int = 640, height: int = 480) -> None:
        self._scene = scene
        self._data = mujoco.MjData(scene.model)
        try:
            self._renderer = mujoco.Renderer(scene.model, height, width)
        except Exception as error:  # every GL back end has its own exception types
            raise ValueError(
                f"rendering: no OpenGL context ({error}); without a display set MUJOCO_GL=egl or "
                "MUJOCO_GL=osmesa and install libegl1 or libosmesa6"
            ) from error

    def frame(
        self, qpos: np.ndarray, readings: Mapping[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """Picture of one state.

        Args:
            qpos: (nq,).
            readings: a task's readings of this state; the goal among them is shown, see
                `add_goal`. None shows no goal.

        Returns:
            (height, width, 3) uint8.
        """
        self._data.qpos[:] = qpos
        mujoco.mj_forward(self._scene.model, self._data)
        self._renderer.update_scene(self._data, camera="view")
        add_goal(self._renderer.scene, self._scene, readings or {})
        return self._renderer.render()

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()


def add_goal(picture: mujoco.MjvScene, scene: Scene, readings: Mapping[str, np.ndarray]) -> None:
    """Add what is to be reached to a picture; the simulated model knows nothing of it.

    A "goal_quat" (4,) is a small translucent copy of the object in that rotation, beside the hand;
    "goal_tips" (tips, 3) [m] are points in space. Other goals are not shown.
    """
    if "goal_quat" in readings and scene.object_body is not None:
        body = np.array(scene.hand.nest) + BESIDE
        for geom in scene.object_geoms:
            _add_ghost(picture, scene.model, int(geom), body, np.asarray(readings["goal_quat"]))
    for point in np.asarray(readings.get("goal_tips", np.zeros((0, 3)))):
        size = np.full(3, POINT_RADIUS)
        _add(picture, mujoco.mjtGeom.mjGEOM_SPHERE, size, point, np.eye(3), POINT)


def _add_ghost(
    picture: mujoco.MjvScene, model: mujoco.MjModel, geom: int, pos: np.ndarray, quat: np.ndarray
) -> None:
    """A copy of a geom of a body that would be at `pos` (3,) in rotation `quat` (4,)."""
    quat = quat.astype(np.float64)
    centre, turn, rotation = np.empty(3), np.empty(4), np.empty(9)
    mujoco.mju_rotVecQuat(centre, GHOST_SCALE * model.geom_pos[geom], quat)
    mujoco.mju_mulQuat(turn, quat, model.geom_quat[geom])
    mujoco.mju_quat2Mat(rotation, turn)
    kind, size = mujoco.mjtGeom(int(model.geom_type[geom])), GHOST_SCALE * model.geom_size[geom]
    _add(picture, kind, size, pos + centre, rotation, GHOST, int(model.geom_matid[geom]))


def _add(
    picture: mujoco.MjvScene,
    kind: mujoco.mjtGeom,
    size: np.ndarray,
    pos: np.ndarray,
    rotation: np.ndarray,
    colour: tuple[float, float, float, float],
    material: int = -1,
) -> None:
    if picture.ngeom >= picture.maxgeom:
        return
    geom = picture.geoms[picture.ngeom]
    rgba = np.array(colour, np.float32)
    mujoco.mjv_initGeom(geom, kind, size, pos.astype(np.float64), rotation.ravel(), rgba)
    geom.matid, geom.category = material, int(mujoco.mjtCatBit.mjCAT_DECOR)
    picture.ngeom += 1

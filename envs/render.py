"""Pictures of a scene, offscreen."""

from __future__ import annotations

import mujoco
import numpy as np

from .scene import Scene


class SceneRenderer:
    """Renders states of a scene from its own camera.

    Needs an OpenGL context; without a display set MUJOCO_GL to egl or osmesa.
    """

    def __init__(self, scene: Scene, width: int = 640, height: int = 480) -> None:
        self._model = scene.model
        self._data = mujoco.MjData(scene.model)
        try:
            self._renderer = mujoco.Renderer(scene.model, height, width)
        except Exception as error:  # every GL back end has its own exception types
            raise ValueError(
                f"rendering: no OpenGL context ({error}); without a display set MUJOCO_GL=egl or "
                "MUJOCO_GL=osmesa and install libegl1 or libosmesa6"
            ) from error

    def frame(self, qpos: np.ndarray) -> np.ndarray:
        """Picture (height, width, 3) uint8 of the state qpos (nq,)."""
        self._data.qpos[:] = qpos
        mujoco.mj_forward(self._model, self._data)
        self._renderer.update_scene(self._data, camera="view")
        return self._renderer.render()

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()

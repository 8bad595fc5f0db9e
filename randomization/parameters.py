"""The catalogue of everything that can be randomized.

Multiplicative parameters have the unit "x" and the nominal 1. A noise or bias parameter is the
standard deviation of normal samples, and its nominal 0 is also its low limit.

Where limits come from: [R] arXiv 1910.07113, [D] arXiv 1808.00177, [G] robogym, [X] arXiv
2210.13702, [P] arXiv 2502.08844 (MuJoCo Playground). Steps are about a fiftieth of the useful
range, the published 0.02 in normalised units.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import mujoco

from widen.envs.scene import Scene

from .actuation import ACTUATION
from .adversary import ADVERSARY
from .observation import OBSERVATION
from .parameter import Parameter
from .physics import PHYSICS

CATALOGUE = {
    parameter.name: parameter for parameter in (*PHYSICS, *ACTUATION, *ADVERSARY, *OBSERVATION)
}


def find(name: str) -> Parameter:
    """The catalogue's entry of this name.

    Raises:
        ValueError: there is none; the message gives the nearest.
    """
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, CATALOGUE, 3, 0.4) or list(CATALOGUE)
        raise ValueError(f"parameters: unknown parameter {name!r}; expected {' or '.join(near)}")
    return CATALOGUE[name]


def check_scene(names: Iterable[str], scene: Scene) -> None:
    """Refuse parameters that a scene cannot have.

    Raises:
        ValueError: there is no object for object_ parameters, or its size cannot be scaled.
    """
    about_object = [name for name in names if find(name).needs_object]
    if not about_object:
        return
    if scene.object_body is None:
        raise ValueError(
            f"randomization.parameters: {', '.join(about_object)}: this task has no object"
        )
    model, geoms = scene.model, scene.object_geoms
    meshes = model.geom_type[geoms] == int(mujoco.mjtGeom.mjGEOM_MESH)
    offsets = model.geom_pos[geoms].any() or model.body(scene.object_body).ipos.any()
    if "object_size" in about_object and (meshes.any() or offsets):
        raise ValueError(
            "randomization.parameters: object_size needs an object of primitive shapes centred"
            f" on its body; {scene.object_body!r} is not"
        )

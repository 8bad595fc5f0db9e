"""The catalogue of everything that can be randomized.

Multiplicative parameters have the unit "x" and the nominal 1. A noise or bias parameter is the
standard deviation of normal samples, and its nominal 0 is also its low limit.

Where limits come from: [R] arXiv 1910.07113, [D] arXiv 1808.00177, [G] robogym, [X] arXiv
2210.13702, [P] arXiv 2502.08844 (MuJoCo Playground). Steps are about a fiftieth of the useful
range, the published 0.02 in normalised units.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

import mujoco
import numpy as np
import torch

from widen.envs.scene import Scene

from .actuation import ACTUATION
from .adversary import ADVERSARY
from .observation import OBSERVATION
from .parameter import Parameter, Parts, nominal_field
from .physics import PHYSICS

TASK = (
    Parameter(
        "goal_angle",
        "largest rotation from where the object is to its next goal; pi: goals are uniform",
        "rad",
        math.pi,
        (0.4, math.pi),
        0.05,
        "the goal counts at .4 rad; widened from .7 rad in trials of ours",
        "task",
        ascends=True,
    ),
)

CATALOGUE = {
    parameter.name: parameter
    for parameter in (*PHYSICS, *ACTUATION, *ADVERSARY, *OBSERVATION, *TASK)
}

WORLD = tuple(name for name, what in CATALOGUE.items() if what.kind != "task")
"""Names of what every task may meet; the others make one task harder."""


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
        ValueError: there is no object for object_ parameters, or its size cannot be scaled; or the
            hand lacks what a parameter acts upon, which would then widen without any effect.
    """
    chosen = [find(name) for name in names]
    for check in (_check_object, _check_hand, _check_effect):
        problem = check(chosen, scene)
        if problem:
            raise ValueError(f"randomization.parameters: {problem}")


def _check_object(chosen: list[Parameter], scene: Scene) -> str | None:
    about_object = [what.name for what in chosen if what.needs_object]
    if not about_object:
        return None
    if scene.object_body is None:
        return f"{', '.join(about_object)}: this task has no object"
    model, geoms = scene.model, scene.object_geoms
    meshes = model.geom_type[geoms] == int(mujoco.mjtGeom.mjGEOM_MESH)
    offsets = model.geom_pos[geoms].any() or model.body(scene.object_body).ipos.any()
    if "object_size" in about_object and (meshes.any() or offsets):
        return (
            "object_size needs an object of primitive shapes centred on its body;"
            f" {scene.object_body!r} is not"
        )
    return None


def _check_hand(chosen: list[Parameter], scene: Scene) -> str | None:
    model = scene.model
    # the environment gives the object what condim it needs, but nothing to a hand alone
    dims = 6 if scene.object_body else model.geom_condim[scene.hand_geoms].max(initial=0)
    for what in chosen:
        if what.contact_dims > dims:
            return (
                f"{what.name}: this task has no object; expected geoms of the hand with condim"
                f" {what.contact_dims} or more"
            )
    names = {what.name for what in chosen}
    geoms = np.concatenate((scene.hand_geoms, scene.object_geoms))
    direct = geoms[model.geom_solref[geoms, 0] <= 0.0]
    for name in ("contact_time", "contact_damping"):
        if name in names and len(direct):
            geom = model.geom(direct[0]).name or int(direct[0])
            return f"{name}: geom {geom!r} has a solref without a time constant; expected above 0"
    joints = model.dof_jntid[scene.joint_dof]
    free = joints[model.jnt_limited[joints] == 0]
    if "joint_limits" in names and len(free):
        return f"joint_limits: joint {model.joint(free[0]).name!r} has none; expected a range"
    return None


def _check_effect(chosen: list[Parameter], scene: Scene) -> str | None:
    """A factor on numbers that are all zero would do nothing."""
    parts = Parts.of(scene, torch.device("cpu"))
    for what in chosen:
        if what.write is None:
            continue
        nominal = {name: nominal_field(scene.model, name)[None] for name in what.fields}
        rows = {name: values.clone() for name, values in nominal.items()}
        width = {"none": None, "joints": len(scene.joint_qpos), "axes": 3}[what.normals]
        normal = () if width is None else (torch.ones(1, width).double(),)
        what.write(rows, parts, torch.tensor([what.limits[1]]).double(), *normal)
        if all(torch.equal(rows[name], nominal[name]) for name in what.fields):
            return f"{what.name}: {', '.join(what.fields)}: zero here, nothing to scale"
    return None

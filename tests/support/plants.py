"""What effects of actuation and adversary act upon: a hand on the CPU, and its values by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from widen.envs.scene import Scene
from widen.envs.sim import BatchSim, SimConfig, make_sim
from widen.randomization.parameter import Parts, Plant
from widen.randomization.parameters import find

CONTROL_DT = 0.05
JOINTS = 16
Values = float | list[float]


def plant(scene: Scene, num_envs: int, fields: tuple[str, ...] = (), seed: int = 0) -> Plant:
    sim = make_sim(
        scene.model,
        num_envs,
        SimConfig(backend="cpu", threads=1),
        model_fields=fields,
        wrench_body=scene.object_body,
    )
    generator = torch.Generator().manual_seed(seed)
    return Plant(sim, scene, Parts.of(scene, sim.device), CONTROL_DT, generator)


def make(
    kind: Any, scene: Scene, num_envs: int, seed: int = 0, **values: Values
) -> tuple[Any, BatchSim]:
    """Effects of these parameters, each with one value or one for every environment."""
    fields = tuple(sorted({field for name in values for field in find(name).fields}))
    around = plant(scene, num_envs, fields, seed)
    made = kind({name: find(name).limits[1] for name in values}, around)
    begin(made, torch.arange(num_envs), **values)
    return made, around.sim


def begin(made: Any, which: Tensor, **values: Values) -> None:
    rows = torch.ones(len(which), dtype=torch.float64)
    made.begin(which, {n: rows * torch.tensor(v, dtype=rows.dtype) for n, v in values.items()})


def held(made: Any, num_envs: int) -> Tensor:
    """Random positions (num_envs, nu) at which all episodes begin."""
    position = torch.randn(num_envs, JOINTS)
    made.hold(torch.arange(num_envs), position)
    return position

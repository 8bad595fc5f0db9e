"""Effects of the observation alone, without a simulation, and what they are given to report."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from widen.randomization.observation import OBSERVATION, Observation
from widen.randomization.parameter import Plant

JOINTS = 16
LIMITS = {what.name: what.limits[1] for what in OBSERVATION}
WHOLE = {name: 0.6 * limit for name, limit in LIMITS.items()}  # every effect is at work
Values = float | list[float]


def plant(num_envs: int, control_dt: float = 0.05, seed: int = 0) -> Plant:
    sim: Any = SimpleNamespace(num_envs=num_envs)
    scene: Any = SimpleNamespace(joint_qpos=np.arange(JOINTS))
    parts: Any = None
    return Plant(sim, scene, parts, control_dt, torch.Generator().manual_seed(seed))


def make(num_envs: int, control_dt: float = 0.05, seed: int = 0, **values: Values) -> Observation:
    """Effects of these parameters, each with one value or one for every environment."""
    most = {name: LIMITS[name] for name in values}
    made = Observation(most, plant(num_envs, control_dt, seed))
    begin(made, torch.arange(num_envs), **values)
    return made


def begin(made: Observation, which: Tensor, **values: Values) -> None:
    rows = torch.ones(len(which), dtype=torch.float64)
    made.begin(which, {n: rows * torch.tensor(v, dtype=rows.dtype) for n, v in values.items()})


def readings(count: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    quats = torch.randn(count, 4, generator=generator)
    return {
        "joint_pos": torch.randn(count, JOINTS, generator=generator),
        "object_pos": torch.randn(count, 3, generator=generator),
        "object_quat": quats / quats.norm(dim=-1, keepdim=True),
        "goal_quat": torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
    }


def blend(past: list[Tensor], env: int, delay: float) -> Tensor:
    """The value of `delay` steps ago by plain interpolation; past[0] is the reset's, for ever."""
    when = len(past) - 1 - delay
    before, share = math.floor(when), when - math.floor(when)
    one, two = past[max(before, 0)][env], past[max(min(before + 1, len(past) - 1), 0)][env]
    if len(one) == 4 and one @ two < 0:
        two = -two
    return (1 - share) * one + share * two


def rotation_matrices(quat: np.ndarray) -> np.ndarray:
    """(N, 3, 3) of unit quaternions (N, 4), by the textbook's formula."""
    w, x, y, z = quat.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rows).transpose(2, 0, 1)

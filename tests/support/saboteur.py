"""Environments whose simulation is made to diverge."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from widen.envs.batched import BatchedEnv


class Saboteur:
    """Puts NaN into the state of the first tenth of the environments, every so many steps.

    Attributes:
        victims: the environments, (K,).
        count: states that were ruined until now.
    """

    def __init__(self, env: BatchedEnv, every: int = 100) -> None:
        self.victims = torch.arange(max(1, env.num_envs // 10), device=env.device)
        self.count, self._steps, self._every = 0, 0, every
        self._sim, self._step = env.sim, env.sim.step
        env.sim.step = self  # type: ignore[method-assign]

    def __call__(self, ctrl: Tensor, wrench: Tensor | None = None) -> Any:
        self._steps += 1
        if self._steps % self._every == 0:
            # positions one time and velocities the next
            ruined = self._sim.qpos if self._steps // self._every % 2 else self._sim.qvel
            ruined[self.victims] = torch.nan
            self.count += len(self.victims)
        return self._step(ctrl, wrench)

"""A curriculum at work without a simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from widen.randomization.adr import ADR, AdrConfig
from widen.randomization.curriculum import Move, Range, Uniform
from widen.randomization.draws import Draws

MASS = Range("mass", 1.0, 0.1, 0.5, 1.25)
LATENCY = Range("latency", 0.0, 0.2, 0.0, 1.0, scale=2.0)
FIXED = Range("fixed", 3.0, 0.0, 0.0, 9.0)
POINT = Range("point", 2.0, 0.1, 2.0, 2.0)


class Loop:
    """A curriculum with its draws: environments begin episodes and end them, by ids or masks."""

    def __init__(
        self, curriculum: Uniform, num_envs: int, seed: int = 0, masked: bool = False
    ) -> None:
        self.curriculum, self.num_envs, self.masked = curriculum, num_envs, masked
        self.generator = torch.Generator().manual_seed(seed)
        self.draws = Draws(curriculum, num_envs, 0, self.generator)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.curriculum, name)

    def which(self, ids: np.ndarray) -> torch.Tensor:
        if not self.masked:
            return torch.from_numpy(ids)
        return torch.from_numpy(np.isin(np.arange(self.num_envs), ids))

    def draw(self, ids: np.ndarray) -> np.ndarray:
        self.draws.refresh()  # a test may have written bounds
        self.draws.clock += 1
        values = self.draws.begin(self.which(ids)).numpy()
        return values[ids] if self.masked else values

    def result(self, ids: np.ndarray, scores: np.ndarray, counted: np.ndarray) -> list[Move]:
        given = [torch.from_numpy(scores), torch.from_numpy(counted)]
        if self.masked:
            given = [
                torch.zeros(self.num_envs, dtype=x.dtype).index_copy(0, torch.from_numpy(ids), x)
                for x in given
            ]
        self.draws.end(self.which(ids), *given)
        return self.curriculum.decide([self.draws.drain()])

    def state_dict(self) -> dict[str, Any]:
        mine = {"rng": self.generator.get_state(), "draws": self.draws.state_dict()}
        return {**mine, "curriculum": self.curriculum.state_dict(), "clock": self.draws.clock}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curriculum.load_state_dict(state["curriculum"])
        self.draws.load_state_dict(state["draws"])
        self.draws.clock = state["clock"]
        self.generator.set_state(state["rng"])


def adr(
    *ranges: Range, num_envs: int = 1, seed: int = 0, masked: bool = False, **config: Any
) -> Any:
    """A `Loop` in which every episode evaluates a bound, and two results decide."""
    constants = {"evaluation_share": 1.0, "buffer": 2, "widen_at": 20, "narrow_at": 10}
    return Loop(ADR(ranges, AdrConfig(**{**constants, **config})), num_envs, seed, masked)


def play(curriculum: Any, scores: list[float], *, counted: bool = True) -> list[Move]:
    """Episodes of environment 0, one after another, with these scores."""
    moves = []
    for score in scores:
        curriculum.draw(np.array([0]))
        moves += curriculum.result(np.array([0]), np.array([score]), np.array([counted]))
    return moves

"""What was drawn for the episodes that ended, and how they went."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from widen.envs.rows import count

LEAST_ROOM = 1024


class Episodes:
    """Drawn values and scores of ended episodes, kept on the simulation's device until drained.

    Room is limited: of more episodes than `LEAST_ROOM` (or than there are environments) the oldest
    are lost. Nothing here waits for the device but `drain` and `state_dict`.

    Args:
        num_envs: number of environments N.
        width: number of parameters P.
        device: of the simulation.
    """

    def __init__(self, num_envs: int, width: int, device: torch.device) -> None:
        self._room = max(LEAST_ROOM, num_envs)
        # the last row takes what is not kept
        self._rows = torch.zeros(self._room + 1, width + 1, device=device)
        self._ended = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, which: Tensor, values: Tensor, scores: Tensor, counted: Tensor) -> None:
        """Take the `counted` of the episodes that end in `which`, values (K or N, P)."""
        keep = counted & which if which.dtype == torch.bool else counted
        order = self._ended + keep.cumsum(0) - 1
        slots = torch.where(keep, order % self._room, self._room)
        rows = torch.cat((values, scores[:, None].to(values.dtype)), 1)
        self._rows[slots] = rows.to(self._rows.dtype)
        self._ended += keep.sum()
        assert count(which) == len(rows)

    def drain(self) -> np.ndarray:
        """(E, P + 1) float32 values and score of the episodes since the last call, as they ended."""
        rows = self._kept().cpu().numpy()
        self._ended.zero_()
        return rows

    def _kept(self) -> Tensor:
        ended = int(self._ended)
        first = max(0, ended - self._room)
        slots = torch.arange(first, ended, device=self._rows.device) % self._room
        return self._rows[slots]

    def state_dict(self) -> dict[str, Any]:
        """Tensors from which `load_state_dict` continues."""
        return {"rows": self._kept()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; of another number of environments the last rows."""
        rows = state["rows"][-self._room :]
        self._rows[: len(rows)] = rows.to(self._rows.device)
        self._ended.fill_(len(rows))

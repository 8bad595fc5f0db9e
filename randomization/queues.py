"""The recent past of a quantity, for every environment."""

from __future__ import annotations

import torch
from torch import Tensor


class History:
    """The last `length` rows that were pushed, (N, width) each.

    All environments share one clock; an environment that begins anew overwrites its whole past.
    """

    def __init__(self, length: int, num_envs: int, width: int, device: torch.device) -> None:
        self.rows = torch.zeros(length, num_envs, width, device=device)
        self._newest = 0
        self._envs = torch.arange(num_envs, device=device)

    def push(self, row: Tensor) -> None:
        """A control step passes; row (N, width) is its value."""
        self._newest = (self._newest + 1) % len(self.rows)
        self.rows[self._newest] = row

    def fill(self, which: Tensor, row: Tensor) -> None:
        """Environments `which` have had row (K or N, width) for ever."""
        if which.dtype == torch.bool:
            self.rows.copy_(torch.where(which[:, None], row, self.rows))
        else:
            self.rows[:, which] = row

    def past(self, steps: Tensor) -> Tensor:
        """What was pushed `steps` (N,) or (N, S) pushes before the last: (N, ..., width)."""
        length, num_envs, width = self.rows.shape
        envs = self._envs if steps.dim() == 1 else self._envs[:, None]
        where = (self._newest - steps) % length * num_envs + envs
        found = self.rows.view(length * num_envs, width).index_select(0, where.reshape(-1))
        return found.view(*steps.shape, width)

    def state_dict(self) -> dict[str, Tensor | int]:
        return {"rows": self.rows.clone(), "newest": self._newest}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        self.rows.copy_(torch.as_tensor(state["rows"]))
        self._newest = int(state["newest"])

"""The recent past of a quantity, for every environment."""

from __future__ import annotations

import torch
from torch import Tensor


class History:
    """The last `length` rows that were pushed, (N, width) each.

    All environments share one clock; an environment that begins anew overwrites its whole past.

    Attributes:
        rows: (length, N, width), the newest first. Shifted as a whole, which is quicker than to
            reckon, for every element, where in a ring it lies.
    """

    def __init__(self, length: int, num_envs: int, width: int, device: torch.device) -> None:
        self.rows = torch.zeros(length, num_envs, width, device=device)

    def push(self, row: Tensor) -> None:
        """A control step passes; row (N, width) is its value."""
        self.rows = torch.cat((row[None].to(self.rows.dtype), self.rows[:-1]))

    def fill(self, which: Tensor, row: Tensor) -> None:
        """Environments `which` have had row (K or N, width) for ever."""
        if which.dtype == torch.bool:
            self.rows = torch.where(which[:, None], row.to(self.rows.dtype), self.rows)
        else:
            self.rows[:, which] = row.to(self.rows.dtype)

    def past(self, steps: Tensor) -> Tensor:
        """What was pushed `steps` pushes before the last, (N, width).

        steps: int64, one number for every column (N, width) or for all of them (N, 1).
        """
        return self.rows.gather(0, steps.expand(self.rows.shape[1:])[None])[0]

    def state_dict(self) -> dict[str, Tensor]:
        return {"rows": self.rows.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.rows.copy_(state["rows"])

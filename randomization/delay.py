"""Readings of some time ago, between two control steps by linear interpolation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class Delay:
    """Gives a quantity (N, width) as it was some control steps ago, a fraction of one included.

    The delayed value is a sum of the last `length` rows with weights that belong to their ages,
    the hat function about the delay. That is one product and one sum, where looking up two rows
    of every environment takes a dozen operations.

    Args:
        most: longest delay [control steps].
        num_envs: N.
        width: of the quantity.
        device: where it lives.
    """

    def __init__(self, most: float, num_envs: int, width: int, device: torch.device) -> None:
        self._length = length = math.ceil(most) + 1
        self._rows = torch.zeros(length, num_envs, width, device=device)
        self._newest = 0
        # by age in falling order, twice: from any slot of the ring on they are in its order
        self._weights = torch.zeros(2 * length, num_envs, 1, device=device)
        ages = -torch.arange(2 * length, dtype=torch.float64) % length
        self._ages = ages[:, None].to(device)

    @property
    def last(self) -> Tensor:
        """(N, width) what was pushed or filled in last; a view."""
        return self._rows[self._newest]

    def begin(self, which: Tensor, steps: Tensor) -> None:
        """New episodes of `which` have these delays (K or N,) [control steps]."""
        weights = (1.0 - (self._ages - steps).abs()).clamp(min=0.0).float()[..., None]
        _put_columns(self._weights, which, weights)

    def fill(self, which: Tensor, row: Tensor) -> None:
        """Environments `which` have had row (K or N, width) for ever."""
        _put_columns(self._rows, which, row)

    def push(self, row: Tensor) -> Tensor:
        """The delayed value (N, width), now that a control step has passed and row is new."""
        self._newest = (self._newest + 1) % self._length
        self._rows[self._newest] = row
        start = self._length - self._newest
        return (self._rows * self._weights[start : start + self._length]).sum(0)

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self._rows.clone(),
            "weights": self._weights.clone(),
            "newest": self._newest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rows.copy_(state["rows"])
        self._weights.copy_(state["weights"])
        self._newest = int(state["newest"])


def _put_columns(x: Tensor, which: Tensor, values: Tensor) -> None:
    """As `rows.put`, for x (L, N, width), whose environments are in the second place."""
    if which.dtype == torch.bool:
        torch.where(which[:, None], values, x, out=x)
    else:
        x[:, which] = values

"""From the policy's action to joint targets. Runs in training and inside the exported graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn


class ActionPipeline(nn.Module):
    """Scale, smooth and limit an action; the only state is the last target.

    mode "relative": target' = target + scale a. mode "absolute": goal = home + scale a, and
    target' = target + smoothing (goal - target), an exponential moving average. Both are clipped
    to the joint limits, so that a target never winds up beyond what the joint can follow.
    """

    home: Tensor
    lower: Tensor
    upper: Tensor

    def __init__(
        self,
        mode: Literal["relative", "absolute"],
        scale: float,
        home: Sequence[float] | np.ndarray,
        lower: np.ndarray,
        upper: np.ndarray,
        smoothing: float = 1.0,
    ) -> None:
        """home, lower, upper: (nu,) [rad]. smoothing in (0, 1]; 1 is none."""
        super().__init__()
        self.mode = mode
        self.scale = scale
        self.smoothing = smoothing
        for name, value in (("home", home), ("lower", lower), ("upper", upper)):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))

    def forward(self, action: Tensor, target: Tensor) -> Tensor:
        """action (N, nu) in -1..1 and last target (N, nu) [rad] -> new target (N, nu) [rad]."""
        if self.mode == "relative":
            new = target + self.scale * action
        else:
            new = target + self.smoothing * (self.home + self.scale * action - target)
        return torch.minimum(torch.maximum(new, self.lower), self.upper)

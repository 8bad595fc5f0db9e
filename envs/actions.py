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
    target' = target + smoothing (goal - target), an exponential moving average. With a lead, target'
    is then brought within it of the measured joint, by at most `largest_move`: a motor has a largest
    force, so a target that runs ahead of a slow joint gains nothing, and takes as long to come back.
    At last it is clipped to the joint limits.
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
        lead: float | None = None,
    ) -> None:
        """
        Args:
            home, lower, upper: (nu,) [rad].
            smoothing: in (0, 1]; 1 is none.
            lead: how far a target may be from where its joint is measured [rad]; None for anywhere.
        """
        super().__init__()
        self.mode = mode
        self.scale = scale
        self.smoothing = smoothing
        self.lead = lead
        for name, value in (("home", home), ("lower", lower), ("upper", upper)):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))

    @property
    def largest_move(self) -> float:
        """The most that an action in -1..1 moves a joint target in one step [rad]."""
        if self.mode == "relative":
            return self.scale
        return 2.0 * self.scale * self.smoothing  # from one end of the action's span

    def forward(self, action: Tensor, target: Tensor, joint_pos: Tensor) -> Tensor:
        """The new target (N, nu) [rad].

        Args:
            action: (N, nu) in -1..1.
            target: the last one (N, nu) [rad].
            joint_pos: as measured (N, nu) [rad]; without a lead it is not used.
        """
        if self.mode == "relative":
            new = target + self.scale * action
        else:
            new = target + self.smoothing * (self.home + self.scale * action - target)
        if self.lead is not None:
            new = torch.minimum(torch.maximum(new, joint_pos - self.lead), joint_pos + self.lead)
            # a joint that was pushed away does not take the target along at once
            new = target + (new - target).clamp(-self.largest_move, self.largest_move)
        return torch.minimum(torch.maximum(new, self.lower), self.upper)

"""From readings to the actor's observation. Runs in training and inside the exported graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .scene import Scene


class Frame(nn.Module):
    """What the actor sees of one instant; a task writes its own and sets `width`.

    forward takes the readings (each (N, ...)), the joint target in force (N, nu) and the last
    action (N, nu), and returns (N, width) numbers of order one.
    """

    width: int
    home: Tensor
    nest: Tensor

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.keep("home", scene.hand.home)
        self.keep("nest", scene.hand.nest)

    def keep(self, name: str, value: Sequence[float] | np.ndarray) -> None:
        """A constant of the frame, float32, that moves with it and goes into the exported graph."""
        self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))

    def joints(
        self, readings: dict[str, Tensor], target: Tensor, last_action: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What every task shows of the hand: positions, tracking errors, last action, (N, nu)."""
        position = readings["joint_pos"]
        return 2.0 * (position - self.home), 5.0 * (target - position), last_action

    def forward(self, readings: dict[str, Tensor], target: Tensor, last_action: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define forward")


class ObservationEncoder(nn.Module):
    """The newest frame and the ones before it, newest first.

    A real robot measures no velocities; a short history holds them. The first frame of an
    episode fills the whole history, as if the hand had been at rest.
    """

    def __init__(self, frame: Frame, history: int) -> None:
        """history: number of frames in an observation, at least 1."""
        super().__init__()
        self.frame = frame
        self.history = history

    @property
    def width(self) -> int:
        """Numbers in one observation."""
        return self.frame.width * self.history

    @property
    def history_width(self) -> int:
        """Numbers of past frames to carry from one step to the next."""
        return self.frame.width * (self.history - 1)

    def forward(
        self,
        readings: dict[str, Tensor],
        target: Tensor,
        last_action: Tensor,
        past: Tensor,
        fresh: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One observation.

        Args:
            readings: name -> (N, ...).
            target: (N, nu) [rad], in force while the readings were taken.
            last_action: (N, nu).
            past: (N, history_width), as returned by the step before.
            fresh: (N, 1), 1.0 where an episode begins and `past` means nothing, else 0.0.

        Returns:
            observation (N, width) and the new past (N, history_width).
        """
        frame = self.frame(readings, target, last_action)
        if self.history == 1:
            return frame, past
        past = torch.where(fresh > 0.5, self.first(frame)[:, : self.history_width], past)
        return self.next(frame, past)

    def first(self, frame: Tensor) -> Tensor:
        """Observation (N, width) of an episode that begins with this frame."""
        return frame.repeat(1, self.history)

    def next(self, frame: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Observation (N, width) and new past, a view of it, in the midst of an episode."""
        observation = torch.cat((frame, past), -1)
        return observation, observation[:, : self.history_width]

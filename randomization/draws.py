"""Every episode's values, drawn on the simulation's device, and what becomes of the evaluations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from widen.envs.rows import count, put, take

from .curriculum import NEVER, Records, Uniform

# A ticket orders episodes by the control step in which they began, then by rank and environment.
_STEP, _RANK = 1 << 32, 1 << 20


class Draws:
    """Draws U(low, high) within a curriculum's bounds, and sends some episodes to a bound.

    The curriculum decides on the host, now and then; episodes begin and end on the device at any
    moment. Nothing here waits for the device but `drain`.

    Args:
        curriculum: whose bounds, evaluation share and movable bounds are used.
        num_envs: number of environments N.
        rank: of this process among those that share the curriculum.
        generator: draws every value, on the simulation's device.
    """

    def __init__(
        self, curriculum: Uniform, num_envs: int, rank: int, generator: torch.Generator
    ) -> None:
        device = generator.device
        self._curriculum, self._generator = curriculum, generator
        self.clock = 0
        """control steps taken"""
        self._begun = -1  # clock at which episodes last began
        self._evaluates = curriculum.evaluation_share > 0 and len(curriculum.movable) > 0
        self._movable = torch.as_tensor(curriculum.movable, device=device)
        tops = [i for i, what in enumerate(curriculum.ranges) if what.at_top]
        self._tops = torch.tensor(tops, dtype=torch.int64, device=device)
        self._bounds = torch.empty(curriculum.bounds.shape, dtype=torch.float64, device=device)
        self._numbers = torch.arange(num_envs, device=device) + rank * _RANK
        self._assigned = torch.full((num_envs,), -1, device=device)
        self._ticket = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._ended: list[tuple[Tensor, ...]] = []
        self.refresh()

    def refresh(self) -> None:
        """Take over the curriculum's bounds after they changed."""
        self._bounds.copy_(torch.from_numpy(self._curriculum.bounds))

    def begin(self, which: Tensor) -> Tensor:
        """Values (K or N, P), float64, of the episodes that begin in `which`."""
        n, self._begun = count(which), self.clock
        low, high = self._bounds.unbind(1)
        share = self._uniform(n, len(low))
        # rounding may put low + (high - low) u beyond high
        values = torch.minimum(low + (high - low) * share, high)
        if len(self._tops):
            values[:, self._tops] = high[self._tops]
        if not self._evaluates:
            return values
        evaluates = self._uniform(n) < self._curriculum.evaluation_share
        pick = torch.randint(len(self._movable), (n,), generator=self._generator, device=low.device)
        bound = self._movable[pick]  # 2 * parameter + side
        column = (bound // 2)[:, None]
        at_bound = self._bounds.flatten()[bound][:, None]
        inside = values.gather(1, column)
        values.scatter_(1, column, torch.where(evaluates[:, None], at_bound, inside))
        put(self._assigned, which, torch.where(evaluates, bound, -1))
        put(self._ticket, which, take(self._numbers, which) + self.clock * _STEP)
        return values

    def end(self, which: Tensor, scores: Tensor, counted: Tensor) -> None:
        """The episodes of `which` end with these scores; those not `counted` are forgotten."""
        if not self._evaluates:
            return
        assigned, ticket = take(self._assigned, which), take(self._ticket, which)
        if which.dtype == torch.bool:
            # these are the live arrays, and so are the caller's scores
            assigned, ticket, scores = assigned.clone(), ticket.clone(), scores.clone()
            counted = counted & which
        self._ended.append((assigned, ticket, scores, counted & (assigned >= 0)))
        put(self._assigned, which, -1)

    def drain(self) -> Records:
        """The evaluations that ended since the last call, and how old the running ones are."""
        ended, self._ended = self._ended, []
        if not self._evaluates:
            nothing = np.zeros(0, dtype=np.int64)
            return Records(nothing, nothing, nothing, self._oldest(), self.next)
        bounds, tickets = np.zeros((2, 0), dtype=np.int64)
        scores = np.zeros(0, dtype=np.float32)
        if ended:
            columns = [torch.cat(column) for column in zip(*ended, strict=True)]
            counted = columns.pop()
            bounds, tickets, scores = (x[counted].cpu().numpy() for x in columns)
        return Records(bounds, tickets, scores, self._oldest(), self.next)

    @property
    def next(self) -> int:
        """First ticket that may be issued from here on.

        Episodes of the present control step may have begun already or may be about to.
        """
        return self.first_ticket(max(self.clock, self._begun + 1))

    @staticmethod
    def first_ticket(clock: int) -> int:
        """Of the episodes that begin in this control step."""
        return clock * _STEP

    def abandoned(self, state: dict[str, Any]) -> np.ndarray:
        """(K,) bounds at which episodes were running in a `state_dict`."""
        bounds = np.unique(state["assigned"].cpu().numpy())
        return bounds[bounds >= 0]

    def _oldest(self) -> np.ndarray:
        oldest = np.full(2 * len(self._bounds), NEVER)
        if not self._evaluates:  # nothing to wait for the device for
            return oldest
        bounds, tickets = self._assigned.cpu().numpy(), self._ticket.cpu().numpy()
        # an episode from before its bound moved does not count, and holds nothing up
        running = (bounds >= 0) & (tickets >= self._curriculum.since[bounds])
        np.minimum.at(oldest, bounds[running], tickets[running])
        return oldest

    def _uniform(self, *shape: int) -> Tensor:
        device = self._generator.device
        return torch.rand(*shape, generator=self._generator, device=device, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """Tensors from which `load_state_dict` continues exactly; the generator is the owner's."""
        ended = [[x.clone() for x in one] for one in self._ended]
        return {
            "assigned": self._assigned.clone(),
            "ticket": self._ticket.clone(),
            "ended": ended,
            "begun": self._begun,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            ValueError: the state is of another number of environments.
        """
        if len(state["assigned"]) != len(self._assigned):
            raise ValueError(
                f"randomization: saved state is of {len(state['assigned'])} environments,"
                f" expected {len(self._assigned)}"
            )
        device = self._assigned.device
        self._assigned.copy_(state["assigned"])
        self._ticket.copy_(state["ticket"])
        self._begun = int(state["begun"])
        self._ended = [tuple(x.to(device) for x in one) for one in state["ended"]]
        self.refresh()

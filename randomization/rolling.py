"""Results judged in finishing order, as DeXtreme does; for comparison."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .curriculum import Records
from .decision import Verdict, published

if TYPE_CHECKING:
    from .adr import AdrConfig


class Rolling:
    """Every bound's last `buffer` results, evaluated anew with each that comes in (2210.13702).

    A queue is cleared only when its own bound moves, and a result counts whenever its episode
    began. Episodes that fail early end early, so a queue that fills anew sees them first: the
    mean is too low until it has seen longer ones. `Tickets` has the same interface.

    Args and attributes are those of `Tickets`. Of several processes the results between two decisions come in the order of their ranks.
    """

    def __init__(
        self, num_bounds: int, config: AdrConfig, own: Mapping[int, AdrConfig] | None = None
    ) -> None:
        self._configs = [(own or {}).get(bound, config) for bound in range(num_bounds)]
        self.since = np.zeros(num_bounds, dtype=np.int64)
        self._queues: list[deque[float]] = [deque(maxlen=config.buffer) for _ in range(num_bounds)]
        self._arrived: list[deque[float]] = [deque() for _ in range(num_bounds)]

    @property
    def counts(self) -> np.ndarray:
        """(B,) results in the queues."""
        return np.array([len(queue) for queue in self._queues], dtype=np.int64)

    def take(self, records: Sequence[Records]) -> None:
        """Results of all processes that ended since the last time."""
        for one in records:
            for bound, score in zip(one.bounds, one.scores, strict=True):
                self._arrived[bound].append(float(score))

    def verdict(self, bound: int) -> Verdict | None:
        """The evaluation with the next result that came in; None if there is none that tells."""
        queue, arrived, config = self._queues[bound], self._arrived[bound], self._configs[bound]
        while arrived:
            queue.append(arrived.popleft())
            verdict = published(list(queue), config.buffer, config.narrow_at, config.widen_at)
            if verdict is not None:
                return verdict
        return None

    def moved(self, bound: int) -> None:
        """The bound moved: its queue fills anew."""
        self._queues[bound].clear()

    def abandon(self, bounds: np.ndarray, next_ticket: int) -> None:
        """Running episodes at these bounds are given up."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values. Between decisions nothing waits that has arrived."""
        return {"queues": [list(queue) for queue in self._queues]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        for queue, saved in zip(self._queues, state["queues"], strict=True):
            queue.clear()
            queue.extend(map(float, saved))

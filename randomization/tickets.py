"""Results judged in the order in which their episodes began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .curriculum import Records
from .decision import Spread, Verdict, published, sequential

if TYPE_CHECKING:
    from .adr import AdrConfig


class Tickets:
    """Results of every bound, each known by the ticket that its episode drew when it began.

    Environments run side by side, and episodes that fail early also end early: judged in finishing
    order, a bound would first see failures only. Here a bound is judged by the earliest tickets
    issued since it last moved, once all of them have ended: a result waits until the bound's
    earlier episodes have ended, and an episode that began before the move says nothing about the
    bound as it is now and is forgotten.

    Args:
        num_bounds: number of bounds B.
        config: constants, and which decision.
        own: the constants of bounds that differ.

    Attributes:
        since: (B,) first ticket of each bound that counts.
    """

    def __init__(
        self, num_bounds: int, config: AdrConfig, own: Mapping[int, AdrConfig] | None = None
    ) -> None:
        self._configs = [(own or {}).get(bound, config) for bound in range(num_bounds)]
        self.since = np.zeros(num_bounds, dtype=np.int64)
        self._results: list[list[tuple[int, float]]] = [[] for _ in range(num_bounds)]
        self._ended = [0] * num_bounds  # how many of the results, in order, may be judged
        self._spreads = [Spread()] * num_bounds
        self._next = 0

    @property
    def counts(self) -> np.ndarray:
        """(B,) results that wait for the next evaluation."""
        return np.array([len(held) for held in self._results], dtype=np.int64)

    def take(self, records: Sequence[Records]) -> None:
        """Results of all processes that ended since the last time."""
        for one in records:
            for bound, ticket, score in zip(one.bounds, one.tickets, one.scores, strict=True):
                if ticket >= self.since[bound]:
                    self._results[bound].append((int(ticket), float(score)))
        oldest = np.min([one.oldest for one in records], axis=0)
        self._next = max(one.next for one in records)
        for bound, held in enumerate(self._results):
            held.sort()
            self._ended[bound] = sum(ticket < oldest[bound] for ticket, _ in held)

    def verdict(self, bound: int) -> Verdict | None:
        """The next evaluation of a bound, whose results are then spent; None if it must wait."""
        scores = [score for _, score in self._results[bound][: self._ended[bound]]]
        verdict = self._decide(bound, scores)
        if verdict is not None:
            self._spreads[bound] = self._spreads[bound].after(scores[: verdict.count])
            del self._results[bound][: verdict.count]
            self._ended[bound] -= verdict.count
        return verdict

    def moved(self, bound: int) -> None:
        """The bound moved: only tickets that are yet to be issued count from here."""
        self.since[bound] = self._next
        self._results[bound].clear()
        self._ended[bound] = 0

    def abandon(self, bounds: np.ndarray, next_ticket: int) -> None:
        """Running episodes at these bounds are given up, so their evaluations start over.

        Of what began together only what failed early would be known.
        """
        for bound in bounds.tolist():
            self._next = next_ticket
            self.moved(bound)

    def _decide(self, bound: int, scores: Sequence[float]) -> Verdict | None:
        config, early = self._configs[bound], None
        at = (config.narrow_at, config.widen_at)
        if config.decision == "sequential":
            known = (config.half_width, config.error, self._spreads[bound])
            early = sequential(scores[: config.buffer], *at, *known)
        return early or published(scores, config.buffer, *at)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "since": self.since.tolist(),
            "results": [[list(one) for one in held] for held in self._results],
            "spreads": [list(spread) for spread in self._spreads],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.since[:] = np.array(state["since"], dtype=np.int64)
        self._results = [[(int(t), float(s)) for t, s in held] for held in state["results"]]
        self._spreads = [Spread(*map(float, saved)) for saved in state["spreads"]]

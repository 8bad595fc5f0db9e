"""What a run came to: its clockwork and its figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .robot import Clock


@dataclass(frozen=True)
class RunReport:
    """What a run came to."""

    goals: int
    seconds: float
    cycles: int
    """executed; a late cycle makes the ones it overran fall out"""
    deadline_misses: int
    """control periods that had ended before their command, or without one, was sent"""
    interventions: int
    interventions_by_name: dict[str, int]
    drops: int
    state: str
    """in the end: "disarmed", "homing", "active", "hold" or "fault" """
    reason: str
    """of the last hold or fault, or why nothing began; empty if all went well"""
    cycle_ms_p50: float
    """from the beginning of a cycle to its command [ms]"""
    cycle_ms_p99: float
    cycle_ms_max: float
    policy_ms_p50: float
    """the part of it that the policy takes [ms]"""
    policy_ms_p99: float
    policy_ms_max: float

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self)


class Timings:
    """The clockwork of a run, and how long its parts took.

    Attributes:
        cycles: executed.
        number: of the control period that is running, from 0.
        elapsed: since the begin, at the end of the last cycle [s].
        last_ms: from the beginning of the last cycle to its command [ms].
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._cycle_ms = self._policy_ms = np.zeros(0)
        self.cycles = self.number = self._decisions = self._misses = 0
        self._begin = self._woke = 0.0
        self.elapsed = self.last_ms = 0.0

    def begin(self, total: int) -> None:
        """Now, for at most so many cycles."""
        self._cycle_ms, self._policy_ms = np.zeros(total), np.zeros(total)
        self._begin = self._woke = self._clock.now()

    def wait(self, number: int, period: float) -> None:
        """Until that period [s] since the begin; a cycle begins."""
        self.number = number
        self._clock.sleep_until(self._begin + number * period)
        self._woke = self._clock.now()

    def end_policy(self, began: float) -> None:
        """The policy has answered; it was asked at `began` [s]."""
        if self._decisions < len(self._policy_ms):
            self._policy_ms[self._decisions] = 1e3 * (self._clock.now() - began)
        self._decisions += 1

    def end_work(self) -> None:
        """The cycle's command is sent."""
        done = self._clock.now()
        self.elapsed, self.last_ms = done - self._begin, 1e3 * (done - self._woke)

    def end_cycle(self, k: int, period: float, total: int) -> int:
        """How many periods [s] ended during cycle k of `total`, counted as missed deadlines."""
        if self.cycles < len(self._cycle_ms):
            self._cycle_ms[self.cycles] = self.last_ms
        self.cycles += 1
        ended = max(0, int(self.elapsed / period) - k)
        self._misses += min(ended, total - k)
        return ended

    def finish(self) -> None:
        """The run is over."""
        self.elapsed = self._clock.now() - self._begin

    def report(self, **figures: Any) -> RunReport:
        """With the figures that are not about time."""
        cycle = _spread(self._cycle_ms[: self.cycles])
        policy = _spread(self._policy_ms[: self._decisions])
        return RunReport(
            seconds=round(self.elapsed, 3),
            cycles=self.cycles,
            deadline_misses=self._misses,
            cycle_ms_p50=cycle[0],
            cycle_ms_p99=cycle[1],
            cycle_ms_max=cycle[2],
            policy_ms_p50=policy[0],
            policy_ms_p99=policy[1],
            policy_ms_max=policy[2],
            **figures,
        )


def _spread(times: np.ndarray) -> tuple[float, float, float]:
    """Median, 99th percentile and maximum; zeros if there are none."""
    if not len(times):
        return 0.0, 0.0, 0.0
    p50, p99 = np.percentile(times, (50, 99))
    return round(float(p50), 3), round(float(p99), 3), round(float(times.max()), 3)

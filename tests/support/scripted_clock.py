"""A clock for controllers under test."""

from __future__ import annotations


class ScriptedClock:
    """Time passes only when somebody sleeps or a script says so."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def sleep_until(self, moment: float) -> None:
        self.time = max(self.time, moment)

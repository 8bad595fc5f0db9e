"""What a controller keeps an eye on beside its readings: the clock, and the object in the hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from .contract import Reach
from .safety import DEADLINE, Problem

LATE_HOLD = 3  # missed deadlines in a row
LATE_FAULT = 20  # in all, less PATIENCE for every one that is kept
PATIENCE = 0.25
BACK = 0.8  # an object that left the hand is back within this share of its reach


class DeadlineWatch:
    """Missed deadlines: some in a row hold the hand, very many, or for long more than one in five,
    are a fault."""

    def __init__(self) -> None:
        self._row, self._debt = 0, 0.0

    def note(self, missed: int) -> None:
        """A cycle is over that missed so many deadlines."""
        self._row = self._row + missed if missed else 0
        self._debt = max(0.0, self._debt + (missed or -PATIENCE))

    def check(self) -> list[Problem]:
        """What is wrong, if anything."""
        fault = self._debt >= LATE_FAULT
        return [Problem(DEADLINE, fault)] if fault or self._row >= LATE_HOLD else []


class ObjectWatch:
    """Whether the object is in the hand.

    Attributes:
        lost: it is out of reach.
    """

    def __init__(self, reach: Reach | None) -> None:
        """reach: of the contract; None for a policy without an object."""
        self._reach, self.lost = reach, False

    def look(self, inputs: Mapping[str, np.ndarray]) -> bool:
        """Whether it has just left the hand; inputs: name -> reading with a batch axis of one."""
        if (reach := self._reach) is None or reach.reading not in inputs:
            return False
        if self.lost:  # an object on the border is not lost and found in turns
            reach = replace(reach, radius=BACK * reach.radius)
        before, self.lost = self.lost, not reach.contains(inputs[reach.reading][0])
        return self.lost and not before

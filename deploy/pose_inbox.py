"""Poses that come over a network: their order, their age, and the frame they are in."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import numpy as np

from .pose import HAND_BASE, Calibration, ObjectPose

WINDOW = 10.0  # of the estimate of the sender's clock [s]
BACK = 1.0  # a datagram this much older than the last [s] is not merely late
_GAP = 1.0  # the most that a silence counts in the window [s]


class SentPose(NamedTuple):
    """A pose as a tracker sent it."""

    position: np.ndarray
    """(3,) [m]"""
    quaternion: np.ndarray
    """(4,) (w, x, y, z)"""
    time: float
    """[s] on the sender's clock"""
    frame: str
    seq: int | None = None
    """increases from pose to pose; None where the sender does not count"""


class SenderClock:
    """What to add to a sender's time to have ours, from when its messages arrive.

    arrival - sent = offset + delay, and delay >= 0, so the smallest difference in the window is
    nearest to the offset: the fastest message counts as one without delay, and every other is as
    much older as it took longer. The window lets clocks drift. It counts only time in which
    messages come: after a silence the old offset still shows that what comes then was held up.
    """

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._smallest: deque[tuple[float, float]] = deque()  # (time in the window, difference)
        self._flow, self._arrival = 0.0, -math.inf

    def offset(self, sent: float, arrival: float) -> float:
        """[s], after one more message; times in s, each on its own clock."""
        self._flow += min(arrival - self._arrival, _GAP)
        self._arrival = arrival
        difference = arrival - sent
        # what is older and larger can never be the smallest again
        while self._smallest and self._smallest[-1][1] >= difference:
            self._smallest.pop()
        self._smallest.append((self._flow, difference))
        while self._smallest[0][0] < self._flow - self._window:
            self._smallest.popleft()
        return self._smallest[0][1]


class PoseInbox:
    """The newest pose of one sender, and a count of what was not used.

    One thread puts in, others look at `latest`.

    Attributes:
        latest: newest pose in the frame of the hand's base, or None.
        received: messages, whatever became of them.
        late: older than one that had come already, or the same again.
        malformed: no pose, or one in an unknown frame.
        problem: why the last of the malformed ones was so.
        restarts: how often the sender's time or count began anew.
    """

    def __init__(self, transform: Calibration | None = None, latency: float = 0.0) -> None:
        """transform: of the frame that the sender may use beside the hand's; latency: [s] from the
        moment that a pose was so to the sender's time of it.
        """
        if not (math.isfinite(latency) and latency >= 0):
            raise ValueError(f"pose latency {latency}: expected 0 or more seconds")
        self._transform, self._latency = transform, latency
        self._clock = SenderClock()
        self._last: SentPose | None = None
        self._restarted: SentPose | None = None  # may be the first of a sender that began anew
        self.latest: ObjectPose | None = None
        self.received = self.late = self.malformed = self.restarts = 0
        self.problem: str | None = None

    def refuse(self, reason: str) -> None:
        """Count a message that is no pose."""
        self.received += 1
        self.malformed += 1
        self.problem = reason

    def put(self, sent: SentPose, arrival: float) -> None:
        """Take a pose that came at `arrival` [s] on our clock."""
        try:
            position, quaternion = self._in_hand(sent)
        except ValueError as error:
            self.refuse(str(error))
            return
        self.received += 1
        if not self._is_next(sent):
            self.late += 1
            return
        time = sent.time + self._clock.offset(sent.time, arrival) - self._latency
        self.latest = ObjectPose(position, quaternion, time)

    def _in_hand(self, sent: SentPose) -> tuple[np.ndarray, np.ndarray]:
        if sent.frame == HAND_BASE:
            return sent.position, sent.quaternion
        if self._transform is None:
            raise ValueError(f"frame {sent.frame!r}: expected {HAND_BASE!r}, without a calibration")
        if sent.frame != self._transform.frame:
            known = f"{HAND_BASE!r} or {self._transform.frame!r}"
            raise ValueError(f"frame {sent.frame!r}: expected {known}")
        return self._transform.to_hand(sent.position, sent.quaternion)

    def _is_next(self, sent: SentPose) -> bool:
        """Whether a pose follows the last one; keeps it if so."""
        last = self._last
        if last is None or (sent.time > last.time and _counts_on(last, sent)):
            self._last, self._restarted = sent, None
            return True
        if last.time - BACK <= sent.time <= last.time and not _counts_beyond(last, sent):
            return False
        # Time or count went back: one stray message, or a sender that began anew. The next tells.
        first, self._restarted = self._restarted, sent
        if first is None or not (sent.time > first.time and _counts_on(first, sent)):
            return False
        self._last, self._restarted = sent, None
        self._clock = SenderClock()
        self.restarts += 1
        return True


def _counts_on(before: SentPose, after: SentPose) -> bool:
    return before.seq is None or after.seq is None or after.seq > before.seq


def _counts_beyond(before: SentPose, after: SentPose) -> bool:
    return before.seq is not None and after.seq is not None and after.seq > before.seq

"""Order, age and frame of poses that come over a network, by hand arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from widen.deploy.pose import Calibration
from widen.deploy.pose_inbox import PoseInbox, SenderClock, SentPose

UPRIGHT = np.array([1.0, 0.0, 0.0, 0.0])


def sent(seq: int | None, moment: float, x: float = 0.0, frame: str = "hand_base") -> SentPose:
    return SentPose(np.array([x, 0, 0]), UPRIGHT, moment, frame, seq)


def age(inbox: PoseInbox, seq: int, moment: float, arrival: float) -> float:
    """Of the newest pose, when a message has come."""
    inbox.put(sent(seq, moment), arrival)
    assert inbox.latest is not None
    return arrival - inbox.latest.time


def test_a_late_message_is_known_to_be_old() -> None:
    inbox = PoseInbox(latency=0.02)
    # the sender's clock stands at 5 when ours stands at 1000; messages take 3 ms or longer
    assert age(inbox, 0, 5.00, 1000.003) == pytest.approx(0.02)
    assert age(inbox, 1, 5.05, 1000.053) == pytest.approx(0.02)
    assert age(inbox, 2, 5.10, 1000.353) == pytest.approx(0.27)
    assert age(inbox, 3, 5.35, 1000.354) == pytest.approx(0.021)
    # a faster one than ever shows that the others had a delay
    assert age(inbox, 4, 5.40, 1000.401) == pytest.approx(0.02)
    assert age(inbox, 5, 5.45, 1000.453) == pytest.approx(0.022)


def test_messages_that_a_silence_held_up_are_old_however_long_it_was() -> None:
    inbox = PoseInbox()
    for k in range(40):
        age(inbox, k, 0.05 * k, 7.0 + 0.05 * k)
    # a minute of them comes at once
    ages = [age(inbox, k, 0.05 * k, 69.0 + 1e-5 * k) for k in range(40, 1240)]
    np.testing.assert_allclose(ages, 62.0 - 0.05 * np.arange(40, 1240), atol=0.02)


def test_clocks_may_drift_apart() -> None:
    clock, errors = SenderClock(10.0), []
    rng, rate = np.random.default_rng(0), 1 + 1e-4  # a bad quartz
    for k in range(4000):
        arrival = 0.02 * k * rate + float(rng.exponential(0.004))
        errors.append(clock.offset(0.02 * k, arrival) - 0.02 * k * (rate - 1))
    # 0 would be exact; ten seconds of drift are a millisecond
    assert min(errors) >= -1.01e-3
    assert max(errors[500:]) < 1e-3
    assert len(clock._smallest) < 500


def test_order_and_restarts() -> None:
    inbox = PoseInbox()

    def put(seq: int, moment: float, arrival: float) -> float:
        inbox.put(sent(seq, moment, x=moment), arrival)
        assert inbox.latest is not None
        return float(inbox.latest.position[0])

    assert put(10, 50.0, 1.0) == 50.0
    assert put(12, 50.2, 1.2) == 50.2
    assert put(11, 50.1, 1.21) == 50.2  # out of order
    assert put(12, 50.2, 1.22) == 50.2  # the same again
    assert (inbox.late, inbox.restarts) == (2, 0)
    assert put(3, 41.0, 1.25) == 50.2  # a stray one from long ago
    assert put(13, 50.3, 1.3) == 50.3
    assert put(4, 41.1, 1.35) == 50.3  # and another: the stream went on between them
    assert inbox.restarts == 0
    assert put(14, 50.4, 1.4) == 50.4
    assert put(0, 2.0, 5.0) == 50.4  # a sender that began anew
    assert put(1, 2.1, 5.1) == 2.1
    assert inbox.restarts == 1
    assert inbox.latest is not None
    assert inbox.latest.time == pytest.approx(5.1)  # by the new sender's clock
    assert put(0, 2.3, 5.3) == 2.1  # anew, with the clock going on
    assert put(1, 2.4, 5.4) == 2.4
    assert put(2, 2.3, 5.5) == 2.4  # somebody set the clock back
    assert put(3, 2.4, 5.6) == 2.4
    assert inbox.restarts == 3
    assert inbox.received == 14


def test_messages_without_a_count_go_by_time() -> None:
    inbox = PoseInbox()
    for moment, arrival in ((10.0, 1.0), (10.1, 1.1), (10.05, 1.12), (3.0, 2.0), (3.1, 2.1)):
        inbox.put(sent(None, moment), arrival)
    assert (inbox.late, inbox.restarts) == (2, 1)


def test_frames() -> None:
    camera = Calibration("camera", np.array([0.0, 0, 0.5]), UPRIGHT)
    inbox = PoseInbox(camera)
    inbox.put(sent(0, 0.0, 0.1, "camera"), 1.0)
    assert inbox.latest is not None
    np.testing.assert_allclose(inbox.latest.position, [0.1, 0, 0.5])
    inbox.put(sent(1, 0.1, 0.2), 1.1)
    np.testing.assert_allclose(inbox.latest.position, [0.2, 0, 0])
    inbox.put(sent(2, 0.2, 0.3, "world"), 1.2)
    assert inbox.latest.position[0] == 0.2
    assert (inbox.malformed, inbox.problem) == (
        1,
        "frame 'world': expected 'hand_base' or 'camera'",
    )
    with pytest.raises(ValueError, match=r"latency -1\.0: expected 0 or more"):
        PoseInbox(latency=-1.0)

"""Object poses from ROS 1 or ROS 2 through a rosbridge: geometry_msgs PoseStamped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .pose import Calibration, ObjectPose, vector
from .pose_inbox import PoseInbox, SentPose
from .robot import Clock, MonotonicClock

ROS1_TYPE = "geometry_msgs/PoseStamped"
ROS2_TYPE = "geometry_msgs/msg/PoseStamped"
PATIENCE = 5.0  # for the first connection [s]
_RETRY = 2.0  # the longest time between two attempts to connect anew [s]


class RosPoseSource:
    """Subscribes to a topic; roslibpy's own thread takes in what comes, and connects anew.

    Attributes:
        inbox: counts of what was received and not used.
    """

    def __init__(
        self,
        host: str,
        port: int,
        topic: str,
        *,
        message_type: str = ROS1_TYPE,
        transform: Calibration | None = None,
        latency: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        """Does not connect yet.

        Args:
            host, port: of the rosbridge server.
            topic: of PoseStamped messages.
            message_type: `ROS1_TYPE` or `ROS2_TYPE`; a rosbridge knows its own only.
            transform: of the frame_id that messages may have beside the hand's.
            latency: [s] from the moment that a pose was so to the stamp in its header.
            clock: the robot's; None for the computer's.

        Raises:
            ValueError: roslibpy is not installed.
        """
        try:
            import roslibpy
        except ImportError:
            raise ValueError("--pose ros: needs roslibpy; pip install 'widen[ros]'") from None
        self._roslibpy: Any = roslibpy
        self.inbox = PoseInbox(transform, latency)
        self._host, self._port, self._name = host, port, topic
        self._type, self._clock = message_type, clock or MonotonicClock()
        self._ros: Any = None
        self._topic: Any = None

    def start(self) -> None:
        """Connect and subscribe; raises ValueError if no rosbridge answers."""
        if self._ros is not None:
            return
        try:
            self._ros = self._roslibpy.Ros(self._host, self._port)
            # left alone, the pauses between attempts to connect anew grow to an hour
            self._ros.factory.maxDelay = _RETRY
            self._ros.run(PATIENCE)
        except Exception as error:  # roslibpy's own exceptions changed their names over the years
            where = f"{self._host}:{self._port}"
            raise ValueError(
                f"--pose ros: no rosbridge answers at {where} within {PATIENCE:g} s ({error})"
            ) from None
        self._topic = self._roslibpy.Topic(self._ros, self._name, self._type)
        self._topic.subscribe(self._receive)

    def latest(self) -> ObjectPose | None:
        return self.inbox.latest

    def stop(self) -> None:
        # The thread stays, waiting: Twisted's reactor can be started once in a process only.
        topic, self._topic = self._topic, None
        ros, self._ros = self._ros, None
        if ros is None:
            return
        try:
            if topic is not None and ros.is_connected:
                topic.unsubscribe()
            if stop_trying := getattr(ros.factory, "stopTrying", None):
                ros.call_later(0.0, stop_trying)  # Twisted's objects are its own thread's
            ros.close()
        except Exception as error:  # a bridge that has gone must not keep the hand from stopping
            self.inbox.refuse(f"rosbridge: {error}")

    def _receive(self, message: Any) -> None:
        arrival = self._clock.now()
        try:
            sent = parse_message(message)
        except ValueError as error:
            self.inbox.refuse(str(error))
        else:
            self.inbox.put(sent, arrival)


def parse_message(message: Any) -> SentPose:
    """A PoseStamped as a rosbridge gives it, of either ROS; quaternions become (w, x, y, z).

    Raises:
        ValueError: it is none, or has no time stamp.
    """
    stamp = _item(message, "header", "stamp")
    whole = stamp["secs"] if "secs" in stamp else stamp.get("sec")
    part = stamp["nsecs"] if "nsecs" in stamp else stamp.get("nanosec")
    seconds, nanoseconds = vector([whole, part], 2, "header.stamp")
    if seconds == nanoseconds == 0:
        raise ValueError("header.stamp is 0: the tracker does not say when a pose was so")
    frame = _item(message, "header").get("frame_id")
    if not isinstance(frame, str):
        raise ValueError("header.frame_id: expected a name")
    place, turn = _item(message, "pose", "position"), _item(message, "pose", "orientation")
    position = vector([place.get(key) for key in "xyz"], 3, "pose.position")
    quaternion = vector([turn.get(key) for key in "wxyz"], 4, "pose.orientation")
    time = float(seconds + 1e-9 * nanoseconds)
    return SentPose(position, quaternion, time, frame.lstrip("/"))


def _item(message: Any, *path: str) -> Mapping[str, Any]:
    for i, key in enumerate(path):
        message = message.get(key) if isinstance(message, Mapping) else None
        if not isinstance(message, Mapping):
            raise ValueError(f"{'.'.join(path[: i + 1])} is missing; expected a PoseStamped")
    return message

"""Where the object is: poses from a tracker, as readings of a robot."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from .robot import Clock, Measurement, Robot

HAND_BASE = "hand_base"
NORM_ERROR = 0.05  # a quaternion whose norm is farther from 1 is no rotation
_CALIBRATION_KEYS = {"frame", "position", "quaternion"}


class ObjectPose(NamedTuple):
    """One pose of the object and when it was so."""

    position: np.ndarray
    """(3,) [m]"""
    quaternion: np.ndarray
    """(4,) unit quaternion (w, x, y, z)"""
    time: float
    """[s] on the controller's clock"""
    frame: str = HAND_BASE
    """in which position and quaternion are given"""


class PoseSource(Protocol):
    """A tracker of the object."""

    def start(self) -> None:
        """Begin to receive. Raises ValueError with one line where that cannot be."""
        ...

    def latest(self) -> ObjectPose | None:
        """The newest pose, None before the first; does not wait for one."""
        ...

    def stop(self) -> None:
        """End; safe to call several times, also when `start` failed."""
        ...


class TrackedRobot:
    """A robot together with a tracker of the object in its hand.

    `read` has "object_pos" and "object_quat" from the source, with the source's time stamps and in
    place of any that the robot gives itself. Everything else is the robot's own. A pose in another
    frame than the hand's base, or one whose numbers are no pose, is not used: the readings stay as
    they were, and so they age.

    Attributes:
        rejected: poses that were not used.
        rejection: why the last of them was not.
    """

    def __init__(self, robot: Robot, source: PoseSource) -> None:
        self._robot, self._source = robot, source
        self._readings: dict[str, Measurement] = {}
        self._seen: ObjectPose | None = None
        self.rejected = 0
        self.rejection: str | None = None

    def __getattr__(self, name: str) -> Any:
        # what a robot may have beside the protocol, such as disarm, goes straight through
        if name.startswith("__") or "_robot" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._robot, name)

    @property
    def joint_names(self) -> tuple[str, ...]:
        return self._robot.joint_names

    @property
    def clock(self) -> Clock:
        return self._robot.clock

    @property
    def drops(self) -> int:
        return self._robot.drops

    def start(self) -> None:
        self._source.start()
        self._robot.start()

    def read(self) -> dict[str, Measurement]:
        measured = dict(self._robot.read())
        for name in ("object_pos", "object_quat"):
            measured.pop(name, None)
        try:
            pose = self._source.latest()
            if pose is not None and pose is not self._seen:
                self._seen = pose
                self._readings = _readings(pose)
        except Exception as error:  # a user's source may raise anything, and the hand must go on
            self.rejected += 1
            self.rejection = " ".join(str(error).split()) or type(error).__name__
        return measured | self._readings

    def command(self, joint_target: np.ndarray) -> None:
        self._robot.command(joint_target)

    def stop(self) -> None:
        try:
            self._robot.stop()
        finally:
            self._source.stop()


def _readings(pose: ObjectPose) -> dict[str, Measurement]:
    """Raises ValueError for what is no pose of the hand's base."""
    if pose.frame != HAND_BASE:
        raise ValueError(f"pose in frame {pose.frame!r}, expected {HAND_BASE!r}")
    if not math.isfinite(pose.time):
        raise ValueError(f"pose of time {pose.time}")
    position = vector(pose.position, 3, "position")
    quaternion = unit(vector(pose.quaternion, 4, "quaternion"))
    return {
        "object_pos": Measurement(position.astype(np.float32), pose.time),
        "object_quat": Measurement(quaternion.astype(np.float32), pose.time),
    }


@dataclass(frozen=True)
class Calibration:
    """Where the frame of a tracker is: its pose in the frame of the hand's base.

    Attributes:
        frame: its name.
        position: (3,) of its origin [m].
        quaternion: (4,) unit quaternion (w, x, y, z).
    """

    frame: str
    position: np.ndarray
    quaternion: np.ndarray

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a JSON file {"frame": NAME, "position": [x, y, z], "quaternion": [w, x, y, z]}.

        Raises:
            ValueError: no such file, not JSON, or not these keys with such values.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
        except ValueError as error:  # also what is not UTF-8
            raise ValueError(f"{path}: not JSON: {error}") from None
        try:
            return cls.from_json(data)
        except ValueError as error:
            raise ValueError(f"{path}: calibration: {error}") from None

    @classmethod
    def from_json(cls, data: Any) -> Calibration:
        """Raises ValueError when something is missing, unknown, or of the wrong kind."""
        if not isinstance(data, Mapping):
            raise ValueError(f"expected a JSON object, got {type(data).__name__}")
        if odd := sorted(_CALIBRATION_KEYS ^ set(data)):
            what = "unknown" if odd[0] in data else "missing"
            raise ValueError(f"{odd[0]!r} is {what}; expected frame, position, quaternion")
        frame = data["frame"]
        if not isinstance(frame, str) or not frame or frame == HAND_BASE:
            raise ValueError(f"frame {frame!r}: expected the name of the tracker's frame")
        position = vector(data["position"], 3, "position")
        return cls(frame, position, unit(vector(data["quaternion"], 4, "quaternion")))

    def to_hand(
        self, position: np.ndarray, quaternion: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """A pose given in this frame, in the frame of the hand's base: P + R p and Q q."""
        turned = rotate(self.quaternion, position)
        return self.position + turned, multiply(self.quaternion, quaternion)


def vector(value: Any, size: int, name: str) -> np.ndarray:
    """`size` finite numbers as float64; raises ValueError for anything else."""
    if isinstance(value, (list, tuple)):
        numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in value)
    else:
        numbers = isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
    if not numbers or np.shape(value) != (size,):
        raise ValueError(f"{name}: expected {size} numbers")
    try:
        array = np.array(value, np.float64)
    except OverflowError:
        array = np.full(size, np.inf)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: not finite")
    return array


def unit(quaternion: np.ndarray) -> np.ndarray:
    """The rotation of a quaternion whose norm is nearly 1; raises ValueError for others."""
    norm = float(np.linalg.norm(quaternion))
    if not abs(norm - 1.0) <= NORM_ERROR:
        raise ValueError(f"quaternion: norm {norm:.3g}, expected 1")
    return quaternion / norm


def multiply(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Hamilton product p q of (w, x, y, z): rotate by q, then by p."""
    w = p[0] * q[0] - p[1:] @ q[1:]
    return np.array([w, *(p[0] * q[1:] + q[0] * p[1:] + np.cross(p[1:], q[1:]))])


def rotate(quaternion: np.ndarray, point: np.ndarray) -> np.ndarray:
    """A point (3,) turned by a unit quaternion."""
    axis = quaternion[1:]
    across = 2.0 * np.cross(axis, point)
    return point + quaternion[0] * across + np.cross(axis, across)


def make_pose_source(
    text: str,
    *,
    calibration: str | Path | None = None,
    latency: float = 0.0,
    clock: Clock | None = None,
) -> PoseSource:
    """The source that a command line names.

    Args:
        text: "udp", "udp:PORT" or "udp:HOST:PORT", where to listen; "ros:HOST:PORT/TOPIC" or
            "ros2:...", the rosbridge to ask. HOST [::1] for IPv6.
        calibration: file of `Calibration.load`, if the tracker's frame is not the hand's.
        latency: [s] from the moment that a pose was so to the time that the sender stamps on it.
        clock: the robot's; None for the computer's.

    Raises:
        ValueError: of another form, or as `Calibration.load`.
    """
    kind, _, rest = text.partition(":")
    if kind == "udp":
        from .pose_udp import HOST, PORT, UdpPoseSource

        host, _, port = rest.rpartition(":")
        where = host or HOST, _port(text, port) if port else PORT
        if text.endswith(":"):
            raise ValueError(f"--pose {text}: expected udp, udp:PORT or udp:HOST:PORT")
        frame = Calibration.load(calibration) if calibration is not None else None
        return UdpPoseSource(*where, transform=frame, latency=latency, clock=clock)
    if kind in ("ros", "ros2"):
        from .pose_ros import ROS1_TYPE, ROS2_TYPE, RosPoseSource

        address, slash, topic = rest.partition("/")
        host, colon, port = address.rpartition(":")
        if not (slash and topic and colon and host):
            raise ValueError(f"--pose {text}: expected {kind}:HOST:PORT/TOPIC")
        frame = Calibration.load(calibration) if calibration is not None else None
        return RosPoseSource(
            host,
            _port(text, port),
            f"/{topic}",
            message_type=ROS2_TYPE if kind == "ros2" else ROS1_TYPE,
            transform=frame,
            latency=latency,
            clock=clock,
        )
    raise ValueError(
        f"--pose {text}: expected udp[[:HOST]:PORT], ros:HOST:PORT/TOPIC or ros2:HOST:PORT/TOPIC"
    )


def _port(text: str, port: str) -> int:
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"--pose {text}: port {port!r}: expected 1 to 65535")
    return int(port)

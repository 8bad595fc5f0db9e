"""A camera that is not there: object poses at its rate, late, noisy, and sometimes missing."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .pose import HAND_BASE, ObjectPose, multiply, unit
from .robot import Clock, Robot

JUMP = 0.05  # what an object does not move between two looks at it [m]


@dataclass(frozen=True)
class CameraModel:
    """What a tracker does to the truth; the defaults are a plausible camera with markers."""

    rate_hz: float = 60.0
    """pictures per second"""
    latency_s: float = 0.03
    """from a picture to its pose, at least [s]"""
    jitter_s: float = 0.01
    """more than that, uniform from 0 to this [s]"""
    dropout: float = 0.02
    """share of pictures, in the long run, in which the object is not found"""
    burst: float = 3.0
    """how many in a row that are, in the mean"""
    position_noise: float = 0.001
    """standard deviation along each axis [m]"""
    rotation_noise: float = 0.01
    """standard deviation about each axis [rad]"""

    def __post_init__(self) -> None:
        """Raises ValueError for what no camera can be."""
        for name, least, strict in (
            ("rate_hz", 0.0, True),
            ("latency_s", 0.0, False),
            ("jitter_s", 0.0, False),
            ("dropout", 0.0, False),
            ("burst", 1.0, False),
            ("position_noise", 0.0, False),
            ("rotation_noise", 0.0, False),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least and not (strict and value == least)):
                bound = "more than" if strict else "at least"
                raise ValueError(f"camera: {name} {value}: expected {bound} {least:g}")
        if not self.dropout < 1.0 or self.burst * (1.0 - self.dropout) < self.dropout:
            raise ValueError(
                f"camera: dropout {self.dropout}: too much for bursts of {self.burst:g}"
            )


class SimPoseSource:
    """A `PoseSource` that looks at a true pose through a `CameraModel`.

    Pictures are taken at multiples of the camera's period from `start` on. The truth is asked for
    whenever somebody asks for the latest pose; what a picture shows is on the straight line between
    two such moments, so ask at least as often as the object changes its way. Pictures are lost by a
    chain of two states (Gilbert 1960): from seen to lost with probability
    dropout / (burst (1 - dropout)), back with 1 / burst. There is no thread, so that under a
    scripted clock the same seed gives the same poses.
    """

    def __init__(
        self,
        truth: Callable[[], ObjectPose | None],
        clock: Clock,
        camera: CameraModel | None = None,
        seed: int = 0,
    ) -> None:
        """A camera; None for the default one.

        Args:
            truth: the pose at this moment and its time on `clock`; None where there is none.
            clock: the robot's.
            camera: what it does to the truth.
            seed: of all that is random.
        """
        self._truth, self._clock = truth, clock
        self._camera = camera or CameraModel()
        self._seed = seed
        self._restart()

    def start(self) -> None:
        self._restart()

    def latest(self) -> ObjectPose | None:
        after = self._truth()
        if after is not None:
            self._take_pictures(after)
        now = self._clock.now()
        ready = [item for item in self._under_way if item[0] <= now]
        for item in ready:
            self._under_way.remove(item)
            # a picture that was overtaken by a newer one is of no use any more
            if self._latest is None or item[1].time > self._latest.time:
                self._latest = item[1]
        return self._latest

    def stop(self) -> None:
        """There is nothing to end."""

    def _restart(self) -> None:
        self._rng = np.random.default_rng(self._seed)
        self._begin, self._pictures = self._clock.now(), 0
        self._lost = False
        self._before: ObjectPose | None = None
        self._under_way: deque[tuple[float, ObjectPose]] = deque()  # (moment it arrives, pose)
        self._latest: ObjectPose | None = None

    def _take_pictures(self, after: ObjectPose) -> None:
        """All that fell due up to a true pose."""
        before = self._before or after
        # a rounding error is not a picture less
        due = math.floor((after.time - self._begin) * self._camera.rate_hz + 1e-6) + 1
        while self._pictures < due:
            moment = self._begin + self._pictures / self._camera.rate_hz
            self._pictures += 1
            self._picture(between(before, after, moment), moment)
        self._before = after

    def _picture(self, pose: ObjectPose, moment: float) -> None:
        camera, rng = self._camera, self._rng
        # every picture draws the same numbers, whatever becomes of it
        chance, late = rng.random(2)
        shift, turn = rng.normal(size=(2, 3))
        if self._lost:
            self._lost = chance >= 1.0 / camera.burst
        else:
            self._lost = chance * camera.burst * (1.0 - camera.dropout) < camera.dropout
        if self._lost:
            return
        position = pose.position + camera.position_noise * shift
        quaternion = multiply(_rotation(camera.rotation_noise * turn), pose.quaternion)
        arrives = moment + camera.latency_s + camera.jitter_s * late
        self._under_way.append((arrives, ObjectPose(position, quaternion, moment)))


def object_of(robot: Robot) -> Callable[[], ObjectPose | None]:
    """The true pose of a simulated robot's object, for `SimPoseSource`.

    TrackedRobot(robot, SimPoseSource(object_of(robot), robot.clock)) is the robot as a camera
    sees it.
    """

    def truth() -> ObjectPose | None:
        measured = robot.read()
        if "object_pos" not in measured or "object_quat" not in measured:
            return None
        position, quaternion = measured["object_pos"], measured["object_quat"]
        values = np.array(position.value, np.float64), np.array(quaternion.value, np.float64)
        return ObjectPose(*values, position.time)

    return truth


def between(before: ObjectPose, after: ObjectPose, moment: float) -> ObjectPose:
    """The pose at a moment between two, or the later one where the object was put elsewhere."""
    span = after.time - before.time
    gap = float(np.linalg.norm(after.position - before.position))
    if span <= 0.0 or gap > JUMP:
        return after
    share = min(1.0, max(0.0, (moment - before.time) / span))
    position = before.position + share * (after.position - before.position)
    end = after.quaternion if before.quaternion @ after.quaternion >= 0 else -after.quaternion
    # the chord instead of the arc: 0.3 degrees off at most where the object turns by 60
    quaternion = before.quaternion + share * (end - before.quaternion)
    return ObjectPose(position, quaternion / np.linalg.norm(quaternion), moment, HAND_BASE)


def _rotation(vector: np.ndarray) -> np.ndarray:
    """Unit quaternion of a rotation vector (3,) [rad]."""
    angle = float(np.linalg.norm(vector))
    if angle == 0.0:
        return np.array([1.0, 0.0, 0.0, 0.0])
    return unit(np.array([math.cos(0.5 * angle), *(math.sin(0.5 * angle) / angle * vector)]))

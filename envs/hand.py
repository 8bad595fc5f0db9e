"""A hand is data: an MJCF file and a record of what the model alone does not say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Hand:
    """Names and poses of one hand model. All tuples of joints are in actuator order.

    Attributes:
        name: as typed in a config, for example "leap".
        summary: one line for `widen list hands`.
        mjcf: path of the model file.
        joints: joint names in actuator order.
        actuators: actuator names, same order.
        fingertips: site names, thumb last.
        home: joint positions [rad] of the pose in which tasks begin.
        tilt: rotation [rad] of the hand base about its y axis, fingers lower. The simulation's
            world frame is the hand base; the tilt turns gravity.
        nest: (x, y, z) [m], hand base: where an object's centre rests in the palm at home.
    """

    name: str
    summary: str
    mjcf: Path
    joints: tuple[str, ...]
    actuators: tuple[str, ...]
    fingertips: tuple[str, ...]
    home: tuple[float, ...]
    tilt: float
    nest: tuple[float, float, float]

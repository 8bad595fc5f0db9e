"""What goes into a policy and what comes out: names, shapes, units, frames.

numpy only. A robot computer imports this module and has neither torch nor mujoco.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Source = Literal["robot", "object", "goal"]


@dataclass(frozen=True)
class Reading:
    """One named measurement that a real robot supplies in every control period.

    Attributes:
        name: key of the array, for example "joint_pos".
        shape: shape of one reading without the batch axis.
        unit: "rad", "m" or "1".
        frame: "joint" (actuator order) or "hand_base" (x along the fingers, z out of the palm).
        source: who measures it: the robot's encoders, an object tracker, or whoever sets goals.
    """

    name: str
    shape: tuple[int, ...]
    unit: str
    frame: str
    source: Source

    def to_json(self) -> dict[str, Any]:
        """A plain dict for the policy contract."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Reading:
        """Inverse of `to_json`; raises KeyError or TypeError on a malformed dict."""
        return cls(**{**data, "shape": tuple(int(n) for n in data["shape"])})


def joint_pos(num_joints: int) -> Reading:
    """Measured joint positions [rad], in actuator order."""
    return Reading("joint_pos", (num_joints,), "rad", "joint", "robot")


OBJECT_POS = Reading("object_pos", (3,), "m", "hand_base", "object")
OBJECT_QUAT = Reading("object_quat", (4,), "1", "hand_base", "object")
GOAL_QUAT = Reading("goal_quat", (4,), "1", "hand_base", "goal")

"""What a tracker reports of an object's pose: marker offset, delay, slow, lost and frozen frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from widen.envs.rotations import quat_from_rotvec, quat_mul
from widen.envs.rows import merge, put

from .delay import Delay
from .parameter import Plant

FREEZE_SECONDS = 1.0
"""How long a freeze lasts, as in [D] arXiv 1808.00177."""

POSITION, ROTATION = slice(0, 3), slice(3, 7)
"""Columns of a pose (N, 7): position [m] and unit quaternion."""


class Tracker:
    """Reports the last frame that it has captured of an object's pose.

    A frame is made as follows:

    1. the object's pose of `object_delay` control steps ago. Between two control steps positions
       are interpolated linearly and quaternions by normalised interpolation along the shorter way;
    2. the position of the marker on the object then, p + R(q) m. The offset m, in the object's own
       frame, lasts an episode and turns with the object. The rotation is the object's;
    3. the errors of the position, added in the hand's frame, and of the rotation, which turns the
       reported rotation and leaves the position alone: the two are measured apart.

    Whether it is captured is decided for every control step:

    - one is due every `object_refresh` control steps, or in each one, counted from the episode's
      start;
    - of the frames that are due, each is lost with the probability `object_dropout`;
    - a freeze begins in a control step of dt seconds with the probability 1 - exp(-rate dt), for
      the rate `object_freeze`, and all frames due within `FREEZE_SECONDS` from then are lost. The
      share of lost frames is thus 1 - exp(-rate FREEZE_SECONDS); freezes that overlap make a
      longer one.

    Else the last frame is repeated, errors and all. A lost frame is not made up for: the next
    comes when the next is due. The first of an episode is always captured, and shows an object
    that has been where it is for ever.

    Args:
        most: largest value of every parameter that varies, by name; sizes the queue.
        plant: the simulation.

    Attributes:
        num_chances: standard normal samples that every environment needs in every control step.
    """

    def __init__(self, most: Mapping[str, float], plant: Plant) -> None:
        self._device = device = plant.generator.device
        self._control_dt = plant.control_dt
        self._freeze_steps = max(1, round(FREEZE_SECONDS / plant.control_dt))
        self._delay: Delay | None = None
        if "object_delay" in most:
            self._delay = Delay(most["object_delay"], plant.num_envs, 7, device)
        self._losses = [name for name in ("object_dropout", "object_freeze") if name in most]
        self.num_chances = len(self._losses)
        widths: dict[str, int] = {}
        if "object_refresh" in most:
            widths["period"] = 1
        if self._losses:
            widths["odds"] = len(self._losses)
        if widths:
            # control steps since a frame was due, and until a freeze is over: negative long after
            widths |= {"clocks": 2, "frame": 7}
        self._tensors = {
            name: torch.zeros(plant.num_envs, width, device=device)
            for name, width in widths.items()
        }

    def begin(self, which: Tensor, values: Mapping[str, Tensor]) -> None:
        """New episodes of environments `which` have these values (K or N,) by parameter."""
        if self._delay is not None:
            self._delay.begin(which, values["object_delay"])
        if "period" in self._tensors:
            put(self._tensors["period"], which, values["object_refresh"][:, None])
        if self._losses:
            probabilities = [self._probability(name, values[name]) for name in self._losses]
            # a standard normal sample lies below this with the probability that is wanted
            put(self._tensors["odds"], which, torch.special.ndtri(torch.stack(probabilities, 1)))

    def _probability(self, name: str, value: Tensor) -> Tensor:
        """Of an event in a control step; object_freeze is a rate."""
        return -torch.expm1(-value * self._control_dt) if name == "object_freeze" else value

    def observe(self, pose: Tensor, errors: Mapping[str, Tensor], chances: Tensor | None) -> Tensor:
        """The reported pose (N, 7), one control step after the last.

        Args:
            pose: (N, 7), true.
            errors: (N, 3) each, of those that there are: "object_pos" [m], "object_rot", a
                rotation vector [rad], and "object_marker", in the object's frame [m].
            chances: (N, num_chances) standard normal samples, or None where it needs none.
        """
        if self._delay is not None:
            pose = self._delayed(self._delay, pose)
        frame = _measured(pose, errors)
        if "frame" not in self._tensors:
            return frame
        captured = self._captured(chances)
        self._tensors["frame"] = torch.where(captured, frame, self._tensors["frame"])
        return self._tensors["frame"]

    def observe_reset(self, pose: Tensor, errors: Mapping[str, Tensor], which: Tensor) -> Tensor:
        """As `observe` for environments `which`, whose object has been where it is for ever."""
        if self._delay is not None:
            self._delay.fill(which, pose)
        frame = _measured(pose, errors)
        if "frame" in self._tensors:
            put(self._tensors["clocks"], which, 0.0)
            # a copy, because the old frame was handed out
            self._tensors["frame"] = merge(self._tensors["frame"], which, frame)
        return frame

    @staticmethod
    def _delayed(delay: Delay, pose: Tensor) -> Tensor:
        # q and -q are the same rotation: on the last one's side, so that sums lie between them
        quat = pose[:, ROTATION]
        apart = (quat * delay.last[:, ROTATION]).sum(-1, keepdim=True) < 0
        pose = delay.push(torch.cat((pose[:, POSITION], torch.where(apart, -quat, quat)), -1))
        quat = torch.nn.functional.normalize(pose[:, ROTATION], dim=-1)
        return torch.cat((pose[:, POSITION], quat), -1)

    def _captured(self, chances: Tensor | None) -> Tensor:
        """(N, 1) bool: a frame is due in this control step and not lost."""
        tensors, lost = self._tensors, None
        age, frozen = tensors["clocks"].split(1, 1)
        if chances is not None:
            happens = dict(zip(self._losses, (chances < tensors["odds"]).split(1, 1), strict=True))
            lost = happens.get("object_dropout")
            if "object_freeze" in happens:
                frozen -= 1.0
                frozen.masked_fill_(happens["object_freeze"], self._freeze_steps)
                lost = frozen > 0 if lost is None else lost | (frozen > 0)
        if "period" not in tensors:
            assert lost is not None
            return ~lost
        age += 1.0
        due = age >= tensors["period"]
        age -= tensors["period"] * due
        return due if lost is None else due & ~lost

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {name: value.clone() for name, value in self._tensors.items()}
        if self._delay is not None:
            state["delay"] = self._delay.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # new tensors: the old frame was handed out
        for name in self._tensors:
            self._tensors[name] = state[name].to(self._device).clone()
        if self._delay is not None:
            self._delay.load_state_dict(state["delay"])


def _measured(pose: Tensor, errors: Mapping[str, Tensor]) -> Tensor:
    """A true pose (rows, 7) with marker and errors."""
    position, quat = pose[:, POSITION], pose[:, ROTATION]
    if "object_marker" in errors:
        position = position + rotate(quat, errors["object_marker"])
    if "object_pos" in errors:
        position = position + errors["object_pos"]
    if "object_rot" in errors:
        quat = quat_mul(quat_from_rotvec(errors["object_rot"]), quat)
    return torch.cat((position, quat), -1)


def rotate(quat: Tensor, vector: Tensor) -> Tensor:
    """R(q) v for unit quaternions (N, 4) and vectors (N, 3): v + w t + u x t with t = 2 u x v."""
    real, imaginary = quat[:, :1], quat[:, 1:]
    twice = 2.0 * torch.linalg.cross(imaginary, vector)
    return vector + real * twice + torch.linalg.cross(imaginary, twice)

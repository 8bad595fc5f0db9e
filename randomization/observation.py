"""What happens between the true readings and the policy: offsets, noise, delay, slow frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from widen.envs.perturbation import Readings
from widen.envs.rotations import quat_from_rotvec, quat_mul
from widen.envs.rows import count, merge, put, take

from .parameter import Plant, effect
from .queues import History

# ruff format would give every argument a line and hide the table
# fmt: off
OBSERVATION = (
    effect("observation", "joint_bias", "rad", 0.15, 0.003,
            "std of each joint reading's offset, new in every episode", "[D] zero offsets N(0, .15)"),
    effect("observation", "joint_noise", "rad", 0.15, 0.002,
            "std of noise on joint readings, new in every step", "[P] .05, [X] found .12"),
    effect("observation", "object_pos_bias", "m", 0.03, 0.0005,
            "std of the object position's offset, new in every episode", "[D] .005"),
    effect("observation", "object_pos_noise", "m", 0.03, 0.0005,
            "std of noise on the object's position, new in every frame", "[D] .001, [P] .02"),
    effect("observation", "object_rot_bias", "rad", 0.4, 0.006,
            "std about each axis of the object rotation's offset, new in every episode", "[D] .1"),
    effect("observation", "object_rot_noise", "rad", 0.4, 0.006,
            "std about each axis of noise on the object's rotation, new in every frame",
            "[D] .1, [P] .1"),
    effect("observation", "object_delay", "control steps", 3.0, 0.05,
            "age of the object's pose when it is reported", "[X] late with probability up to .47"),
    effect("observation", "object_refresh", "control steps", 6.0, 0.1,
            "time from one frame of the object tracker to the next", "[X] found 6", 1.0),
)
# fmt: on

POSITION, ROTATION = slice(0, 3), slice(3, 7)
"""Columns of an object's pose (N, 7): object_pos and object_quat."""


class Observation:
    """Effects of the "observation" parameters. One whose most value is not given costs nothing.

    Joint readings get an offset and noise. The object's pose comes from a tracker: it captures a
    frame every `object_refresh` control steps, the frame shows the pose of `object_delay` control
    steps ago with an offset and noise, and it is repeated until the next. Between two control
    steps positions are interpolated linearly and quaternions by normalised interpolation along
    the shorter way. A rotation error is the rotation by a vector whose three components have the
    stated standard deviation. Every other reading, goals included, passes unchanged.

    Args:
        most: largest value of every parameter that varies, by name; sizes the queues.
        plant: the simulation.
    """

    def __init__(self, most: Mapping[str, float], plant: Plant) -> None:
        self._generator = generator = plant.generator
        num_envs, num_joints = plant.num_envs, plant.num_joints
        self._num_envs = num_envs
        self._tracks = any(name.startswith("object_") for name in most)
        # the errors of everything that is measured are drawn at once, side by side
        widths = {"joint": num_joints, "object_pos": 3, "object_rot": 3}
        self._erring = [name for name in widths if {f"{name}_bias", f"{name}_noise"} & most.keys()]
        self._columns: dict[str, slice] = {}
        for name in self._erring:
            start = self._width
            self._columns[name] = slice(start, start + widths[name])
        owner = [i for i, name in enumerate(self._erring) for _ in range(widths[name])]
        self._owner = torch.tensor(owner, dtype=torch.long, device=generator.device)
        self._tensors = {
            kind: self._zeros(self._width)  # bias: the episode's sample; noise: its deviation
            for kind in ("bias", "noise")
            if any(name.endswith(kind) for name in most)
        }
        self._history: History | None = None
        if "object_delay" in most:
            self._tensors["object_delay"] = self._zeros(1)
            length = int(most["object_delay"]) + 2
            self._history = History(length, num_envs, 7, generator.device)
        if "object_refresh" in most:
            for name, width in (("object_refresh", 1), ("age", 1), ("frame", 7)):
                self._tensors[name] = self._zeros(width)

    @property
    def _width(self) -> int:
        return sum(columns.stop - columns.start for columns in self._columns.values())

    def begin(self, which: Tensor, values: Mapping[str, Tensor]) -> None:
        """New episodes of environments `which` have these values (K or N,) by parameter."""
        if "bias" in self._tensors:
            sample = self._normal(count(which), self._width)
            put(self._tensors["bias"], which, sample * self._deviations("bias", values))
        if "noise" in self._tensors:
            put(self._tensors["noise"], which, self._deviations("noise", values))
        for name in ("object_delay", "object_refresh"):
            if name in self._tensors:
                put(self._tensors[name], which, values[name][:, None])

    def _deviations(self, kind: str, values: Mapping[str, Tensor]) -> Tensor:
        """Standard deviation (K, width) of every component's bias or noise."""
        none = torch.zeros_like(next(iter(values.values())))
        drawn = [values.get(f"{name}_{kind}", none) for name in self._erring]
        return torch.stack(drawn, -1).float().index_select(1, self._owner)

    def observe(self, readings: Readings) -> Readings:
        """What the sensors report of true readings (N, ...) one control step after the last."""
        reported = dict(readings)
        errors = self._errors(None)
        if "joint" in errors and "joint_pos" in readings:
            reported["joint_pos"] = readings["joint_pos"] + errors["joint"]
        if not self._tracks or "object_pos" not in readings:
            return reported
        frame = self._disturb(self._delayed(_pose(readings)), errors)
        if "age" in self._tensors:
            frame = torch.where(self._frame_due(), frame, self._tensors["frame"])
            self._tensors["frame"] = frame
        return {**reported, **_parts(frame)}

    def observe_reset(self, readings: Readings, which: Tensor) -> Readings:
        """As `observe` for environments `which`, whose object has been where it is for ever."""
        reported = dict(readings)
        errors = self._errors(which)
        if "joint" in errors and "joint_pos" in readings:
            reported["joint_pos"] = readings["joint_pos"] + errors["joint"]
        if not self._tracks or "object_pos" not in readings:
            return reported
        pose = _pose(readings)
        if self._history is not None:
            self._history.fill(which, pose)
        frame = self._disturb(pose, errors)
        if "age" in self._tensors:
            put(self._tensors["age"], which, 0.0)
            # a copy, because the old frame was handed out
            self._tensors["frame"] = merge(self._tensors["frame"], which, frame)
        return {**reported, **_parts(frame)}

    def _errors(self, which: Tensor | None) -> dict[str, Tensor]:
        """Offset and noise by what is measured, of some environments or, for None, of all."""
        rows = count(which) if which is not None else self._num_envs
        noise, bias = (self._tensors.get(kind) for kind in ("noise", "bias"))
        if which is not None:
            noise = None if noise is None else take(noise, which)
            bias = None if bias is None else take(bias, which)
        error = bias
        if noise is not None:
            error = noise * self._normal(rows, self._width)
            error = error if bias is None else error + bias
        if error is None:
            return {}
        return {name: error[:, columns] for name, columns in self._columns.items()}

    def _frame_due(self) -> Tensor:
        """(N, 1) bool: the tracker captures a frame in this control step."""
        age, period = self._tensors["age"], self._tensors["object_refresh"]
        age += 1.0
        due = age >= period
        age -= period * due
        return due

    def _delayed(self, pose: Tensor) -> Tensor:
        if self._history is None:
            return pose
        self._history.push(pose)
        delay = self._tensors["object_delay"]
        whole = delay.long()
        newer, older = self._history.past(torch.cat((whole, whole + 1), 1)).unbind(1)
        # q and -q are the same rotation: take the one on newer's side
        apart = (newer[:, ROTATION] * older[:, ROTATION]).sum(-1, keepdim=True) < 0
        older[:, ROTATION] *= 1.0 - 2.0 * apart
        pose = torch.lerp(newer, older, delay - whole)
        quat = torch.nn.functional.normalize(pose[:, ROTATION], dim=-1)
        return torch.cat((pose[:, POSITION], quat), -1)

    @staticmethod
    def _disturb(pose: Tensor, errors: dict[str, Tensor]) -> Tensor:
        position, quat = pose[:, POSITION], pose[:, ROTATION]
        if "object_pos" in errors:
            position = position + errors["object_pos"]
        if "object_rot" in errors:
            quat = quat_mul(quat_from_rotvec(errors["object_rot"]), quat)
        return torch.cat((position, quat), -1)

    def _zeros(self, width: int) -> Tensor:
        return torch.zeros(self._num_envs, width, device=self._generator.device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, device=self._generator.device)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {name: value.clone() for name, value in self._tensors.items()}
        if self._history is not None:
            state["history"] = self._history.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self._tensors.items():
            self._tensors[name] = state[name].to(value.device).clone()
        if self._history is not None:
            self._history.load_state_dict(state["history"])


def _pose(readings: Readings) -> Tensor:
    return torch.cat((readings["object_pos"], readings["object_quat"]), -1)


def _parts(pose: Tensor) -> Readings:
    return {"object_pos": pose[:, POSITION], "object_quat": pose[:, ROTATION]}

"""What happens between the true readings and the policy: offsets, noise, delay, slow frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from widen.envs.perturbation import Readings
from widen.envs.rotations import quat_from_rotvec, quat_mul

from .queues import History

POSE = {"object_pos": 3, "object_quat": 4}
"""Readings of the object tracker and their widths."""


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
        num_envs: number of environments N.
        num_joints: number of actuators nu.
        generator: draws every sample.
    """

    def __init__(
        self, most: Mapping[str, float], num_envs: int, num_joints: int, generator: torch.Generator
    ) -> None:
        self._generator = generator
        self._num_envs = num_envs
        self._widths = {"joint": num_joints, "object_pos": 3, "object_rot": 3}
        # one row per environment: the drawn value, or for a bias the sample of the episode
        self._tensors = {
            name: self._zeros(self._widths[name.removesuffix("_bias")] if "bias" in name else 1)
            for name in most
        }
        self._history: dict[str, History] = {}
        if "object_delay" in most:
            length = int(most["object_delay"]) + 2
            self._history = {
                name: History(length, num_envs, width, generator.device)
                for name, width in POSE.items()
            }
        if "object_refresh" in most:
            self._tensors["age"] = self._zeros(1)
            for name, width in POSE.items():
                self._tensors[f"{name}_frame"] = self._zeros(width)

    def begin(self, env_ids: Tensor, values: Mapping[str, Tensor]) -> None:
        """New episodes of environments (K,) have these values (K,) by parameter."""
        for name, value in values.items():
            column = value.float()[:, None]
            if name.endswith("_bias"):
                width = self._tensors[name].shape[1]
                self._tensors[name][env_ids] = column * self._normal(len(env_ids), width)
            else:
                self._tensors[name][env_ids] = column

    def observe(self, readings: Readings) -> Readings:
        """What the sensors report of true readings (N, ...) one control step after the last."""
        reported = dict(readings)
        if "joint_pos" in readings:
            reported["joint_pos"] = self._disturb("joint", readings["joint_pos"])
        due = self._next_frame()
        for name in POSE:
            if name not in readings:
                continue
            frame = self._disturb(name, self._delayed(name, readings[name]))
            if due is not None:
                frame = torch.where(due, frame, self._tensors[f"{name}_frame"])
                self._tensors[f"{name}_frame"] = frame
            reported[name] = frame
        return reported

    def observe_reset(self, readings: Readings, env_ids: Tensor) -> Readings:
        """As `observe` for environments (K,) whose object has been where it is for ever."""
        reported = dict(readings)
        if "joint_pos" in readings:
            reported["joint_pos"] = self._disturb("joint", readings["joint_pos"], env_ids)
        if "object_refresh" in self._tensors:
            self._tensors["age"][env_ids] = 0.0
        for name in POSE:
            if name not in readings:
                continue
            if self._history:
                self._history[name].fill(env_ids, readings[name])
            frame = self._disturb(name, readings[name], env_ids)
            if "object_refresh" in self._tensors:
                # a copy, because the old frame was handed out
                old = self._tensors[f"{name}_frame"]
                self._tensors[f"{name}_frame"] = old.index_put((env_ids,), frame)
            reported[name] = frame
        return reported

    def _next_frame(self) -> Tensor | None:
        """(N, 1) bool: the tracker captures a frame in this control step."""
        if "object_refresh" not in self._tensors:
            return None
        age, period = self._tensors["age"], self._tensors["object_refresh"]
        age += 1.0
        due = age >= period
        age -= period * due
        return due

    def _delayed(self, name: str, true: Tensor) -> Tensor:
        if not self._history:
            return true
        history = self._history[name]
        history.push(true)
        delay = self._tensors["object_delay"][:, 0]
        whole = delay.long()
        late = (delay - whole)[:, None]
        newer, older = history.past(whole), history.past(whole + 1)
        if name != "object_quat":
            return torch.lerp(newer, older, late)
        # q and -q are the same rotation: take the one on newer's side
        older = torch.where((newer * older).sum(-1, keepdim=True) < 0, -older, older)
        return torch.nn.functional.normalize(torch.lerp(newer, older, late), dim=-1)

    def _disturb(self, name: str, true: Tensor, env_ids: Tensor | None = None) -> Tensor:
        """Offset and noise on readings (N, ...), or (K, ...) of some environments."""
        stem = "object_rot" if name == "object_quat" else name
        rows = slice(None) if env_ids is None else env_ids
        error: Tensor | None = None
        if f"{stem}_noise" in self._tensors:
            width = self._widths[stem]
            error = self._tensors[f"{stem}_noise"][rows] * self._normal(len(true), width)
        if f"{stem}_bias" in self._tensors:
            bias = self._tensors[f"{stem}_bias"][rows]
            error = bias if error is None else error + bias
        if error is None:
            return true
        return quat_mul(quat_from_rotvec(error), true) if stem == "object_rot" else true + error

    def _zeros(self, width: int) -> Tensor:
        return torch.zeros(self._num_envs, width, device=self._generator.device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, device=self._generator.device)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {name: value.clone() for name, value in self._tensors.items()}
        state["history"] = {name: past.state_dict() for name, past in self._history.items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self._tensors.items():
            self._tensors[name] = state[name].to(value.device).clone()
        for name, past in self._history.items():
            past.load_state_dict(state["history"][name])

"""What happens between the true readings and the policy: offsets, noise, delay, lost frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from widen.envs.perturbation import Readings
from widen.envs.rows import count, put, take

from .delay import Delay
from .parameter import Plant, effect
from .tracker import POSITION, ROTATION, Tracker

# ruff format would give every argument a line and hide the table
# fmt: off
OBSERVATION = (
    effect("observation", "joint_bias", "rad", 0.15, 0.003,
            "std of each joint reading's offset, new in every episode", "[D] zero offsets N(0, .15)"),
    effect("observation", "joint_noise", "rad", 0.15, 0.002,
            "std of noise on joint readings, new in every step", "[P] .05, [X] found .12"),
    effect("observation", "joint_delay", "control steps", 2.0, 0.04,
            "age of the joint readings when they are reported",
            "a LEAP hand's bus answers 90 to 500 times a second: up to .22 at 20 Hz"),
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
    effect("observation", "object_freeze", "1/s", 1.0, 0.02,
            "rate at which the object tracker freezes, for one second each time", "[D] .2"),
    effect("observation", "object_dropout", "1", 0.9, 0.02,
            "probability that a frame of the object tracker is lost and the last one repeated",
            "[X] found .47 for a late one"),
    effect("observation", "object_marker_offset", "m", 0.03, 0.0005,
            "std along each axis of the tracked point's offset from the object's origin, in the"
            " object's own frame, new in every episode",
            "[D] .005 for the position's offset"),
)
# fmt: on


class Observation:
    """Effects of the "observation" parameters. One whose most value is not given costs nothing.

    Joint readings are those of `joint_delay` control steps ago, interpolated linearly between two
    control steps, plus an offset and noise. The object's pose comes from a `Tracker`, which says
    in what order its effects come. A rotation error is the rotation by a vector whose components,
    offset plus noise, have the stated standard deviations; it is applied in the hand's frame.
    Goals are set and not measured: they pass unchanged, as does every other reading.

    Readings may already hold errors of the sensors themselves, such as an encoder's offset: they
    are delayed as they come in.

    Args:
        most: largest value of every parameter that varies, by name; sizes the queues.
        plant: the simulation.
    """

    def __init__(self, most: Mapping[str, float], plant: Plant) -> None:
        self._errors = Errors(most, plant)
        self._joints: Delay | None = None
        if "joint_delay" in most:
            width, device = plant.num_joints, plant.generator.device
            self._joints = Delay(most["joint_delay"], plant.num_envs, width, device)
        tracks = any(name.startswith("object_") for name in most)
        self._tracker = Tracker(most, plant) if tracks else None
        self._chances = self._tracker.num_chances if self._tracker is not None else 0
        self._changes_nothing = not most

    def begin(self, which: Tensor, values: Mapping[str, Tensor]) -> None:
        """New episodes of environments `which` have these values (K or N,) by parameter."""
        self._errors.begin(which, values)
        if self._joints is not None:
            self._joints.begin(which, values["joint_delay"])
        if self._tracker is not None:
            self._tracker.begin(which, values)

    def observe(self, readings: Readings) -> Readings:
        """What the sensors report of true readings (N, ...) one control step after the last."""
        if self._changes_nothing:
            return readings
        errors, chances = self._errors.draw(None, self._chances)
        joints = readings["joint_pos"]
        if self._joints is not None:
            joints = self._joints.push(joints)
        pose = None
        if self._tracker is not None:
            pose = self._tracker.observe(_pose(readings), errors, chances)
        return _reported(readings, joints, errors, pose)

    def observe_reset(self, readings: Readings, which: Tensor) -> Readings:
        """As `observe` for environments `which`, which have been as they are for ever."""
        if self._changes_nothing:
            return readings
        errors, _ = self._errors.draw(which)
        joints = readings["joint_pos"]
        if self._joints is not None:
            self._joints.fill(which, joints)
        pose = None
        if self._tracker is not None:
            pose = self._tracker.observe_reset(_pose(readings), errors, which)
        return _reported(readings, joints, errors, pose)

    def _parts(self) -> dict[str, Errors | Delay | Tracker]:
        parts = {"errors": self._errors, "joints": self._joints, "tracker": self._tracker}
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])


class Errors:
    """Offset and noise of everything that is measured, drawn at once and side by side.

    Args:
        most: <name>_bias and <name>_noise are standard deviations, for every name of a measured
            quantity: "joint", "object_pos" and, as a rotation vector, "object_rot". What
            object_marker_offset gives is named "object_marker".
        plant: the simulation.
    """

    def __init__(self, most: Mapping[str, float], plant: Plant) -> None:
        self._generator, self._num_envs = plant.generator, plant.num_envs
        device = plant.generator.device
        widths = {"joint": plant.num_joints, "object_pos": 3, "object_rot": 3}
        self._widths = {
            name: width
            for name, width in widths.items()
            if not most.keys().isdisjoint((f"{name}_bias", f"{name}_noise"))
        }
        self._width = sum(self._widths.values())
        noises = [f"{name}_noise" for name in self._widths for _ in range(self._widths[name])]
        biases = [f"{name}_bias" for name in self._widths for _ in range(self._widths[name])]
        biases += ["object_marker_offset"] * 3 if "object_marker_offset" in most else []
        columns = {"bias": biases, "noise": noises}
        columns = {
            kind: names for kind, names in columns.items() if not most.keys().isdisjoint(names)
        }
        # the episode's sample; the standard deviation
        self._tensors = {
            kind: torch.zeros(plant.num_envs, len(names), device=device)
            for kind, names in columns.items()
        }
        owners = [name for names in columns.values() for name in names]
        self._parameters = [name for name in most if name in owners]
        spread = [[float(name == owner) for owner in owners] for name in self._parameters]
        self._spread = torch.tensor(spread, device=device)
        """(parameters, columns) 1 where a column's standard deviation is the parameter's value"""

    def begin(self, which: Tensor, values: Mapping[str, Tensor]) -> None:
        """New episodes of environments `which` have these values (K or N,) by parameter."""
        if not self._parameters:
            return
        drawn = torch.stack([values[name] for name in self._parameters], 1).float()
        deviations = drawn @ self._spread
        if "bias" in self._tensors:
            bias, deviations = deviations.tensor_split((self._tensors["bias"].shape[1],), 1)
            put(self._tensors["bias"], which, bias * self._normal(*bias.shape))
        if "noise" in self._tensors:
            put(self._tensors["noise"], which, deviations)

    def draw(
        self, which: Tensor | None, chances: int = 0
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """New errors, and further standard normal samples in the same call to the generator.

        Args:
            which: the environments; None for all.
            chances: number of further samples for each.

        Returns:
            errors (K or N, width) by name, and the samples (K or N, chances), None for 0.
        """
        noise, bias = (self._tensors.get(kind) for kind in ("noise", "bias"))
        rows = self._num_envs
        if which is not None:
            rows = count(which)
            noise = None if noise is None else take(noise, which)
            bias = None if bias is None else take(bias, which)
        width = 0 if noise is None else self._width
        sample = self._normal(rows, width + chances) if width + chances else None
        errors: dict[str, Tensor] = {}
        if self._widths:
            error = None if bias is None else bias[:, : self._width]
            if noise is not None and sample is not None:
                changing = noise * sample[:, :width]
                error = changing if error is None else error + changing
            assert error is not None
            parts = error.split(list(self._widths.values()), 1)
            errors = dict(zip(self._widths, parts, strict=True))
        if bias is not None and bias.shape[1] > self._width:
            errors["object_marker"] = bias[:, self._width :]
        return errors, sample[:, width:] if sample is not None and chances else None

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, device=self._generator.device)

    def state_dict(self) -> dict[str, Any]:
        return {name: value.clone() for name, value in self._tensors.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self._tensors.items():
            value.copy_(state[name])


def _pose(readings: Readings) -> Tensor:
    return torch.cat((readings["object_pos"], readings["object_quat"]), -1)


def _reported(
    readings: Readings, joints: Tensor, errors: dict[str, Tensor], pose: Tensor | None
) -> Readings:
    """Readings with these joints, less their error, and this pose."""
    reported = {**readings, "joint_pos": joints + errors["joint"] if "joint" in errors else joints}
    if pose is not None:
        reported["object_pos"], reported["object_quat"] = pose[:, POSITION], pose[:, ROTATION]
    return reported

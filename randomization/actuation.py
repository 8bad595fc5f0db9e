"""What happens between a joint target and the motors: noise, offsets, latency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from widen.envs.rows import count, put

from .parameter import Plant, effect
from .queues import History

# ruff format would give every argument a line and hide the table
# fmt: off
ACTUATION = (
    effect("actuation", "action_latency", "control steps", 3.0, 0.05,
            "delay from policy to motors, in fractions down to one simulation step",
            "[X] found 1.5, [R] milliseconds per actuator"),
    effect("actuation", "action_noise", "rad", 0.2, 0.003,
            "std of noise on joint targets, new in every step", "[X] found .32 of an action"),
    effect("actuation", "action_bias", "rad", 0.2, 0.003,
            "std of each joint target's offset, new in every episode", "[X] found .48 of an action"),
)
# fmt: on


class Actuation:
    """Effects of the "actuation" parameters. One whose most value is not given costs nothing.

    Args:
        most: largest value of every parameter that varies, by name; sizes the queues.
        plant: the simulation.
    """

    def __init__(self, most: Mapping[str, float], plant: Plant) -> None:
        self._generator = plant.generator
        num_envs, num_joints = self._shape = (plant.num_envs, plant.num_joints)
        device = plant.generator.device
        self._tensors: dict[str, Tensor] = {}
        self._history: History | None = None
        if "action_noise" in most:
            self._tensors["noise"] = torch.zeros(num_envs, 1, device=device)
        if "action_bias" in most:
            self._tensors["bias"] = torch.zeros(self._shape, device=device)
        if "action_latency" in most:
            # float64: whether a latency of a whole number of substeps is met must not be rounded
            self._tensors["latency"] = torch.zeros(num_envs, 1, device=device, dtype=torch.float64)
            length = int(most["action_latency"]) + 2
            self._history = History(length, num_envs, num_joints, device)

    def begin(self, which: Tensor, values: Mapping[str, Tensor]) -> None:
        """New episodes of environments `which` have these values (K or N,) by parameter."""
        if "noise" in self._tensors:
            put(self._tensors["noise"], which, values["action_noise"][:, None])
        if "bias" in self._tensors:
            bias = self._normal(count(which), self._shape[1])
            put(self._tensors["bias"], which, bias * values["action_bias"].float()[:, None])
        if "latency" in self._tensors:
            put(self._tensors["latency"], which, values["action_latency"][:, None])

    def hold(self, which: Tensor, position: Tensor) -> None:
        """Until the first target arrives the motors of `which` hold position (K or N, nu)."""
        if self._history is not None:
            self._history.fill(which, position.float())

    def act(self, target: Tensor, substeps: int) -> Tensor:
        """Motor inputs (N, substeps, nu) for joint targets (N, nu).

        With latency l [control steps] the motors obey, at substep s of control step t, the target
        that was current at t + s / substeps - l. A latency between two substeps therefore takes
        effect at the later one.
        """
        if "noise" in self._tensors:
            target = torch.addcmul(target, self._tensors["noise"], self._normal(*self._shape))
        if "bias" in self._tensors:
            target = target + self._tensors["bias"]
        if self._history is None:
            return target[:, None, :].expand(-1, substeps, -1)
        self._history.push(target)
        substep = torch.arange(substeps, device=target.device)
        late = (self._tensors["latency"] * substeps - substep) / substeps
        return self._history.past(late.ceil().long())

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, device=self._generator.device)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {name: value.clone() for name, value in self._tensors.items()}
        if self._history is not None:
            state["history"] = self._history.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self._tensors.items():
            value.copy_(state[name])
        if self._history is not None:
            self._history.load_state_dict(state["history"])

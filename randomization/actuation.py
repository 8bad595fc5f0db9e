"""What happens between a joint target and the motors: noise, offsets, backlash, latency, failures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from widen.envs.rows import count, merge, put, take

from .motors import Motors
from .parameter import Plant, effect
from .queues import History

_GAIN = ("actuator_gainprm", "actuator_biasprm")
_FORCE = ("actuator_forcerange", "jnt_actfrcrange")

# ruff format would give every argument a line and hide the table
# fmt: off
ACTUATION = (
    effect("actuation", "encoder_offset", "rad", 0.15, 0.003,
            "std of each joint encoder's zero, new in every episode; readings and servo share it",
            "[D] zero offsets N(0, .15), [X] additive"),
    effect("actuation", "action_latency", "control steps", 3.0, 0.05,
            "delay from policy to motors, in fractions down to one simulation step",
            "[X] found 1.5, [R] milliseconds per actuator"),
    effect("actuation", "action_latency_spread", "control steps", 0.5, 0.01,
            "std of each motor's delay around the common one, cut off at 0, new in every episode",
            "[R] a latency of its own for every actuator"),
    effect("actuation", "action_repeat", "1", 0.5, 0.01,
            "probability in every step that the command is lost and the last one stays",
            "[X] found .31"),
    effect("actuation", "backlash", "rad", 0.2, 0.004,
            "gap that every motor must cross before its joint moves",
            "[R], [D] calibrated per joint, [G]"),
    effect("actuation", "action_gain_noise", "1", 0.5, 0.01,
            "std of each joint's factor on the change of its target, new in every episode",
            "[D] .05, [G] .03"),
    effect("actuation", "action_noise", "rad", 0.2, 0.003,
            "std of noise on joint targets, new in every step", "[X] found .32 of an action"),
    effect("actuation", "action_bias", "rad", 0.2, 0.003,
            "std of each joint target's offset, new in every episode", "[X] found .48 of an action"),
    effect("actuation", "motor_broken", "1", 0.1, 0.002,
            "probability that a motor is limp for an episode; at most 2 of a hand fail",
            "[G] .001, at most 2", fields=_GAIN),
    effect("actuation", "motor_frozen", "1", 0.1, 0.002,
            "probability that a motor stays where the episode began; at most 2 of a hand fail",
            "[G] .001, at most 2"),
    effect("actuation", "motor_fade", "1 per 20 s", 0.6, 0.01,
            "share of every motor's torque that is lost, in proportion to time",
            "torque constants fall as motors heat up; range of ours", fields=(*_GAIN, *_FORCE)),
)
# fmt: on


class _Waits:
    """Latencies (N, width) [control steps] as what they mean for each of the `substeps`.

    Kept from control step to control step, since only new episodes change them.

    Attributes:
        steps: int64 (N, width), twice: a latency's control steps, rounded down, and one more.
        longer: bool (N, substeps, width), where it is one more.
    """

    def __init__(self, latency: Tensor, substeps: int) -> None:
        self.substeps = substeps
        *steps, self.longer = self._of(latency)
        self.steps = tuple(steps)

    def put(self, which: Tensor, latency: Tensor) -> None:
        """Environments `which` have these latencies (K or N, width)."""
        for kept, new in zip((*self.steps, self.longer), self._of(latency), strict=True):
            put(kept, which, new)

    def _of(self, latency: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # in substeps, rounded up: control steps and a rest, which the first substeps wait longer
        late = (latency * self.substeps).ceil()
        whole = (late / self.substeps).floor()
        substep = torch.arange(self.substeps, device=late.device)[:, None]
        longer = substep < (late - whole * self.substeps)[:, None]
        return whole.long(), whole.long() + 1, longer


class Actuation:
    """Effects of the "actuation" parameters. One whose most value is not given costs nothing.

    In a control step the policy's target t takes this way, t' being the one before:

        t + g (t - t')         action_gain_noise: a factor 1 + g on the change
        + noise + bias         action_noise, action_bias
        - b                    encoder_offset: a servo that reads q + b = t stands at q = t - b
        or the last command    action_repeat
        play                   backlash
        queue                  action_latency, action_latency_spread
        motors                 motor_broken, motor_frozen, motor_fade

    The published multiplicative noise acts on actions that are changes of a joint's position; on
    a target it would depend on where a joint's zero is.

    Backlash is the play operator with a gap of 2 r, p' = max(t - r, min(t + r, p)), which begins
    in the middle of the gap (Brokate and Sprekels, Hysteresis and Phase Transitions, 1996, section
    2.1), with the same gap at every joint of a hand. It is play of the command: inside the gap a
    load cannot move the joint. It commutes with the queue's delay.

    Args:
        most: largest value of every parameter that varies, by name; sizes the queue.
        plant: the simulation.
    """

    def __init__(self, most: Mapping[str, float], plant: Plant) -> None:
        self._generator = plant.generator
        num_envs, num_joints = self._shape = (plant.num_envs, plant.num_joints)
        self._tensors: dict[str, Tensor] = {}

        def allocate(name: str, width: int, dtype: torch.dtype = torch.float32) -> None:
            device = plant.generator.device
            self._tensors[name] = torch.zeros(num_envs, width, device=device, dtype=dtype)

        for name in ("action_noise", "action_repeat", "backlash"):
            if name in most:
                allocate(name, 1)
        for name in ("encoder_offset", "action_gain_noise"):
            if name in most:
                allocate(name, num_joints)
        memory = {
            "shift": ("action_bias", "encoder_offset"),  # what is added to every target
            "asked": ("action_gain_noise",),  # the policy's last target
            "received": ("action_repeat",),  # the last command that was not lost
            "played": ("backlash",),  # where the joint's side of the gap is
        }
        for name, needed_by in memory.items():
            if not most.keys().isdisjoint(needed_by):
                allocate(name, num_joints)
        self._history: History | None = None
        spread = most.get("action_latency_spread")
        self._most_latency = most.get("action_latency", 0.0) + 2.0 * (spread or 0.0)
        if spread is not None or "action_latency" in most:
            # float64: whether a latency of a whole number of substeps is met must not be rounded
            allocate("latency", 1 if spread is None else num_joints, torch.float64)
            # `_late` rounds up to whole substeps and looks one step further back
            length = math.ceil(self._most_latency) + 2
            self._history = History(length, num_envs, num_joints, plant.generator.device)
        # made of the latencies when it is known how many substeps there are
        self._waits: _Waits | None = None
        self._motors = Motors(most, plant)

    @property
    def encoder_offset(self) -> Tensor | None:
        """(N, nu) [rad] that every joint's encoder reads too much; None if it has no offset."""
        return self._tensors.get("encoder_offset")

    def begin(self, which: Tensor, values: Mapping[str, Tensor]) -> None:
        """New episodes of environments `which` have these values (K or N,) by parameter."""
        tensors = self._tensors
        for name in ("action_noise", "action_repeat", "backlash"):
            if name in tensors:
                put(tensors[name], which, values[name][:, None])
        for name in ("encoder_offset", "action_gain_noise"):
            if name in tensors:
                # a new tensor: the observation may still hold the old one
                tensors[name] = merge(tensors[name], which, self._per_joint(which, values[name]))
        if "shift" in tensors:
            shift = torch.zeros(count(which), self._shape[1], device=self._generator.device)
            if "action_bias" in values:
                shift += self._per_joint(which, values["action_bias"])
            if "encoder_offset" in values:
                shift -= take(tensors["encoder_offset"], which)
            put(tensors["shift"], which, shift)
        if "latency" in tensors:
            latency = self._draw_latency(which, values)
            put(tensors["latency"], which, latency)
            if self._waits is not None:
                self._waits.put(which, latency)
        self._motors.begin(which, values)

    def _per_joint(self, which: Tensor, std: Tensor) -> Tensor:
        """Normal samples (K or N, nu) of these standard deviations (K or N,)."""
        return self._normal(count(which), self._shape[1]) * std.float()[:, None]

    def _draw_latency(self, which: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Control steps (K or N, 1 or nu), at most what the queue was made for."""
        common = values.get("action_latency")
        if "action_latency_spread" not in values:
            assert common is not None
            return common[:, None]
        latency = self._per_joint(which, values["action_latency_spread"]).double()
        if common is not None:
            latency = latency + common[:, None]
        return latency.clamp(0.0, self._most_latency)

    def hold(self, which: Tensor, position: Tensor) -> None:
        """Until the first target arrives the motors of `which` hold position (K or N, nu)."""
        tensors, position = self._tensors, position.float()
        # commands are the joint's own angle by then; the first change is from where the joint is
        for name in ("received", "played", "asked"):
            if name in tensors:
                tensors[name] = merge(tensors[name], which, position)
        if self._history is not None:
            self._history.fill(which, position)
        self._motors.hold(which, position)

    def act(self, target: Tensor, substeps: int) -> Tensor:
        """Motor inputs (N, substeps, nu) for joint targets (N, nu)."""
        tensors = self._tensors
        command = self._disturb(target)
        if "received" in tensors:
            lost = self._uniform(self._shape[0], 1) < tensors["action_repeat"]
            command = torch.where(lost, tensors["received"], command)
            tensors["received"] = command
        if "played" in tensors:
            half = 0.5 * tensors["backlash"]
            reached = torch.minimum(tensors["played"], command + half)
            command = tensors["played"] = torch.maximum(reached, command - half)
        return self._motors.drive(self._late(command, substeps))

    def _disturb(self, target: Tensor) -> Tensor:
        tensors, command = self._tensors, target
        if "asked" in tensors:
            change = target - tensors["asked"]
            command = torch.addcmul(command, tensors["action_gain_noise"], change)
            tensors["asked"] = target
        if "action_noise" in tensors:
            command = torch.addcmul(command, tensors["action_noise"], self._normal(*self._shape))
        if "shift" in tensors:
            command = command + tensors["shift"]
        return command

    def _late(self, command: Tensor, substeps: int) -> Tensor:
        """What reaches the motors (N, substeps, nu) when the newest command is (N, nu).

        With latency l [control steps] the motors obey, at substep s of control step t, the
        command that was current at t + s / substeps - l. A latency between two substeps therefore
        takes effect at the later one.
        """
        if self._history is None:
            return command[:, None, :].expand(-1, substeps, -1)
        self._history.push(command)
        if self._waits is None or self._waits.substeps != substeps:
            self._waits = _Waits(self._tensors["latency"], substeps)
        newer, older = (self._history.past(steps) for steps in self._waits.steps)
        return torch.where(self._waits.longer, older[:, None], newer[:, None])

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, device=self._generator.device)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._generator, device=self._generator.device)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {name: value.clone() for name, value in self._tensors.items()}
        if self._history is not None:
            state["history"] = self._history.state_dict()
        state["motors"] = self._motors.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        for name, value in self._tensors.items():
            # new tensors: some of the old ones were handed out
            self._tensors[name] = state[name].to(value.device).clone()
        if self._history is not None:
            self._history.load_state_dict(state["history"])
            self._waits = None
        self._motors.load_state_dict(state["motors"])

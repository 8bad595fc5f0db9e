"""Motors that are limp, stuck, or grow weaker while an episode lasts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from widen.envs.rows import count, put, take

from .parameter import Plant

MOST_FAILURES = 2
"""Motors of a hand that are limp or stuck in one episode, as in robogym."""
FADE_SECONDS = 20.0
"""`motor_fade` is the share of strength lost in this time."""


class Motors:
    """Effects of the "motor_" parameters. One whose most value is not given costs nothing.

    A motor fails with the probability `motor_broken` + `motor_frozen`, independently of the
    others; of more than `MOST_FAILURES` on a hand, as many are picked at random. A broken motor
    has no torque at all, neither to follow nor to damp. A frozen one holds the position in which
    the episode began, as stiffly as its servo does. Fading scales the whole torque of every motor,
    kp, kv and force limit, by 1 - f t / 20 s at time t of the episode, and by no less than 0.

    Broken and fading motors live in per-environment model fields: `begin` must come after the
    episode's own values were written there.

    Args:
        most: largest value of every parameter that varies, by name.
        plant: the simulation, with the fields of these parameters declared.
    """

    def __init__(self, most: Mapping[str, float], plant: Plant) -> None:
        self._generator, self._dt = plant.generator, plant.control_dt
        num_envs, self._num_joints = plant.num_envs, plant.num_joints
        device = plant.generator.device
        self._fails = not most.keys().isdisjoint(("motor_broken", "motor_frozen"))
        self._tensors: dict[str, Tensor] = {}
        self._strength = _strength_fields(plant, most)
        if "motor_frozen" in most:
            shape = (num_envs, self._num_joints)
            self._tensors["frozen"] = torch.zeros(shape, dtype=torch.bool, device=device)
            self._tensors["stuck"] = torch.zeros(shape, device=device)
        if "motor_fade" in most:
            # as exact as the fields that they scale
            like = {"device": device, "dtype": plant.sim.qpos.dtype}
            self._tensors["fade"] = torch.zeros(num_envs, 1, 1, **like)  # in a control step
            self._tensors["age"] = torch.zeros(num_envs, 1, 1, **like)  # control steps
            for name, live in self._strength.items():
                self._tensors[name] = live.clone()

    def begin(self, which: Tensor, values: Mapping[str, Tensor]) -> None:
        """New episodes of environments `which` have these values (K or N,) by parameter."""
        if self._fails:
            broken, frozen = self._draw_failures(which, values)
            if "motor_broken" in values:
                for live in (self._strength["gain"], self._strength["bias"]):
                    put(live, which, take(live, which).masked_fill(broken[..., None], 0.0))
            if "frozen" in self._tensors:
                put(self._tensors["frozen"], which, frozen)
        if "fade" in self._tensors:
            share = values["motor_fade"][:, None, None]
            put(self._tensors["fade"], which, share * (self._dt / FADE_SECONDS))
            put(self._tensors["age"], which, 0.0)
            for name, live in self._strength.items():
                put(self._tensors[name], which, take(live, which))

    def _draw_failures(self, which: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(K or N, nu) bool each: the motor is broken, the motor is frozen."""
        none = torch.zeros_like(next(iter(values.values())))
        broken = values.get("motor_broken", none)[:, None]
        either = broken + values.get("motor_frozen", none)[:, None]
        shape = (2, count(which), self._num_joints)
        device = self._generator.device
        chance, kind = torch.rand(*shape, generator=self._generator, device=device)
        most = min(MOST_FAILURES, self._num_joints)
        fails = (chance < either) & (chance <= chance.topk(most, largest=False).values[:, -1:])
        limp = kind * either < broken
        return fails & limp, fails & ~limp

    def hold(self, which: Tensor, position: Tensor) -> None:
        """The episodes of `which` begin with the joints at position (K or N, nu)."""
        if "stuck" in self._tensors:
            put(self._tensors["stuck"], which, position)

    def drive(self, ctrl: Tensor) -> Tensor:
        """A control step passes: what reaches the servos of ctrl (N, substeps, nu)."""
        if "fade" in self._tensors:
            self._grow_weaker()
        if "frozen" in self._tensors:
            frozen, stuck = self._tensors["frozen"], self._tensors["stuck"]
            ctrl = torch.where(frozen[:, None], stuck[:, None], ctrl)
        return ctrl

    def _grow_weaker(self) -> None:
        left = (1.0 - self._tensors["fade"] * self._tensors["age"]).clamp_(min=0.0)
        for name, live in self._strength.items():
            torch.mul(self._tensors[name], left, out=live)
        self._tensors["age"] += 1.0

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._tensors.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`. Model fields are in the simulation's own state."""
        for name, value in self._tensors.items():
            value.copy_(state[name])


def _strength_fields(plant: Plant, most: Mapping[str, float]) -> dict[str, Tensor]:
    """Live views of the numbers that a motor's torque is proportional to, (N, ..., width) each.

    torque = gainprm[0] ctrl + biasprm[0] + biasprm[1] q + biasprm[2] qdot, within its limits.
    """
    views = {}
    if not most.keys().isdisjoint(("motor_broken", "motor_fade")):
        views["gain"] = plant.sim.per_env("actuator_gainprm")[..., :1]
        views["bias"] = plant.sim.per_env("actuator_biasprm")[..., :3]
    if "motor_fade" in most:
        for name in ("actuator_forcerange", "jnt_actfrcrange"):
            if getattr(plant.sim.model, name).any():  # the unused one is all zeros
                views[name] = plant.sim.per_env(name)
    return views

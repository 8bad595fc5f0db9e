"""What may befall a hand in the midst of an episode."""

from __future__ import annotations

import torch
from torch import Tensor

from widen.envs.perturbation import Readings
from widen.envs.rows import count, put, take

from .parameter import Plant
from .scripted import Layer, nominal_field

GAIN = ("actuator_gainprm", "actuator_biasprm")
TRACKED = ("object_pos", "object_quat")


class Event(Layer):
    """Begins at a control step of every episode.

    Args:
        plant: the simulation.
        at: control steps of an episode that pass before, at least 1.

    Attributes:
        step: (N,) number of the control step that is being taken, from 0.
    """

    def __init__(self, plant: Plant, at: int) -> None:
        super().__init__(plant)
        self.at = at
        self.step = torch.full((plant.num_envs,), -1, device=plant.sim.device)

    def begin(self, which: Tensor) -> None:
        put(self.step, which, -1)

    def target(self, target: Tensor) -> Tensor:
        self.step += 1
        return target

    def under_way(self, steps: int | None = None) -> Tensor:
        """(N,) bool: the event has begun, and for `steps` is not yet over."""
        begun = self.step >= self.at
        return begun if steps is None else begun & (self.step < self.at + steps)


class LatencyStep(Event):
    """From `at` on, motors obey what was meant for them one control step before."""

    _last: Tensor | None = None

    def motors(self, ctrl: Tensor) -> Tensor:
        last, self._last = self._last, ctrl
        if last is None:
            return ctrl
        return torch.where(self.under_way()[:, None, None], last, ctrl)


class WrenchPulse(Event):
    """A push on the object, in a direction of its own in every episode.

    Args:
        plant: the simulation.
        at: as of every event.
        steps: control steps for which it lasts.
        size: force by the object's nominal mass [m/s^2].
    """

    def __init__(self, plant: Plant, at: int, steps: int, size: float) -> None:
        super().__init__(plant, at)
        self._steps = steps
        mass = plant.scene.nominal("body_mass", plant.num_envs)[:, plant.parts.object_body, None]
        self._newtons = size * torch.tensor(mass, device=plant.sim.device).float()  # (N or 1, 1)
        self._force = torch.zeros(plant.num_envs, 6, device=plant.sim.device)

    def begin(self, which: Tensor) -> None:
        super().begin(which)
        generator = self.plant.generator
        normal = torch.randn(count(which), 3, generator=generator, device=generator.device)
        newtons = self._newtons
        newtons = newtons if len(newtons) == 1 else take(newtons, which)
        force = newtons * torch.nn.functional.normalize(normal, dim=-1)
        put(self._force, which, torch.cat((force, torch.zeros_like(force)), -1))

    def wrench(self) -> Tensor:
        return self._force * self.under_way(self._steps)[:, None]


class MotorDead(Event):
    """One motor goes limp: no torque, whatever is asked of it and however its joint moves.

    Environment i loses motor i mod nu, so that every motor is lost equally often.
    """

    fields = GAIN

    def __init__(self, plant: Plant, at: int) -> None:
        super().__init__(plant, at)
        device = plant.sim.device
        self._live = [plant.sim.per_env(name) for name in GAIN]
        self._alive = [nominal_field(plant.sim, name) for name in GAIN]
        self.motor = torch.arange(plant.num_envs, device=device) % plant.num_joints
        lost = self.motor[:, None] == torch.arange(plant.num_joints, device=device)
        self._lost = lost[..., None]  # (N, nu, 1)

    def begin(self, which: Tensor) -> None:
        super().begin(which)
        for live, alive in zip(self._live, self._alive, strict=True):
            put(live, which, alive.expand(count(which), *alive.shape))

    def motors(self, ctrl: Tensor) -> Tensor:
        dead = self._lost & self.under_way()[:, None, None]
        for live in self._live:
            live.masked_fill_(dead, 0.0)
        return ctrl


class PoseLost(Event):
    """The tracker loses the object for a while: its last pose is reported again and again."""

    def __init__(self, plant: Plant, at: int, steps: int) -> None:
        super().__init__(plant, at)
        self._steps = steps
        self._last: Readings = {}

    def observe(self, readings: Readings) -> Readings:
        lost = self.under_way(self._steps)[:, None]
        seen = {name: readings[name] for name in TRACKED if name in readings}
        if self._last:
            seen = {name: torch.where(lost, self._last[name], x) for name, x in seen.items()}
        self._last = seen
        return {**readings, **seen}

    def observe_reset(self, readings: Readings, which: Tensor) -> None:
        for name in TRACKED:
            if name not in readings:
                continue
            if name in self._last:
                # a copy: the last ones were handed out
                self._last[name] = self._last[name].clone()
                put(self._last[name], which, readings[name])
            else:  # the first reset is everyone's
                self._last[name] = readings[name]

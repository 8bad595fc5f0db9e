"""Worlds that are prescribed rather than learned: what an examination puts a policy into.

A `Script` says which parameters are drawn from where, and what else happens, step by step, in
`Layer`s. `Scripted` is the `Perturbation` that plays one script after another in the same
environments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from widen.envs.perturbation import Readings
from widen.envs.scene import Scene
from widen.envs.sim import BatchSim

from .config import RandomizationConfig
from .parameter import Parts, Plant
from .parameters import find
from .randomizer import Randomizer

_STRIDE = 100_003  # seeds between two episodes' random numbers; no episode has as many steps


class Layer:
    """Something that the catalogue has no parameter for. As it stands it changes nothing.

    Args:
        plant: what it may know of the simulation; its `generator` draws every sample.
    """

    fields: tuple[str, ...] = ()
    """MjModel fields that it writes per environment; nothing else writes them"""

    def __init__(self, plant: Plant) -> None:
        self.plant = plant

    def begin(self, which: Tensor) -> None:
        """New episodes start in `which`; the script's parameters are drawn and written.

        Model fields may be written to `plant.sim.per_env`, which are committed afterwards.
        """

    def target(self, target: Tensor) -> Tensor:
        """Joint targets (N, nu) [rad] before the catalogue's effects on them."""
        return target

    def motors(self, ctrl: Tensor) -> Tensor:
        """Motor inputs (N, substeps, nu) [rad] after them."""
        return ctrl

    def wrench(self) -> Tensor | None:
        """Force and torque (N, 6) on the object in this step [N, N m]."""
        return None

    def observe(self, readings: Readings) -> Readings:
        """What is reported after the catalogue's effects; called once a step."""
        return readings

    def observe_reset(self, readings: Readings, which: Tensor) -> None:
        """What was reported of environments `which` as their episodes began."""


@dataclass(frozen=True)
class Script:
    """What is drawn in every episode, and what happens in it.

    Attributes:
        ranges: low and high of catalogue parameters, drawn independently; all others are nominal.
        layers: what else happens, in order: called with the plant, each makes its layer.
    """

    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    layers: tuple[type[Layer] | partial[Layer], ...] = ()

    @classmethod
    def held(cls, **values: float) -> Script:
        """Parameters held at these values."""
        return cls({name: (value, value) for name, value in values.items()})

    @property
    def model_fields(self) -> set[str]:
        """All MjModel fields that may differ from the nominal model."""
        drawn = {name for what in self.ranges for name in find(what).fields}
        return drawn.union(*(_class(make).fields for make in self.layers))

    @property
    def contact_dims(self) -> int:
        """See `Perturbation.contact_dims`."""
        return max((find(name).contact_dims for name in self.ranges), default=3)

    def describe(self) -> dict[str, Any]:
        """What tells this script from others, as JSON-friendly values."""
        layers = [
            {"name": _class(make).__name__, **(make.keywords if isinstance(make, partial) else {})}
            for make in self.layers
        ]
        return {
            "ranges": {name: list(pair) for name, pair in self.ranges.items()},
            "layers": layers,
        }

    def randomizer(self, seed: int = 0) -> Randomizer:
        """Of the ranges alone.

        Raises:
            ValueError: a parameter is unknown, or a range leaves its limits.
        """
        entries = {name: {"range": pair} for name, pair in self.ranges.items()}
        about = {"curriculum": "uniform", "parameters": entries}
        return Randomizer(RandomizationConfig.model_validate(about), seed)


def _class(make: type[Layer] | partial[Layer]) -> type[Layer]:
    made: Any = make.func if isinstance(make, partial) else make
    return made


class Scripted:
    """Plays scripts. What differs from the nominal world costs, and nothing else does.

    Random numbers depend on the seed and the control step alone, never on which environments
    began anew before: whatever the policy, the first episode after `play` is the same everywhere.

    Args:
        scripts: all that will ever be played: they determine which model fields the simulation
            declares, and how the scene is built. The first is played until `play` is called.
        seed: of the first.

    Attributes:
        num_privileged: 0; nobody learns here.
    """

    num_privileged = 0

    def __init__(self, scripts: Iterable[Script], seed: int = 0) -> None:
        self.scripts = tuple(scripts)
        self.model_fields = tuple(sorted(set().union(*(s.model_fields for s in self.scripts))))
        self.contact_dims = max(script.contact_dims for script in self.scripts)
        self.task_parameters = tuple(
            sorted({n for s in self.scripts for n in s.ranges if find(n).kind == "task"})
        )
        self._first_seed = seed

    def attach(self, sim: BatchSim, scene: Scene, control_dt: float) -> None:
        """See `Perturbation.attach`.

        Raises:
            ValueError: the first script does not fit the scene.
        """
        self._scene = scene
        generator = torch.Generator(sim.device)
        self._plant = Plant(sim, scene, Parts.of(scene, sim.device), control_dt, generator)
        self._nominal = {
            name: torch.from_numpy(scene.nominal(name, sim.num_envs)) for name in self.model_fields
        }
        self._empty = torch.zeros(sim.num_envs, 0, device=sim.device)
        self.play(self.scripts[0], self._first_seed)

    def play(self, script: Script, seed: int) -> None:
        """From the next reset of all environments on, this script with these random numbers.

        Raises:
            ValueError: the script was not announced, or does not fit the scene.
        """
        if not (script.model_fields <= {*self.model_fields}):
            raise ValueError("play: the simulation was made for other scripts")
        sim = self._plant.sim
        for name, nominal in self._nominal.items():
            live = sim.per_env(name)
            live[:] = nominal.to(live.device, live.dtype).reshape(len(nominal), *live.shape[1:])
        sim.commit(torch.ones(sim.num_envs, dtype=torch.bool, device=sim.device))
        self._inner = script.randomizer()
        self._inner.attach(sim, self._scene, self._plant.control_dt)
        self._layers = [make(self._plant) for make in script.layers]
        self._writes = any(layer.fields for layer in self._layers)
        self._seed, self._steps = seed * _STRIDE, 0
        self._reseed()

    def _reseed(self) -> None:
        # two streams: the catalogue's samples and the layers' must not be the same numbers
        self._inner.reseed(2 * (self._seed + self._steps))
        self._plant.generator.manual_seed(2 * (self._seed + self._steps) + 1)

    def begin(self, which: Tensor) -> None:
        self._inner.begin(which)
        for layer in self._layers:
            layer.begin(which)
        if self._writes:
            self._plant.sim.commit(which)

    def task_values(self) -> dict[str, Tensor]:
        return self._inner.task_values()

    def end(self, which: Tensor, scores: Tensor, counted: Tensor) -> None:
        pass

    def act(self, target: Tensor, substeps: int) -> tuple[Tensor, Tensor | None]:
        self._steps += 1
        self._reseed()
        for layer in self._layers:
            target = layer.target(target)
        ctrl, total = self._inner.act(target, substeps)
        for layer in self._layers:
            ctrl, wrench = layer.motors(ctrl), layer.wrench()
            if wrench is not None:
                total = wrench if total is None else total + wrench
        return ctrl, total

    def observe(self, readings: Readings) -> Readings:
        reported = self._inner.observe(readings)
        for layer in self._layers:
            reported = layer.observe(reported)
        return reported

    def observe_reset(self, readings: Readings, which: Tensor) -> Readings:
        reported = self._inner.observe_reset(readings, which)
        for layer in self._layers:
            layer.observe_reset(reported, which)
        return reported

    def widest(self) -> Randomizer:
        """One that draws from all that the scripts draw from; layers hardly move contacts."""
        reach: dict[str, tuple[float, float]] = {}
        for script in self.scripts:
            for name, (low, high) in script.ranges.items():
                before = reach.get(name, (low, high))
                reach[name] = (min(low, before[0]), max(high, before[1]))
        return Script(reach).randomizer()

    def privileged(self) -> Tensor:
        return self._empty

    def state_dict(self) -> dict[str, Any]:
        """Nothing: an examination that stops midway repeats the condition it was at."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def nominal_field(sim: BatchSim, name: str) -> Tensor:
    """One environment's nominal values of a declared MjModel field, as `per_env` holds them.

    Of a field that all environments share, as those of the hand; others see `Scene.nominal`.
    """
    live = sim.per_env(name)
    holder: Any = sim.model
    *owners, last = name.split(".")
    for owner in owners:
        holder = getattr(holder, owner)
    values = np.array(getattr(holder, last))
    return torch.tensor(values, dtype=live.dtype, device=live.device).reshape(live.shape[1:])

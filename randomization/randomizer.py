"""Drawn values become model fields, latency, noise and delay: what the environment is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from widen.envs.perturbation import Readings
from widen.envs.rows import count, put, take
from widen.envs.scene import Scene
from widen.envs.sim import BatchSim

from .actuation import Actuation
from .adversary import Adversary
from .config import RandomizationConfig
from .curriculum import Move, Records
from .diagnosis import Diagnosis
from .draws import Draws
from .episodes import Episodes
from .observation import Observation
from .parameter import Parameter, Parts, Plant
from .parameters import check_scene, find

SETTLE_MASKED = 16


class Randomizer:
    """The `Perturbation` that a `RandomizationConfig` describes.

    A parameter that is not listed costs nothing. With curriculum "none" the listed ones stay at
    their nominal values and cost nothing either, but keep their columns in `privileged`, so that
    a critic's input has the same width under every curriculum.

    Values are drawn and results collected on the simulation's device; the curriculum decides on
    the host whenever `settle` is called, or by itself in every `settle_every`th call of `end`. Of
    processes that train together each gives its `records`, and one of them decides for all.

    Args:
        config: parameters and curriculum.
        seed: of every draw and sample; processes that train together need different ones.
        rank: of this process among them.

    Attributes:
        curriculum: bounds and rule.
        diagnosis: of the bounds, from the episodes that `decide` was given.
        settle_every: calls of `end` after which it settles, 0 for never. Not set, it is 1 by ids
            and `SETTLE_MASKED` by masks, since settling waits for the device.
    """

    settle_every: int | None = None

    def __init__(self, config: RandomizationConfig, seed: int = 0, rank: int = 0) -> None:
        self.config, self.rank = config, rank
        self.curriculum = config.make_curriculum()
        self.diagnosis = Diagnosis(self.curriculum)
        self.ranges = config.ranges()
        self.parameters = [find(what.name) for what in self.ranges]
        self.num_privileged = len(self.parameters)
        varied = [] if config.curriculum == "none" else self.parameters
        self._varies = len(varied) > 0
        self._by_kind: dict[str, list[Parameter]] = {
            kind: [what for what in varied if what.kind == kind]
            for kind in ("model", "actuation", "adversary", "observation", "task")
        }
        self.task_parameters = tuple(what.name for what in self._by_kind["task"])
        fields = {field for what in varied for field in what.fields}
        self.model_fields = tuple(sorted(fields))
        self.contact_dims = max((what.contact_dims for what in varied), default=3)
        self._seed = seed
        self._moves: list[Move] = []

    def attach(self, sim: BatchSim, scene: Scene, control_dt: float) -> None:
        """See `Perturbation.attach`.

        Raises:
            ValueError: a listed parameter does not fit the scene.
        """
        check_scene([what.name for what in self.parameters], scene)
        self._generator = torch.Generator(sim.device).manual_seed(self._seed)
        self._draws = Draws(self.curriculum, sim.num_envs, self.rank, self._generator)
        self._episodes = Episodes(sim.num_envs, len(self.parameters), sim.device)
        self._ends = 0
        self._sim, self._parts = sim, Parts.of(scene, sim.device)
        self._make_rows(scene)
        self._joints = torch.as_tensor(scene.joint_qpos, device=sim.device)
        self._normals = {"none": None, "joints": len(scene.joint_qpos), "axes": 3}
        self._column = {what.name: i for i, what in enumerate(self.parameters)}
        plant = Plant(sim, scene, self._parts, control_dt, self._generator)
        self._actuation = Actuation(self._most("actuation"), plant)
        self._adversary = Adversary(self._most("adversary"), plant)
        self._observation = Observation(self._most("observation"), plant)
        self._effects = {
            "actuation": self._actuation,
            "adversary": self._adversary,
            "observation": self._observation,
        }
        nominal = [what.nominal for what in self.parameters]
        # the catalogue's limits, not the config's: a critic's input keeps its meaning
        reach = [max(abs(end - what.nominal) for end in what.limits) for what in self.parameters]
        self._nominal = torch.tensor(nominal, dtype=torch.float64, device=sim.device)
        self._reach = torch.tensor(reach, dtype=torch.float64, device=sim.device)
        self.values = self._nominal.repeat(sim.num_envs, 1)  # (N, P)
        self._privileged = torch.zeros(self.values.shape, device=sim.device)

    def _most(self, kind: str) -> dict[str, float]:
        """Largest value of every varied parameter of this kind."""
        names = {what.name for what in self._by_kind[kind]}
        return {what.name: what.limit_high for what in self.ranges if what.name in names}

    def _make_rows(self, scene: Scene) -> None:
        """Room for the model fields of all environments, in one piece and as views of it."""
        device, count = self._sim.device, self._sim.num_envs
        nominal = [
            torch.from_numpy(scene.nominal(name, count)).to(device) for name in self.model_fields
        ]
        # (N, W), or (1, W) where all environments begin with the same
        rows = 1 if not scene.variants else count
        flat = [values.reshape(rows, -1) for values in nominal]
        empty = torch.zeros(rows, 0, dtype=torch.float64, device=device)
        self._nominal_rows = torch.cat((empty, *flat), 1)
        self._all_rows = self._nominal_rows.expand(count, -1).clone()
        parts = self._all_rows.split([values.shape[1] for values in flat], 1)
        self._rows = {
            name: part.unflatten(1, values.shape[1:]) if values.ndim > 1 else part[:, 0]
            for name, part, values in zip(self.model_fields, parts, nominal, strict=True)
        }

    def begin(self, which: Tensor) -> None:
        drawn = self._draws.begin(which)
        put(self.values, which, drawn)
        put(self._privileged, which, (drawn - self._nominal) / self._reach)
        columns = drawn.unbind(1)
        if self.model_fields:
            self._write_fields(which, columns)
        for kind, effects in self._effects.items():
            values = {what.name: columns[self._column[what.name]] for what in self._by_kind[kind]}
            effects.begin(which, values)

    def _write_fields(self, which: Tensor, drawn: Sequence[Tensor]) -> None:
        """Scale nominal rows by the drawn values, P times (K,), and hand them to the simulation.

        Starting from the nominal model makes parameters that share a field combine, and keeps
        one episode's values out of the next.
        """
        nominal = self._nominal_rows
        self._all_rows[: count(which)] = nominal if len(nominal) == 1 else take(nominal, which)
        rows = {name: values[: count(which)] for name, values in self._rows.items()}
        for what in self._by_kind["model"]:
            assert what.write is not None
            normal = self._normals[what.normals]
            samples = () if normal is None else (self._normal(count(which), normal),)
            what.write(rows, self._parts, drawn[self._column[what.name]], *samples)
        for name, values in rows.items():
            put(self._sim.per_env(name), which, values)
        self._sim.commit(which)

    def task_values(self) -> dict[str, Tensor]:
        return {name: self.values[:, self._column[name]].float() for name in self.task_parameters}

    def end(self, which: Tensor, scores: Tensor, counted: Tensor) -> None:
        self._draws.end(which, scores, counted)
        if self._varies:
            self._episodes.add(which, take(self.values, which), scores, counted)
        self._ends += 1
        every = self.settle_every
        if every is None:
            every = SETTLE_MASKED if which.dtype == torch.bool else 1
        if every and self._ends % every == 0:
            self.settle()

    def settle(self) -> None:
        """Let the curriculum judge what this process's episodes have shown since the last time."""
        self.decide([self.records()])

    def records(self) -> Records:
        """This process's part of what `decide` needs; a result is given out once."""
        records = self._draws.drain()
        return records._replace(episodes=self._episodes.drain()) if self._varies else records

    def decide(self, records: Sequence[Records]) -> None:
        """Let the curriculum judge the records of all processes."""
        if self._varies:
            self.diagnosis.take([one.episodes for one in records if len(one.episodes)])
        self._moves += self.curriculum.decide(records)
        self._draws.refresh()

    def bounds_state(self) -> dict[str, Any]:
        """What all processes that train together must know, as plain values."""
        return {"curriculum": self.curriculum.state_dict(), "clock": self._draws.clock}

    def load_bounds_state(self, state: dict[str, Any]) -> None:
        """Inverse of `bounds_state`.

        Raises:
            ValueError: the state is of other parameters.
        """
        self.curriculum.load_state_dict(state["curriculum"])
        self._draws.clock = int(state["clock"])
        self._draws.refresh()

    def shared_state(self) -> dict[str, Any]:
        """What processes have in common: `bounds_state`, and what the one that decides remembers."""
        return {**self.bounds_state(), "diagnosis": self.diagnosis.state_dict()}

    def load_shared_state(self, state: dict[str, Any]) -> None:
        """Inverse of `shared_state`.

        Raises:
            ValueError: the state is of other parameters.
        """
        self.load_bounds_state(state)
        self.diagnosis.load_state_dict(state["diagnosis"])

    def abandon(self, state: dict[str, Any]) -> None:
        """Episodes of a `state_dict` will not be continued; see `Draws.abandoned`."""
        # not `Draws.next`, which differs between processes
        later = Draws.first_ticket(self._draws.clock + 1)
        self.curriculum.abandon(self._draws.abandoned(state["draws"]), later)

    def widest(self) -> Randomizer:
        """A fresh one that draws from the whole limits; see `Perturbation.widest`."""
        return Randomizer(self.config.widest())

    def drain_moves(self) -> list[Move]:
        """The bounds that moved since the last call, in order."""
        moves, self._moves = self._moves, []
        return moves

    def act(self, target: Tensor, substeps: int) -> tuple[Tensor, Tensor | None]:
        self._draws.clock += 1
        target, wrench = self._adversary.act(target)
        return self._actuation.act(target, substeps), wrench

    def _normal(self, *shape: int) -> Tensor:
        device = self._sim.device
        return torch.randn(*shape, generator=self._generator, device=device, dtype=torch.float64)

    def observe(self, readings: Readings) -> Readings:
        return self._observation.observe(self._encoded(readings, None))

    def observe_reset(self, readings: Readings, which: Tensor) -> Readings:
        position = take(self._sim.qpos, which)[:, self._joints]
        self._adversary.hold(which, position)
        self._actuation.hold(which, position)
        return self._observation.observe_reset(self._encoded(readings, which), which)

    def _encoded(self, readings: Readings, which: Tensor | None) -> Readings:
        """Readings with the joint positions as the encoders have them, which servos share."""
        offset = self._actuation.encoder_offset
        if offset is None or "joint_pos" not in readings:
            return readings
        offset = offset if which is None else take(offset, which)
        return {**readings, "joint_pos": readings["joint_pos"] + offset}

    def privileged(self) -> Tensor:
        """(value - nominal) / largest distance of a limit from the nominal, (N, P), in -1..1."""
        return self._privileged

    def reseed(self, seed: int) -> None:
        """Go on with the random numbers of another seed; for one that is attached."""
        self._generator.manual_seed(seed)

    def npd(self) -> float:
        """Entropy of the ranges in nats per dimension; see `Uniform.npd`."""
        return self.curriculum.npd()

    def table(self) -> list[dict[str, Any]]:
        """Every parameter's range, limits and last boundary scores as JSON-friendly values."""
        decided = (self.curriculum.bounds, self.curriculum.scores)
        rows = zip(self.parameters, self.ranges, *decided, strict=True)
        return [
            {
                "name": what.name,
                "unit": what.unit,
                "nominal": what.nominal,
                "low": float(bounds[0]),
                "high": float(bounds[1]),
                "limit_low": limits.limit_low,
                "limit_high": limits.limit_high,
                "score_low": _number(scores[0]),
                "score_high": _number(scores[1]),
            }
            for what, limits, bounds, scores in rows
        ]

    def state_dict(self) -> dict[str, Any]:
        """See `Perturbation.state_dict`. Model fields are in the simulation's own state."""
        return {
            "shared": self.shared_state(),
            "ends": self._ends,
            "draws": self._draws.state_dict(),
            "episodes": self._episodes.state_dict(),
            "values": self.values.clone(),
            "privileged": self._privileged.clone(),
            "generator": self._generator.get_state(),
            "effects": {kind: one.state_dict() for kind, one in self._effects.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            ValueError: the state is of other parameters or another number of environments.
        """
        self.load_shared_state(state["shared"])
        self._ends = int(state["ends"])
        self._draws.load_state_dict(state["draws"])
        self._episodes.load_state_dict(state["episodes"])
        self.values.copy_(state["values"])
        self._privileged.copy_(state["privileged"])
        self._generator.set_state(state["generator"])
        for kind, one in self._effects.items():
            one.load_state_dict(state["effects"][kind])


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)

"""Drawn values become model fields, latency, noise and delay: what the environment is given."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from widen.envs.perturbation import Readings
from widen.envs.scene import Scene
from widen.envs.sim import BatchSim

from .actuation import Actuation
from .config import RandomizationConfig
from .curriculum import Move, Uniform
from .observation import Observation
from .parameters import Parameter, Parts, check_scene, find


class Randomizer:
    """The `Perturbation` that a `RandomizationConfig` describes.

    A parameter that is not listed costs nothing. With curriculum "none" the listed ones stay at
    their nominal values and cost nothing either, but keep their columns in `privileged`, so that
    a critic's input has the same width under every curriculum.

    Args:
        config: parameters and curriculum.
        seed: of every draw and sample.
    """

    curriculum: Uniform

    def __init__(self, config: RandomizationConfig, seed: int = 0) -> None:
        self.config = config
        self.ranges = config.ranges()
        self.parameters = [find(what.name) for what in self.ranges]
        self.num_privileged = len(self.parameters)
        varied = [] if config.curriculum == "none" else self.parameters
        self._by_kind: dict[str, list[Parameter]] = {
            kind: [what for what in varied if what.kind == kind]
            for kind in ("model", "actuation", "observation")
        }
        fields = {field for what in self._by_kind["model"] for field in what.fields}
        self.model_fields = tuple(sorted(fields))
        self._seed = seed
        self._moves: list[Move] = []

    def attach(self, sim: BatchSim, scene: Scene, control_dt: float) -> None:
        """See `Perturbation.attach`.

        Raises:
            ValueError: a listed parameter does not fit the scene.
        """
        check_scene([what.name for what in self.parameters], scene)
        seeds = np.random.SeedSequence(self._seed).generate_state(2)
        self.curriculum = self.config.make_curriculum(sim.num_envs, int(seeds[0]))
        self._generator = torch.Generator(sim.device).manual_seed(int(seeds[1]))
        self._sim, self._parts = sim, Parts.of(scene, sim.device)
        self._make_rows()
        self._joints = torch.as_tensor(scene.joint_qpos, device=sim.device)
        self._column = {what.name: i for i, what in enumerate(self.parameters)}
        most = {what.name: what.limit_high for what in self.ranges}
        joints = len(scene.joint_qpos)
        self._actuation = Actuation(
            {what.name: most[what.name] for what in self._by_kind["actuation"]},
            sim.num_envs,
            joints,
            self._generator,
        )
        self._observation = Observation(
            {what.name: most[what.name] for what in self._by_kind["observation"]},
            sim.num_envs,
            joints,
            self._generator,
        )
        nominal = [what.nominal for what in self.parameters]
        # the catalogue's limits, not the config's: a critic's input keeps its meaning
        reach = [max(abs(end - what.nominal) for end in what.limits) for what in self.parameters]
        self._nominal = torch.tensor(nominal, dtype=torch.float64, device=sim.device)
        self._reach = torch.tensor(reach, dtype=torch.float64, device=sim.device)
        self.values = self._nominal.repeat(sim.num_envs, 1)  # (N, P)
        self._privileged = torch.zeros(self.values.shape, device=sim.device)

    def _make_rows(self) -> None:
        """Room for the model fields of all environments, in one piece and as views of it."""
        nominal = [_field(self._sim, name) for name in self.model_fields]
        count = self._sim.num_envs
        flat = [values.flatten() for values in nominal]
        empty = torch.zeros(0, dtype=torch.float64, device=self._sim.device)
        self._nominal_row = torch.cat((empty, *flat))
        self._all_rows = self._nominal_row.repeat(count, 1)
        parts = self._all_rows.split([len(values) for values in flat], 1)
        self._rows = {
            name: part.unflatten(1, values.shape) if values.ndim > 0 else part[:, 0]
            for name, part, values in zip(self.model_fields, parts, nominal, strict=True)
        }

    def begin(self, env_ids: Tensor) -> None:
        drawn = torch.from_numpy(self.curriculum.draw(env_ids.cpu().numpy())).to(self.values.device)
        self.values[env_ids] = drawn
        self._privileged[env_ids] = ((drawn - self._nominal) / self._reach).float()
        if self.model_fields:
            self._write_fields(env_ids, drawn)
        for effects, kind in ((self._actuation, "actuation"), (self._observation, "observation")):
            values = {what.name: drawn[:, self._column[what.name]] for what in self._by_kind[kind]}
            effects.begin(env_ids, values)

    def _write_fields(self, env_ids: Tensor, drawn: Tensor) -> None:
        """Scale nominal rows by the drawn values (K, P) and hand them to the simulation.

        Starting from the nominal model makes parameters that share a field combine, and keeps
        one episode's values out of the next.
        """
        self._all_rows[: len(env_ids)] = self._nominal_row
        rows = {name: values[: len(env_ids)] for name, values in self._rows.items()}
        for what in self._by_kind["model"]:
            assert what.write is not None
            what.write(rows, self._parts, drawn[:, self._column[what.name]])
        for name, values in rows.items():
            self._sim.per_env(name)[env_ids] = values
        self._sim.commit(env_ids)

    def end(self, env_ids: Tensor, scores: Tensor, counted: Tensor) -> None:
        arrays = (value.cpu().numpy() for value in (env_ids, scores, counted))
        self._moves += self.curriculum.result(*arrays)

    def drain_moves(self) -> list[Move]:
        """The bounds that moved since the last call, in order."""
        moves, self._moves = self._moves, []
        return moves

    def act(self, target: Tensor, substeps: int) -> tuple[Tensor, Tensor | None]:
        return self._actuation.act(target, substeps), None

    def observe(self, readings: Readings) -> Readings:
        return self._observation.observe(readings)

    def observe_reset(self, readings: Readings, env_ids: Tensor) -> Readings:
        self._actuation.hold(env_ids, self._sim.qpos[env_ids][:, self._joints])
        return self._observation.observe_reset(readings, env_ids)

    def privileged(self) -> Tensor:
        """(value - nominal) / largest distance of a limit from the nominal, (N, P), in -1..1."""
        return self._privileged

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
            "curriculum": self.curriculum.state_dict(),
            "values": self.values.clone(),
            "privileged": self._privileged.clone(),
            "generator": self._generator.get_state(),
            "actuation": self._actuation.state_dict(),
            "observation": self._observation.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            ValueError: the state is of other parameters or another number of environments.
        """
        self.curriculum.load_state_dict(state["curriculum"])
        self.values.copy_(state["values"])
        self._privileged.copy_(state["privileged"])
        self._generator.set_state(state["generator"])
        self._actuation.load_state_dict(state["actuation"])
        self._observation.load_state_dict(state["observation"])


def _field(sim: BatchSim, name: str) -> Tensor:
    """Nominal values of an MjModel field such as "body_mass" or "opt.gravity"."""
    owner, _, rest = name.rpartition(".")
    holder = getattr(sim.model, owner) if owner else sim.model
    return torch.tensor(np.array(getattr(holder, rest)), device=sim.device)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)

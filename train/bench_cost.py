"""What the environment and every parameter of the catalogue cost, beside MuJoCo alone.

Bare stepping is given the very motion of the environment: its states, controls, wrenches and model
values. So it has the same contacts and constraint rows to solve, and what differs is the toolkit's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import mujoco
import numpy as np
import torch
from mujoco.batch import Batch
from torch import Tensor

from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.sim import SimConfig
from widen.envs.sim_cpu import CpuSim, processors
from widen.randomization.config import RandomizationConfig
from widen.randomization.parameters import CATALOGUE
from widen.randomization.randomizer import Randomizer

_CTRL = int(mujoco.mjtState.mjSTATE_CTRL)
_SPREAD = 0.6  # of the normally distributed actions
PARAMETERS = tuple(name for name, what in CATALOGUE.items() if what.kind != "task")
"""every parameter that cube_rotate knows: those of tasks belong to others"""


@dataclass(frozen=True)
class CostSize:
    """How much `parameter_costs` measures. The default takes about three minutes on two cores."""

    num_envs: int = 512
    block: int = 8
    """control steps in a block"""
    warm_up: int = 24
    """control steps before the first block"""
    blocks: int = 5
    """blocks of each parameter, and as many without any between them"""


COST = CostSize()


def bench_env(num_envs: int, parameters: Iterable[str], threads: int = 0) -> BatchedEnv:
    """cube_rotate with these parameters uniform over their whole limits.

    Args:
        num_envs: how many.
        parameters: names; none for the nominal task.
        threads: that step simulations; 0: one per processor.
    """
    config = RandomizationConfig.model_validate(
        {"curriculum": "uniform", "parameters": dict.fromkeys(parameters)}
    )
    return BatchedEnv(
        "cube_rotate",
        config=EnvConfig(num_envs=num_envs),
        sim=SimConfig(backend="cpu", threads=threads),
        perturbation=Randomizer(config) if config.parameters else None,
        stagger=True,
    )


class Step(NamedTuple):
    """What bare stepping needs to repeat a control step of the environment."""

    state: np.ndarray
    """(N, nstate) before the step"""
    ctrl: np.ndarray
    """(N, substeps, nu)"""
    wrench: np.ndarray | None
    """(N, 6) on the object"""
    changed: np.ndarray
    """(K,) environments whose model fields are new since the step before"""
    fields: dict[str, np.ndarray]
    """(K, ...) their values"""
    live: dict[str, np.ndarray]
    """(N, ...) values of those fields that effects write in every step"""


class Block(NamedTuple):
    """Consecutive control steps of an environment."""

    steps: list[Step]
    seconds: np.ndarray
    """of each step, without what was spent on recording it"""
    simulation: np.ndarray
    """the part of it inside `BatchSim.step`"""


class _Recorder:
    """In place of a simulation's `step`: records what it is given, and how long it takes."""

    def __init__(self, sim: CpuSim, names: Sequence[str]) -> None:
        self.steps: list[Step] = []
        self.changed = torch.arange(sim.num_envs)
        self.seconds = self.overhead = 0.0
        self._sim, self.step = sim, sim.step
        written = {field for what in CATALOGUE.values() for field in _live(what)}
        self._live = [name for name in names if name in written]
        self._begun = [name for name in names if name not in written]

    def __call__(self, ctrl: Tensor, wrench: Tensor | None = None) -> None:
        sim, began = self._sim, time.perf_counter()
        fields = {name: sim.per_env(name)[self.changed].numpy() for name in self._begun}
        live = {name: sim.per_env(name).numpy().copy() for name in self._live}
        state, force = sim.state.copy(), None if wrench is None else wrench.numpy().copy()
        ready = time.perf_counter()
        self.step(ctrl, wrench)
        done = time.perf_counter()
        last = (sim.last_ctrl.copy(), force, self.changed.numpy(), fields, live)
        self.steps.append(Step(state, *last))
        self.seconds = done - ready
        self.overhead = ready - began + time.perf_counter() - done


def _live(what: Any) -> tuple[str, ...]:
    return () if what.kind == "model" else what.fields


def env_block(env: BatchedEnv, actions: Tensor) -> Block:
    """Take the actions (steps, N, nu)."""
    sim = env.sim
    assert isinstance(sim, CpuSim)
    recorder = _Recorder(sim, env.perturbation.model_fields)
    seconds, simulation = [], []
    sim.step = recorder  # type: ignore[method-assign]
    try:
        for action in actions:
            began = time.perf_counter()
            result = env.step(action)
            seconds.append(time.perf_counter() - began - recorder.overhead)
            simulation.append(recorder.seconds)
            recorder.changed = (result.terminated | result.truncated).nonzero()[:, 0]
    finally:
        sim.step = recorder.step  # type: ignore[method-assign]
    return Block(recorder.steps, np.array(seconds), np.array(simulation))


class Bare:
    """`mujoco.batch.Batch` and nothing else, for an environment's model and threads."""

    def __init__(self, env: BatchedEnv) -> None:
        self.batch = Batch(env.sim.model, env.num_envs, processors())
        self._wrench: np.ndarray | None = None
        if env.scene.object_body is not None:
            body = env.sim.model.body(env.scene.object_body).id
            self._wrench = self.batch.bind("xfrc_applied")[:, body]

    def repeat(self, steps: Iterable[Step]) -> float:
        """Seconds that MuJoCo takes for the same motion: the same models, states and forces."""
        seconds = 0.0
        for step in steps:
            self._prepare(step)
            began = time.perf_counter()
            self.batch.rollout(step.ctrl.shape[1], step.ctrl, _CTRL, record=())
            seconds += time.perf_counter() - began
        return seconds

    def _prepare(self, step: Step) -> None:
        for name, values in step.fields.items():
            self.batch.expand(name)[step.changed] = values
        for name, values in step.live.items():
            self.batch.expand(name)[:] = values
        if (step.fields or step.live) and len(step.changed):
            self.batch.set_const(step.changed)
        self.batch.state[:] = step.state
        if self._wrench is not None:  # the state holds that of the step before
            self._wrench[:] = 0.0 if step.wrench is None else step.wrench


def against_bare(env: BatchedEnv, steps: int, blocks: int) -> tuple[float, float]:
    """Steps per second of bare stepping, and the environment's as a share of that."""
    bare, generator, pairs = Bare(env), torch.Generator().manual_seed(0), []
    env.reset()
    for block in range(-3, blocks):  # the first ones spread the episodes and warm the caches
        ours = env_block(env, random_actions(env, steps, generator))
        bare_seconds = bare.repeat(ours.steps)
        if block >= 0:
            pairs.append((float(ours.seconds.sum()), bare_seconds))
    ratio = median(bare_s / env_s for env_s, bare_s in pairs)
    return env.num_envs * steps / median(bare_s for _, bare_s in pairs), ratio


def random_actions(env: BatchedEnv, steps: int, generator: torch.Generator) -> Tensor:
    """Normally distributed actions (steps, N, nu)."""
    return _SPREAD * torch.randn(steps, env.num_envs, env.num_actions, generator=generator)


def parameter_costs(size: CostSize = COST) -> list[dict[str, Any]]:
    """What a step of the batch takes longer with each parameter alone than with none [ms].

    Returns:
        For every one of PARAMETERS its name, kind, "ms_per_batch_step" (the toolkit's
        own work: drawing, resets, observations, everything outside of the simulation) and
        "simulation_ms" (what the physics takes longer, as where contacts also roll). Medians over
        pairs of neighbouring blocks, one with the parameter and one with none, of medians over
        their steps; below zero is noise.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        none = _warm(size, ())
        return [_cost(name, none, size) for name in PARAMETERS]
    finally:
        torch.set_num_threads(threads)


def _cost(name: str, none: BatchedEnv, size: CostSize) -> dict[str, Any]:
    env, generator = _warm(size, (name,)), torch.Generator().manual_seed(1)
    pairs = []
    for _ in range(size.blocks):
        both = (env_block(one, random_actions(one, size.block, generator)) for one in (none, env))
        pairs.append([_milliseconds(block) for block in both])
    without, alone = np.array(pairs).transpose(1, 0, 2)
    own, simulation = np.median(alone - without, axis=0)
    return {
        "name": name,
        "kind": CATALOGUE[name].kind,
        "ms_per_batch_step": round(float(own), 3),
        "simulation_ms": round(float(simulation), 3),
    }


def _warm(size: CostSize, names: Iterable[str]) -> BatchedEnv:
    env = bench_env(size.num_envs, names)
    env.reset()
    for action in random_actions(env, size.warm_up, torch.Generator().manual_seed(0)):
        env.step(action)
    return env


def _milliseconds(block: Block) -> tuple[float, float]:
    """A step's own work and its simulation [ms]."""
    own = np.median(block.seconds - block.simulation)
    return 1e3 * float(own), 1e3 * float(np.median(block.simulation))

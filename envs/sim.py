"""The smallest honest interface to many simulations of one model."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol

import mujoco
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Sensors = Literal["none", "late", "current"]
"""What becomes of `BatchSim.sensordata`. none: nan. late: as in MuJoCo, of the state before the last
simulation step, for next to nothing; after a reset it is undefined until the next step. current: of
the same instant as qpos, for 15 to 25 % of the speed on the LEAP hand."""


class SimConfig(BaseModel):
    """How the physics is stepped."""

    model_config = ConfigDict(extra="forbid")

    backend: Literal["auto", "cpu", "warp"] = "auto"
    """cpu: MuJoCo on threads; warp: MuJoCo Warp on an NVIDIA GPU, or slowly on the CPU; auto: warp
    where there are a GPU and the extra `warp`, else cpu"""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads that step simulations; 0: one per processor"""
    substeps: int = Field(default=3, ge=1, le=100)
    """simulation steps in a control step; time step = 1 / (control_hz substeps)"""
    iterations: int = Field(default=20, ge=1, le=1000)
    """most solver iterations; it stops earlier where it has converged. With 4 it kicks the object, and
    with 10 it does so in rare states, where policies of the cpu then drop it and those of warp do not"""
    nconmax: int = Field(default=0, ge=0, le=100_000)
    """warp: room for contacts and near pairs of geoms, per environment on average; 0: measured by
    a trial on the CPU"""
    njmax: int = Field(default=0, ge=0, le=100_000)
    """warp: room for constraint rows in every environment; 0: measured by a trial on the CPU"""


class BatchSim(Protocol):
    """N simulations of one model, as torch tensors on one device.

    qpos, qvel, sensordata and the arrays of `per_env` are live views: read them after `step` or
    `reset`; write model values through `per_env` and then call `commit`. Never write qpos or
    qvel in place: `reset` also clears warm starts, which decide the last digits.
    """

    masked: ClassVar[bool]
    """What the simulation is quicker with in `commit` and `reset`: masks or ids (`envs.rows`)."""
    model: mujoco.MjModel
    """Template: names, ids, sizes, nominal values. Never written."""
    num_envs: int
    device: torch.device
    qpos: Tensor
    """(N, nq)"""
    qvel: Tensor
    """(N, nv)"""
    sensordata: Tensor
    """(N, nsensordata), of the instant that `Sensors` says"""
    diverged: Tensor
    """(N,) bool: non-finite state, or an error or a bad-state warning in the last step"""
    overflow: Tensor
    """(N,) bool: contacts or constraint rows found no room since the last `check`"""

    def per_env(self, field: str) -> Tensor:
        """(N, ...) values of one MjModel field that was declared when the sim was made.

        Raises:
            KeyError: the field was not declared.
        """
        ...

    def commit(self, which: Tensor) -> None:
        """Make the per-env values of these environments count, derived constants included.

        `which` is ids or a mask, here and in `reset`; see `envs.rows`. A body whose centre of
        mass is to move must be compiled with simple="false".

        Raises:
            ValueError: MuJoCo refuses the values.
        """
        ...

    def reset(self, which: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        """Put environments at qpos (K or N, nq) and qvel (K or N, nv), everything else as new."""
        ...

    def step(self, ctrl: Tensor, wrench: Tensor | None = None) -> None:
        """Advance every simulation by ctrl.shape[1] steps.

        Args:
            ctrl: (N, substeps, nu), one row for each simulation step.
            wrench: (N, 6) force [N] and torque [N m] at the centre of mass of the wrench body,
                world frame, held for this call; None for none.

        Raises:
            ValueError: a shape is wrong, or a wrench is given and there is no wrench body.
        """
        ...

    def check(self) -> None:
        """Complain of everything that `overflow` saw. Waits for the device: call it seldom.

        Raises:
            ValueError: names the setting that was too small and a value that would do.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact continuation needs, as tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        ...


def make_sim(
    model: mujoco.MjModel,
    num_envs: int,
    config: SimConfig,
    *,
    model_fields: tuple[str, ...] = (),
    sensors: Sensors = "current",
    wrench_body: str | None = None,
    variants: Sequence[mujoco.MjModel] = (),
) -> BatchSim:
    """Make the simulations that `config` asks for.

    Args:
        model: compiled model; copied, never written.
        num_envs: number of simulations N.
        config: backend and threads.
        model_fields: MjModel fields that get one value per simulation ("opt.gravity" for
            options).
        sensors: which of them a task reads.
        wrench_body: body that `step`'s wrench acts upon.
        variants: models of the same structure as `model`, which is the first of them: simulation i
            is one of variants[i % K]. Only on the backend cpu.

    Raises:
        ValueError: the backend is not to be had, or has no variants; or a field or body does not
            exist.
    """
    if resolve_backend(config) == "warp":
        if variants:
            raise ValueError(
                "object: several objects in one run need sim.backend cpu, got warp; expected one"
                " object, or sim.backend=cpu"
            )
        from .sim_warp import WarpSim

        return WarpSim(
            model,
            num_envs,
            nconmax=config.nconmax,
            njmax=config.njmax,
            model_fields=model_fields,
            sensors=sensors,
            wrench_body=wrench_body,
        )
    from .sim_cpu import CpuSim

    return CpuSim(
        model,
        num_envs,
        threads=config.threads,
        model_fields=model_fields,
        sensors=sensors,
        wrench_body=wrench_body,
        variants=variants,
    )


def resolve_backend(config: SimConfig) -> Literal["cpu", "warp"]:
    """The backend that `config` means on this machine.

    Raises:
        ValueError: warp is asked for and not installed.
    """
    if config.backend == "cpu":
        return "cpu"
    installed = importlib.util.find_spec("mujoco_warp") is not None
    if config.backend == "auto":
        return "warp" if installed and torch.cuda.is_available() else "cpu"
    if not installed:
        raise ValueError(
            "sim.backend: 'warp' needs the package mujoco-warp: pip install mujoco-warp, or the"
            " extra 'warp' of widen; or use 'cpu'"
        )
    return "warp"

"""The smallest honest interface to many simulations of one model."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import mujoco
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class SimConfig(BaseModel):
    """How the physics is stepped."""

    model_config = ConfigDict(extra="forbid")

    backend: Literal["auto", "cpu", "warp"] = "auto"
    """auto: the fastest that this version has, which is cpu; warp is not in it yet"""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads that step simulations; 0: one per processor"""
    substeps: int = Field(default=3, ge=1, le=100)
    """simulation steps in a control step; time step = 1 / (control_hz substeps)"""
    iterations: int = Field(default=10, ge=1, le=1000)
    """solver iterations; with 4 the solver stops unconverged and kicks the object"""


class BatchSim(Protocol):
    """N simulations of one model, as torch tensors on one device.

    qpos, qvel, sensordata and the arrays of `per_env` are live views: read them after `step` or
    `reset`; write model values through `per_env` and then call `commit`. Never write qpos or
    qvel in place: `reset` also clears warm starts, which decide the last digits.
    """

    model: mujoco.MjModel
    """Template: names, ids, sizes, nominal values. Never written."""
    num_envs: int
    device: torch.device
    qpos: Tensor
    """(N, nq)"""
    qvel: Tensor
    """(N, nv)"""
    sensordata: Tensor
    """(N, nsensordata), of the same instant as qpos; undefined if made without current sensors"""
    diverged: Tensor
    """(N,) bool: non-finite state, or an error or a bad-state warning in the last step"""

    def per_env(self, field: str) -> Tensor:
        """(N, ...) values of one MjModel field that was declared when the sim was made.

        Raises:
            KeyError: the field was not declared.
        """
        ...

    def commit(self, env_ids: Tensor) -> None:
        """Make the per-env values of these environments (K,) count, derived constants included.

        env_ids are sorted and unique, here and in `reset`. A body whose centre of mass is to
        move must be compiled with simple="false".

        Raises:
            ValueError: MuJoCo refuses the values.
        """
        ...

    def reset(self, env_ids: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        """Put environments (K,) at qpos (K, nq) and qvel (K, nv), everything else as new."""
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
    current_sensors: bool = True,
    wrench_body: str | None = None,
) -> BatchSim:
    """Make the simulations that `config` asks for.

    Args:
        model: compiled model; copied, never written.
        num_envs: number of simulations N.
        config: backend and threads.
        model_fields: MjModel fields that get one value per simulation ("opt.gravity" for
            options).
        current_sensors: keep `sensordata` at the same instant as qpos (15 to 25 % of the
            speed on the LEAP hand); False for a task that reads no sensor.
        wrench_body: body that `step`'s wrench acts upon.

    Raises:
        ValueError: the backend is not to be had, or a field or body does not exist.
    """
    if config.backend == "warp":
        raise ValueError("sim.backend: 'warp' is not in this version; use 'cpu' or 'auto'")
    from .sim_cpu import CpuSim

    return CpuSim(
        model,
        num_envs,
        threads=config.threads,
        model_fields=model_fields,
        current_sensors=current_sensors,
        wrench_body=wrench_body,
    )

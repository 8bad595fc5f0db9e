"""Many simulations on the CPU: `BatchSim` over `mujoco.batch.Batch`."""

from __future__ import annotations

import copy
import difflib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import mujoco
import numpy as np
import torch
from mujoco.batch import MODEL_FIELDS, Batch, SimulationError
from torch import Tensor

from .rows import check_shape, count
from .sim import Sensors

_CTRL = int(mujoco.mjtState.mjSTATE_CTRL)
_NO_STAGE = int(mujoco.mjtStage.mjSTAGE_NONE)


class CpuSim:
    """N simulations on a pool of threads; float64, bit-equal to a loop over mj_step.

    qpos and qvel are views of MuJoCo's own memory, as are sensordata and the fields of
    `per_env`. Results do not depend on the number of threads.

    `commit` runs mj_setConst where a declared field is one that it reads, so that what follows
    from a mass, an inertia, a centre of mass, a size or an armature follows: inverse weights,
    dof_M0, subtree masses, bounding volumes. What mj_setConst does not know is the caller's: a
    new size or mass leaves body_inertia as it is.
    """

    masked: ClassVar[bool] = False
    device = torch.device("cpu")

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        *,
        threads: int = 0,
        model_fields: tuple[str, ...] = (),
        sensors: Sensors = "current",
        wrench_body: str | None = None,
        variants: Sequence[mujoco.MjModel] = (),
    ) -> None:
        """See `make_sim` for the arguments and what they raise."""
        if num_envs < 1:
            raise ValueError(f"num_envs: expected 1 or more, got {num_envs}")
        self.model = copy.copy(model)
        self.num_envs = num_envs
        self._batch = Batch(self.model, num_envs, threads or processors())
        self._state = torch.from_numpy(self._batch.state)
        self._initial = self._state[0].clone()
        self._warnings = torch.from_numpy(self._batch.warning)
        self.qpos = torch.from_numpy(self._batch.bind("qpos"))
        self.qvel = torch.from_numpy(self._batch.bind("qvel"))
        self.diverged = torch.zeros(num_envs, dtype=torch.bool)
        self.overflow = torch.zeros(num_envs, dtype=torch.bool)  # memory grows as it is needed
        self._ncon, self._nefc = (_view(self._batch.bind(name)) for name in ("ncon", "nefc"))
        self._ctrl = torch.empty(num_envs, 0, self.model.nu, dtype=torch.float64)
        self._wrench = self._wrench_view(wrench_body)
        self._wrench_set = False
        self._spread(variants)
        self._fields = {name: self._expand(name) for name in model_fields}
        self._needs_const = any(
            name.startswith("opt.") or name in mujoco.MjModel._setconst_inputs
            for name in model_fields
        )
        # So that no constant depends on which environments were committed.
        self.commit(torch.arange(num_envs))
        self._sensor_stage = _NO_STAGE
        if sensors == "none":  # a task that reads them all the same shall notice
            self.sensordata = torch.full((num_envs, self.model.nsensordata), torch.nan).double()
        else:
            self.sensordata = _view(self._batch.bind("sensordata"))
        if sensors == "current":
            self._sensor_stage = int(self.model.sensor_needstage.max(initial=_NO_STAGE))
            self._update_sensors(None)

    def per_env(self, field: str) -> Tensor:
        if field not in self._fields:
            declared = ", ".join(self._fields) or "none"
            raise KeyError(f"model field {field!r} was not declared; declared: {declared}")
        return self._fields[field]

    def commit(self, which: Tensor) -> None:
        """Make the per-env values of these environments count, derived constants included.

        Raises:
            ValueError: MuJoCo refuses the values; for one, the centre of mass of a body that
                was not compiled with simple="false" cannot move.
        """
        if not self._needs_const or not len(env_ids := _ids(which)):
            return
        try:
            self._batch.set_const(env_ids.numpy())
        except SimulationError as error:
            raise ValueError(f"commit: {error}") from None

    def reset(self, which: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        check_shape("qpos", qpos, (count(which), self.model.nq))
        check_shape("qvel", qvel, (count(which), self.model.nv))
        if which.dtype == torch.bool:
            qpos, qvel = qpos[which], qvel[which]
        env_ids = _ids(which)
        # MuJoCo would put such a state back to qpos0 and only count a warning.
        if not math.isfinite(float(qpos.sum() + qvel.sum())):
            finite = torch.isfinite(qpos.sum(1) + qvel.sum(1))
            raise ValueError(
                f"reset: non-finite qpos or qvel for environments {env_ids[~finite].tolist()}"
            )
        if not len(env_ids):
            return
        # the same as the batch's own reset, which takes ten times as long for a few simulations
        self._state[env_ids] = self._initial
        self.qpos[env_ids] = qpos.to(torch.float64)
        self.qvel[env_ids] = qvel.to(torch.float64)
        self._update_sensors(env_ids.numpy())

    def step(self, ctrl: Tensor, wrench: Tensor | None = None) -> None:
        if ctrl.ndim != 3 or ctrl.shape[1] == 0:
            raise ValueError(f"ctrl: expected (N, substeps, nu), got {tuple(ctrl.shape)}")
        substeps = ctrl.shape[1]
        check_shape("ctrl", ctrl, (self.num_envs, substeps, self.model.nu))
        if self._ctrl.shape[1] != substeps:
            self._ctrl = torch.empty(ctrl.shape, dtype=torch.float64)
        self._ctrl.copy_(ctrl)
        self._apply(wrench)
        # From zero, because mj_step's own reset of a bad state sets a counter to one: from one
        # it would not be seen to rise.
        self._warnings.zero_()
        self.diverged.zero_()
        with _quiet():
            try:
                self._batch.rollout(substeps, self._ctrl.numpy(), _CTRL, record=())
            except SimulationError as error:
                self.diverged[torch.from_numpy(error.ids)] = True
        self._update_sensors(None)
        # seldom: one sum over everything, and no more when it is finite and zero
        if self._warnings[..., 1].any():
            self.diverged |= self._warnings[..., 1].any(1)
        total = self.qpos.sum(1) + self.qvel.sum(1)
        if not math.isfinite(float(total.sum())):
            self.diverged |= ~torch.isfinite(total)

    @property
    def ncon(self) -> Tensor:
        """(N,) contacts in the last simulation step, a live view."""
        return self._ncon

    @property
    def nefc(self) -> Tensor:
        """(N,) constraint rows in the last simulation step, a live view."""
        return self._nefc

    @property
    def state(self) -> np.ndarray:
        """(N, nstate) MuJoCo's integration state, a live view."""
        return self._batch.state

    @property
    def last_ctrl(self) -> np.ndarray:
        """(N, substeps, nu) float64, as given to the last step."""
        return self._ctrl.numpy()

    def check(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {
            "state": self._state.clone(),
            "diverged": self.diverged.clone(),
            "fields": {name: values.clone() for name, values in self._fields.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            ValueError: the state is of another backend, model, number of environments or set of
                fields.
        """
        if "state" not in state:
            raise ValueError("state: expected one of sim.backend cpu, got one of warp")
        check_shape("state", state["state"], tuple(self._state.shape))
        if set(state["fields"]) != set(self._fields):
            raise ValueError(
                f"state: its model fields are {sorted(state['fields'])},"
                f" the simulation's {sorted(self._fields)}"
            )
        for name, values in self._fields.items():
            check_shape(name, state["fields"][name], tuple(values.shape))
            values.copy_(state["fields"][name])
        self.commit(torch.arange(self.num_envs))
        self._state.copy_(state["state"])
        self._wrench_set = self._wrench is not None and bool(self._wrench.any())
        self._update_sensors(None)
        self.diverged.copy_(state["diverged"])

    def _apply(self, wrench: Tensor | None) -> None:
        """Write the wrench, or clear the last one; the state keeps it between calls."""
        if wrench is None:
            if self._wrench is not None and self._wrench_set:
                self._wrench.zero_()
            self._wrench_set = False
            return
        if self._wrench is None:
            raise ValueError("wrench: the simulation was made without a wrench_body")
        check_shape("wrench", wrench, (self.num_envs, 6))
        self._wrench.copy_(wrench)
        self._wrench_set = True

    def _update_sensors(self, ids: np.ndarray | None) -> None:
        """Evaluate the sensors at the present state, no further than the last of them needs.

        mj_step leaves sensors at the state before its last substep. A bad state is put back to
        qpos0 and counted as a warning, as mj_step does.
        """
        if self._sensor_stage == _NO_STAGE:
            return
        with _quiet():
            try:
                self._batch.forward(ids, stage=self._sensor_stage)
            except SimulationError as error:
                self.diverged[torch.from_numpy(error.ids)] = True

    def _spread(self, variants: Sequence[mujoco.MjModel]) -> None:
        """Give simulation i whatever the variants differ in, as variants[i % K] has it.

        Derived constants are among it, as they were compiled.
        """
        if not variants:
            return
        kind = np.arange(self.num_envs) % len(variants)
        for name in sorted(MODEL_FIELDS):
            if "." in name:  # of the options, which variants share
                continue
            values = np.array([getattr(model, name) for model in variants])
            if (values != values[0]).any():
                self._batch.expand(name)[:] = values[kind]

    def _expand(self, name: str) -> Tensor:
        try:
            return torch.from_numpy(self._batch.expand(name))
        except ValueError as error:
            raise ValueError(f"model_fields: {error}") from None

    def _wrench_view(self, body: str | None) -> Tensor | None:
        if body is None:
            return None
        names = [self.model.body(i).name for i in range(1, self.model.nbody)]
        if body not in names:
            near = difflib.get_close_matches(body, names) or names
            raise ValueError(f"wrench_body: no body {body!r} in the model; nearest: {near}")
        return torch.from_numpy(self._batch.bind("xfrc_applied"))[:, self.model.body(body).id]


def _view(output: np.ndarray) -> Tensor:
    # The batch hands outputs out read-only and torch has no read-only tensors.
    writeable = output.view()
    writeable.flags.writeable = True
    return torch.from_numpy(writeable)


def _ids(which: Tensor) -> Tensor:
    return which.nonzero()[:, 0] if which.dtype == torch.bool else which


def processors() -> int:
    """Processors that this process may use, which a container makes fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MuJoCo from printing warnings and leaving MUJOCO_LOG.TXT: `diverged` tells of them."""
    config = mujoco.MjLogConfig.get()
    quiet = copy.copy(config)
    quiet.logto_file = False
    quiet.logto_console = False
    quiet.set()
    try:
        yield
    finally:
        config.set()

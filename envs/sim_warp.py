"""Many simulations on an NVIDIA GPU: `BatchSim` over MuJoCo Warp."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import mujoco
import mujoco_warp as mjw
import torch
import warp as wp
from torch import Tensor

from . import warp_model
from .rows import check_shape, count, put
from .sim import Sensors

wp.set_module_options({"enable_backward": False})

# MuJoCo's integration state. Fields that a model has none of are left out.
_STATE = (
    *("time", "qpos", "qvel", "act", "history", "qacc_warmstart", "plastic", "ctrl"),
    *("qfrc_applied", "xfrc_applied", "eq_active", "mocap_pos", "mocap_quat", "userdata"),
)
# No setting mends the other kinds, and a solver that stops at its last iteration is none.
_OF_ROWS = wp.constant(int(mjw.OverflowType.NEFC | mjw.OverflowType.NJMAX_NNZ))
_OF_CONTACTS = wp.constant(
    int(mjw.OverflowType.BROADPHASE | mjw.OverflowType.NARROWPHASE | mjw.OverflowType.CCD)
)
# Sensors that need the poses of bodies and nothing that follows from them.
_OF_POSES = {
    int(getattr(mujoco.mjtSensor, f"mjSENS_{name}"))
    for name in ("FRAMEPOS", "FRAMEQUAT", "FRAMEXAXIS", "FRAMEYAXIS", "FRAMEZAXIS", "JOINTPOS")
}
_SENSOR_FLAG = int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
_NO_STAGE = int(mujoco.mjtStage.mjSTAGE_NONE)
_BAD = wp.constant(float(mujoco.mjMAXVAL))


@wp.func
def _is_bad(row: wp.array[wp.float32]) -> bool:
    for i in range(row.shape[0]):  # noqa: SIM110 (Warp has no generators)
        if not (wp.abs(row[i]) <= _BAD):  # so that nan is bad
            return True
    return False


@wp.kernel
def _watch(
    qpos0: wp.array2d[wp.float32],
    qpos: wp.array2d[wp.float32],
    qvel: wp.array2d[wp.float32],
    act: wp.array2d[wp.float32],
    ctrl: wp.array2d[wp.float32],
    qacc_warmstart: wp.array2d[wp.float32],
    diverged: wp.array[wp.bool],
):
    """Put a world in a bad state back to qpos0, as mj_step does, and say so."""
    world = wp.tid()
    bad_ctrl = _is_bad(ctrl[world])
    if bad_ctrl:
        for i in range(ctrl.shape[1]):
            ctrl[world, i] = 0.0
    # a step leaves its acceleration there
    bad = _is_bad(qpos[world]) or _is_bad(qvel[world]) or _is_bad(qacc_warmstart[world])
    if bad:
        for i in range(qpos.shape[1]):
            qpos[world, i] = qpos0[world % qpos0.shape[0], i]
        for i in range(qvel.shape[1]):
            qvel[world, i] = 0.0
            qacc_warmstart[world, i] = 0.0
        for i in range(act.shape[1]):
            act[world, i] = 0.0
    if bad or bad_ctrl:
        diverged[world] = True


@wp.kernel
def _note_room(
    nefc: wp.array[wp.int32],
    nacon: wp.array[wp.int32],
    ncollision: wp.array[wp.int32],
    kinds: wp.array[wp.int32],
    overflow: wp.array[wp.bool],
    tally: wp.array2d[wp.int32],
):
    """Accumulate kinds of overflow, most constraint rows, and most contacts of all worlds."""
    world = wp.tid()
    tally[0, world] = tally[0, world] | (kinds[world] & (_OF_ROWS | _OF_CONTACTS))
    kinds[world] = 0
    overflow[world] = tally[0, world] != 0
    tally[1, world] = wp.max(tally[1, world], nefc[world])
    # the broad phase keeps pairs of geoms in as much room as contacts have
    tally[2, world] = wp.max(tally[2, world], wp.max(nacon[0], ncollision[0]))


class WarpSim:
    """N simulations on one device; float32, and on a GPU not bit-equal from run to run.

    A step is one graph of kernels, recorded when its number of substeps is first met and
    launched on torch's current stream, so that torch and Warp keep their order without waiting
    for each other. Nothing in `step`, `commit` and `reset` waits for the device. Warp's CPU
    device records and replays the same graphs.

    Contacts of all simulations share one array of nconmax * N, and so do the pairs of geoms
    that come near each other; constraint rows have njmax in each simulation. What finds no room
    is left out of the physics and noted for `check`.

    `commit` recomputes the constants of every simulation; where nothing was written they come
    out as they were. A state given to `reset` that is not finite shows as divergence in the
    next step. A simulation that diverged is put back to qpos0.
    """

    masked: ClassVar[bool] = True

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        *,
        nconmax: int,
        njmax: int,
        model_fields: tuple[str, ...] = (),
        sensors: Sensors = "current",
        wrench_body: str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """See `make_sim` for the arguments and what they raise.

        device: of torch; None for the current CUDA device where there is one, else the CPU.
        """
        for key, value in ("num_envs", num_envs), ("sim.nconmax", nconmax), ("sim.njmax", njmax):
            if value < 1:
                raise ValueError(f"{key}: expected 1 or more, got {value}")
        self.model = copy.copy(model)
        self.num_envs = num_envs
        self.device = _torch_device(device)
        self._device = warp_model.start(self.device)
        with wp.ScopedDevice(self._device):
            self._m, self._fields = warp_model.put_model(self.model, num_envs, model_fields)
            self._d = warp_model.make_data(self.model, num_envs, nconmax, njmax)
            self._own = (
                wp.zeros(num_envs, dtype=wp.bool),
                wp.zeros(num_envs, dtype=wp.bool),
                wp.zeros((3, num_envs), dtype=wp.int32),
            )
        wp.synchronize_device(self._device)
        self.diverged, self.overflow, self._tally = map(wp.to_torch, self._own)
        self._state = {
            name: wp.to_torch(getattr(self._d, name))
            for name in _STATE
            if getattr(self._d, name).size
        }
        self._initial = {name: values[:1].clone() for name, values in self._state.items()}
        self.qpos, self.qvel = self._state["qpos"], self._state["qvel"]
        self._wrench = None if wrench_body is None else self._wrench_view(wrench_body)
        self._wrench_set = False
        self._sensor_stage = self._find_sensor_stage() if sensors == "current" else _NO_STAGE
        self._late = sensors == "late"
        if sensors == "none":  # a task that reads them all the same shall notice
            self.sensordata = torch.full(
                (num_envs, model.nsensordata), torch.nan, device=self.device
            )
        else:
            self.sensordata = wp.to_torch(self._d.sensordata)
        # only late ones are those of a simulation step, and of the last one
        self._m.opt.disableflags |= _SENSOR_FLAG
        self._groups = warp_model.derived_groups(self.model, model_fields)
        self._torch_stream: Any = None
        self._stream: Any = None
        self._load_kernels()
        self._step_graphs: dict[int, tuple[Tensor, wp.Graph]] = {}
        self._const_graph = self._record(self._run_const) if self._groups else None
        self._sensor_graph = self._record(self._run_sensors) if self._sensor_stage else None
        # So that no constant depends on which environments were committed.
        self._launch(self._const_graph)
        self._launch(self._sensor_graph)

    def per_env(self, field: str) -> Tensor:
        if field not in self._fields:
            declared = ", ".join(self._fields) or "none"
            raise KeyError(f"model field {field!r} was not declared; declared: {declared}")
        return self._fields[field]

    def commit(self, which: Tensor) -> None:
        self._launch(self._const_graph)

    def reset(self, which: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        check_shape("qpos", qpos, (count(which), self.model.nq))
        check_shape("qvel", qvel, (count(which), self.model.nv))
        new = self._initial | {"qpos": qpos, "qvel": qvel}
        for name, values in self._state.items():
            put(values, which, new[name].expand(count(which), *values.shape[1:]))
        self._launch(self._sensor_graph)

    def step(self, ctrl: Tensor, wrench: Tensor | None = None) -> None:
        if ctrl.ndim != 3 or ctrl.shape[1] == 0:
            raise ValueError(f"ctrl: expected (N, substeps, nu), got {tuple(ctrl.shape)}")
        substeps = ctrl.shape[1]
        check_shape("ctrl", ctrl, (self.num_envs, substeps, self.model.nu))
        if substeps not in self._step_graphs:
            self._step_graphs[substeps] = self._record_step(substeps)
        buffer, graph = self._step_graphs[substeps]
        buffer.copy_(ctrl.transpose(0, 1))
        self._apply(wrench)
        self._launch(graph)

    def check(self) -> None:
        kinds = self._tally[0]
        overflows = [((kinds & those) != 0).any() for those in (_OF_ROWS, _OF_CONTACTS)]
        of_rows, of_contacts, _, rows, contacts = torch.cat(
            (torch.stack(overflows), self._tally.amax(1))
        ).tolist()
        self._tally.zero_()
        self.overflow.zero_()
        found = []
        if of_rows:
            found.append(_too_few("sim.njmax", "constraint rows", self._d.njmax, rows))
        if of_contacts:
            nconmax, contacts = self._d.naconmax // self.num_envs, -(-contacts // self.num_envs)
            found.append(_too_few("sim.nconmax", "contacts", nconmax, contacts))
        if found:
            raise ValueError("; ".join(found))

    def state_dict(self) -> dict[str, Any]:
        return {
            "backend": "warp",
            "arrays": {name: values.clone() for name, values in self._state.items()},
            "diverged": self.diverged.clone(),
            "fields": {name: values.clone() for name, values in self._fields.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`.

        Raises:
            ValueError: the state is of another backend, model, number of environments or set of
                fields.
        """
        if state.get("backend") != "warp":
            raise ValueError("state: expected one of sim.backend warp, got one of cpu")
        for what, own in ("arrays", self._state), ("fields", self._fields):
            if set(state[what]) != set(own):
                raise ValueError(
                    f"state: its {what} are {sorted(state[what])}, the simulation's {sorted(own)}"
                )
            for name, values in own.items():
                check_shape(name, state[what][name], tuple(values.shape))
        for what, own in ("arrays", self._state), ("fields", self._fields):
            for name, values in own.items():
                values.copy_(state[what][name])
        self._wrench_set = self._wrench is not None
        self._launch(self._const_graph)
        self._launch(self._sensor_graph)
        self.diverged.copy_(state["diverged"])

    def _wrench_view(self, body: str) -> Tensor:
        try:
            return self._state["xfrc_applied"][:, self.model.body(body).id]
        except KeyError as error:
            raise ValueError(f"wrench_body: {error.args[0]}") from None

    def _apply(self, wrench: Tensor | None) -> None:
        """Write the wrench, or clear the last one; the state keeps it between calls."""
        if wrench is not None:
            if self._wrench is None:
                raise ValueError("wrench: the simulation was made without a wrench_body")
            check_shape("wrench", wrench, (self.num_envs, 6))
            self._wrench.copy_(wrench)
        elif self._wrench is not None and self._wrench_set:
            self._wrench.zero_()
        self._wrench_set = wrench is not None

    def _find_sensor_stage(self) -> int:
        """How far the state must be evaluated for the sensors."""
        if self.model.opt.disableflags & _SENSOR_FLAG:
            return _NO_STAGE
        return int(self.model.sensor_needstage.max(initial=_NO_STAGE))

    def _load_kernels(self) -> None:
        """Run everything once, since not every driver can load a kernel while it records."""
        with wp.ScopedDevice(self._device):
            self._run_const()
            self._run_step(wp.zeros((1, self.num_envs, self.model.nu), dtype=wp.float32))
            self._run_sensors()
        wp.synchronize_device(self._device)
        for name, values in self._state.items():
            values.copy_(self._initial[name].expand_as(values))
        for noted in (self.diverged, self.overflow, self._tally):
            noted.zero_()

    def _run_const(self) -> None:
        mjw.set_const(self._m, self._d, self._groups, restore=False)

    def _run_step(self, ctrl: wp.array) -> None:
        """ctrl: (substeps, N, nu)"""
        m, d = self._m, self._d
        diverged, overflow, tally = self._own
        diverged.zero_()
        state = (d.qpos, d.qvel, d.act, d.ctrl, d.qacc_warmstart)
        for substep in range(ctrl.shape[0]):
            if self.model.nu:
                wp.copy(d.ctrl, ctrl[substep])
            wp.launch(_watch, self.num_envs, [m.qpos0, *state, diverged])
            if self._late and substep == ctrl.shape[0] - 1:
                m.opt.disableflags &= ~_SENSOR_FLAG
            mjw.step(m, d)
            m.opt.disableflags |= _SENSOR_FLAG
            room = (d.nefc, d.nacon, d.ncollision, d.overflow)
            wp.launch(_note_room, self.num_envs, [*room, overflow, tally])
        wp.launch(_watch, self.num_envs, [m.qpos0, *state, diverged])
        self._run_sensors()

    def _run_sensors(self) -> None:
        """Evaluate the sensors at the present state, no further than the last of them needs."""
        m, d, stage = self._m, self._d, self._sensor_stage
        if stage == _NO_STAGE:
            return
        m.opt.disableflags &= ~_SENSOR_FLAG
        if stage == int(mujoco.mjtStage.mjSTAGE_ACC):
            mjw.forward(m, d)
        else:
            d.sensordata.zero_()
            if set(self.model.sensor_type.tolist()) <= _OF_POSES:
                mjw.fwd_kinematics(m, d)
            else:
                mjw.fwd_position(m, d, factorize=False)
            mjw.sensor_pos(m, d)
            if stage == int(mujoco.mjtStage.mjSTAGE_VEL):
                mjw.fwd_velocity(m, d)
                mjw.sensor_vel(m, d)
        m.opt.disableflags |= _SENSOR_FLAG

    def _record_step(self, substeps: int) -> tuple[Tensor, wp.Graph]:
        ctrl = wp.zeros(
            (substeps, self.num_envs, self.model.nu), dtype=wp.float32, device=self._device
        )
        graph = self._record(lambda: self._run_step(ctrl))
        wp.synchronize_device(self._device)
        return wp.to_torch(ctrl), graph

    def _record(self, run: Callable[[], None]) -> wp.Graph:
        with wp.ScopedDevice(self._device), wp.ScopedCapture(self._device) as capture:
            run()
        return capture.graph

    def _launch(self, graph: wp.Graph | None) -> None:
        if graph is None:
            return
        if self.device.type == "cuda":
            stream = torch.cuda.current_stream(self.device)
            # by handle: a torch.cuda.Stream is neither equal nor unequal to None
            if self._stream is None or stream.cuda_stream != self._torch_stream.cuda_stream:
                self._torch_stream, self._stream = stream, wp.stream_from_torch(stream)
        wp.capture_launch(graph, self._stream)


def _torch_device(device: torch.device | str | None) -> torch.device:
    """With an index, if of CUDA."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _too_few(key: str, what: str, room: int, needed: int) -> str:
    needed = max(needed, room + 1)
    enough = -(-needed * 6 // 40) * 8  # a fifth more, in steps of eight
    return (
        f"{key}: {room} {what} per environment are too few, {needed} were needed:"
        f" expected {enough} or more"
    )

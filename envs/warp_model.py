"""A model on MuJoCo Warp, some of whose fields differ from one simulation to the next."""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import os
import sys
from collections.abc import Iterator

import mujoco
import mujoco_warp as mjw
import numpy as np
import torch
import warp as wp
from torch import Tensor

_GROUPS = mjw.SetConstGroup
# What mjw.set_const writes, by the groups in which it can be asked to.
_DERIVED = {
    _GROUPS.FIXED: ("body_subtreemass", "geom_aabb", "geom_rbound"),
    _GROUPS.KIN0: (
        "tendon_length0",
        "eq_data",
        *("cam_pos0", "cam_poscom0", "cam_mat0"),
        *("light_pos0", "light_poscom0", "light_dir0"),
    ),
    _GROUPS.INERT0: (
        "dof_invweight0",
        "body_invweight0",
        "tendon_invweight0",
        "actuator_acc0",
    ),
}
# Inputs of fewer groups than all of them.
_NEEDED = {
    "geom_size": _GROUPS.FIXED,
    "body_inertia": _GROUPS.INERT0,
    "dof_armature": _GROUPS.INERT0,
    "geom_margin": _GROUPS(0),  # an input of MuJoCo's own, whose bounding volumes Warp has not
}
# Where these are zero throughout the model, Warp compiles their effect away.
_SWITCHES = {
    *("opt.density", "opt.viscosity", "opt.wind"),
    *("geom_adhesion", "geom_surfacevel", "actuator_armature", "actuator_damping"),
}


@functools.cache
def start(device: torch.device) -> wp.Device:
    """Warp's name for a device of torch; quiet, but for one line where it is a CPU.

    Raises:
        ValueError: Warp cannot use the CUDA device that torch can.
    """
    wp.config.log_level = wp.LOG_WARNING
    with contextlib.nullcontext() if torch.cuda.is_available() else _no_driver_warning():
        wp.init()
    if device.type == "cuda" and not wp.is_cuda_available():
        raise ValueError(
            "sim.backend: warp finds no CUDA device though torch does; expected a newer NVIDIA"
            " driver, or backend cpu"
        )
    # RANK is torchrun's: of several processes one says it
    if device.type == "cpu" and os.environ.get("RANK", "0") == "0":
        print(
            "note: MuJoCo Warp runs on the CPU, which is slow and meant for tests; it compiles"
            " for a minute the first time",
            file=sys.stderr,
        )
    return wp.device_from_torch(device)


def put_model(
    model: mujoco.MjModel, num_worlds: int, fields: tuple[str, ...]
) -> tuple[mjw.Model, dict[str, Tensor]]:
    """The model on Warp's current device, and live views (num_worlds, ...) of `fields`.

    Raises:
        ValueError: MuJoCo Warp lacks a feature of the model, or a field is not one that it can
            vary.
    """
    _refuse(model)
    for name in fields:
        _check_field(model, name)
    sizes = {name: num_worlds for name in fields if not name.startswith("opt.")}
    sizes |= {
        name: num_worlds
        for group, names in _DERIVED.items()
        if group & derived_groups(model, fields)
        for name in names
    }
    try:
        m = mjw.put_model(_with_box_contacts(model), sizes)
    except (NotImplementedError, ValueError) as error:
        raise _unsupported(" ".join(str(error).split())) from None
    views = {}
    for name in fields:
        option = name.removeprefix("opt.")
        if option != name:
            _batch_option(m.opt, option, num_worlds)
        array = getattr(m, name) if option == name else getattr(m.opt, option)
        views[name] = wp.to_torch(array).view(num_worlds, *_nominal(model, name).shape)
    m.opt.warn_overflow = 0
    m.opt.graph_conditional = not wp.get_device().is_cuda or wp.is_conditional_graph_supported()
    return m, views


def make_data(model: mujoco.MjModel, num_worlds: int, nconmax: int, njmax: int) -> mjw.Data:
    """Worlds at qpos0 on Warp's current device."""
    return mjw.make_data(_with_box_contacts(model), num_worlds, nconmax=nconmax, njmax=njmax)


def derived_groups(model: mujoco.MjModel, fields: tuple[str, ...]) -> int:
    """Groups of constants, for mjw.set_const, that follow from these fields."""
    groups = 0
    wraps = bool(model.nwrap)  # a tendon's length depends on the geoms that it wraps around
    for name in set(fields) & set(mujoco.MjModel._setconst_inputs):
        groups |= _GROUPS.ALL if wraps else _NEEDED.get(name, _GROUPS.ALL)
    return int(groups)


def _with_box_contacts(model: mujoco.MjModel) -> mujoco.MjModel:
    """A copy for which Warp collides boxes by MuJoCo's own function.

    Left alone it takes the general one for convex shapes, whose contact points between boxes
    are others than MuJoCo's in four steps of ten. The flag means nothing else to Warp.
    """
    model = copy.copy(model)
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_NATIVECCD)
    return model


def _refuse(model: mujoco.MjModel) -> None:
    """Refuse what has state that `WarpSim` does not know; mjw.put_model refuses what it lacks."""
    found = {
        "flexible bodies": model.nflex > 0,
        "sleeping": bool(model.opt.enableflags & int(mujoco.mjtEnableBit.mjENBL_SLEEP)),
        "delayed sensors": bool(model.sensor_history.any()),
    }
    if any(found.values()):
        raise _unsupported(", ".join(name for name, there in found.items() if there))


def _check_field(model: mujoco.MjModel, name: str) -> None:
    owner, plain = (model.opt, name[4:]) if name.startswith("opt.") else (model, name)
    kind = mjw.Option if name.startswith("opt.") else mjw.Model
    varying = [
        key
        for key, note in kind.__annotations__.items()
        if getattr(note, "shape", (0,))[:1] == ("*",) and hasattr(owner, key)
    ]
    if plain not in varying:
        prefix = name.removesuffix(plain)
        near = [prefix + key for key in difflib.get_close_matches(plain, varying)]
        hint = f"; nearest: {', '.join(map(repr, near))}" if near else ""
        raise ValueError(f"model_fields: warp cannot vary {name!r}{hint}")
    fixed = model.body_weldid[model.geom_bodyid] == 0
    if name in ("body_pos", "body_quat", "geom_pos", "geom_quat") and fixed.any():
        raise ValueError(f"model_fields: warp cannot vary {name!r}: geoms fixed to the world stay")
    simple = np.flatnonzero((model.body_simple != 0) & (model.body_dofnum > 0))
    if name in ("body_ipos", "body_iquat") and len(simple):
        bodies = ", ".join(repr(model.body(i).name) for i in simple)
        raise ValueError(f"model_fields: {name!r} needs simple='false' on body {bodies}")
    if name in _SWITCHES and not np.any(_nominal(model, name)):
        raise ValueError(f"model_fields: warp cannot vary {name!r} where it is zero in the model")


def _nominal(model: mujoco.MjModel, name: str) -> np.ndarray:
    owner = model.opt if name.startswith("opt.") else model
    return np.asarray(getattr(owner, name.removeprefix("opt.")))


def _batch_option(option: mjw.Option, name: str, num_worlds: int) -> None:
    """Give an option one row per world; mjw.put_model takes sizes of model fields only."""
    shared = getattr(option, name)
    rows = np.repeat(shared.numpy(), num_worlds, axis=0)
    batched = wp.array(rows, dtype=shared.dtype)
    batched._is_batched = True  # as put_model marks its own
    setattr(option, name, batched)


def _unsupported(what: str) -> ValueError:
    return ValueError(
        f"sim.backend: warp cannot simulate this model: {what}; expected backend cpu for it"
    )


@contextlib.contextmanager
def _no_driver_warning() -> Iterator[None]:
    """Warp's native library writes to stderr that there is no CUDA driver; we know."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)

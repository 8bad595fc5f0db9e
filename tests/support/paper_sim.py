"""A simulation without physics, in torch alone, on any device: also on "meta".

Tensors on the meta device have shapes and no numbers. Whatever runs on it never looks at a number,
so on a GPU it would never wait for one; and mixing in a tensor of the host is an error, as there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import mujoco
import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from widen.envs import batched
from widen.envs.rows import put


class PaperSim:
    """Joints jump to their last ctrl, the object stays; implements `BatchSim`."""

    masked: ClassVar[bool] = True

    def __init__(self, model: mujoco.MjModel, num_envs: int, device: torch.device, **more: Any):
        self.model, self.num_envs, self.device = model, num_envs, device
        self.qpos = self._zeros(model.nq)
        self.qvel = self._zeros(model.nv)
        self.sensordata = self._zeros(model.nsensordata)
        self.diverged = torch.zeros(num_envs, dtype=torch.bool, device=device)
        self.overflow = torch.zeros_like(self.diverged)
        joints = model.jnt_qposadr[model.actuator_trnid[:, 0]]
        self._joints = torch.as_tensor(np.array(joints), device=device, dtype=torch.long)
        self._fields = {}
        for name in more.get("model_fields", ()):
            owner, _, rest = name.rpartition(".")
            value = getattr(getattr(model, owner) if owner else model, rest)
            tile = torch.from_numpy(np.array(value)).float().to(device)
            self._fields[name] = tile.repeat(num_envs, *[1] * tile.ndim)

    def _zeros(self, width: int) -> Tensor:
        return torch.zeros(self.num_envs, width, device=self.device)

    def per_env(self, field: str) -> Tensor:
        return self._fields[field]

    def commit(self, which: Tensor) -> None:
        assert which.dtype == torch.bool

    def reset(self, which: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        put(self.qpos, which, qpos)
        put(self.qvel, which, qvel)

    def step(self, ctrl: Tensor, wrench: Tensor | None = None) -> None:
        self.qpos[:, self._joints] = ctrl[:, -1].to(self.qpos.dtype)

    def check(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"qpos": self.qpos.clone(), "qvel": self.qvel.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.qpos.copy_(state["qpos"])
        self.qvel.copy_(state["qvel"])


class _NoGenerator:
    """Stands for a torch.Generator of the meta device, which there is not."""

    def __init__(self, device: Any = "cpu") -> None:
        self.device = torch.device(device)

    def manual_seed(self, seed: int) -> _NoGenerator:
        return self


def _without_generator(draw: Any) -> Any:
    def drawn(*args: Any, generator: Any = None, **kwargs: Any) -> Tensor:
        return draw(*args, **kwargs)

    return drawn


class _NothingFromTheHost(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, result)):
            # a CPU scalar is passed to a kernel by value; anything longer is a copy that waits
            if isinstance(x, Tensor) and x.device.type == "cpu" and x.ndim:
                raise RuntimeError(f"{func} with a tensor of the host: not on meta")
        return result


@contextlib.contextmanager
def nothing_from_the_host(monkeypatch: Any) -> Iterator[None]:
    """No operation takes or makes a tensor of the host."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a tensor made of numbers of the host: not on meta")

    with monkeypatch.context() as patch, _NothingFromTheHost():
        for name in ("tensor", "as_tensor", "from_numpy"):
            patch.setattr(torch, name, refuse)
        yield


@contextlib.contextmanager
def on_meta(monkeypatch: Any) -> Iterator[None]:
    """`BatchedEnv` is made and runs on the meta device."""

    def make_sim(model: Any, num_envs: int, config: Any, **more: Any) -> PaperSim:
        return PaperSim(model, num_envs, torch.device("meta"), **more)

    with monkeypatch.context() as patch:
        patch.setattr(batched, "make_sim", make_sim)
        patch.setattr(torch, "Generator", _NoGenerator)
        for owner, name in ((torch, "rand"), (torch, "randn"), (torch, "randint")):
            patch.setattr(owner, name, _without_generator(getattr(owner, name)))
        patch.setattr(Tensor, "normal_", _without_generator(Tensor.normal_))
        yield

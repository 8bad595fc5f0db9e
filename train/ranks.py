"""The processes that train together: torchrun starts them, each has environments of its own.

All run the same program on the same config and keep equal networks, because they average their
gradients. Rank 0 alone writes, judges the curriculum and speaks. Without torchrun there is one
process, for which everything here is nothing.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from widen.envs.sim_cpu import processors

from .cli_errors import Told, one_line

TIMEOUT = timedelta(minutes=10)
"""for which a rank waits for the others; compiling kernels before the first step takes minutes"""
_FAREWELL = timedelta(seconds=20)
_GRACE = 10.0  # [s] that the device has after a stop signal; torchrun kills after 30

T = TypeVar("T")


class RankLost(RuntimeError):
    """Another process has died, or does not answer any more."""


class Ranks:
    """A process among those that train together; this class is the one that is alone.

    Methods that name other ranks must be called by all of them in the same order.
    """

    rank, world = 0, 1
    """this process's number, and how many there are"""
    local_rank, local_world = 0, 1
    """the same on this machine"""
    stop_requested = 0
    """number of the signal that asked this process to stop"""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and speaks."""
        return self.rank == 0

    def seed(self, seed: int, begun: int = 0) -> int:
        """Of everything random in this rank, and on rank 0 `seed` itself.

        begun: the iteration of the run in which this rank's episodes begin; a rank that joins a
        resumed run shall not repeat what one before it drew.
        """
        if self.first:
            return seed
        return int(np.random.SeedSequence([seed, self.rank, begun]).generate_state(1)[0])

    def threads(self, wanted: int) -> int:
        """CPU threads for a setting in which 0 means all: this process's part of the machine."""
        return wanted or max(1, processors() // self.local_world)

    def mean_(self, x: Tensor) -> Tensor:
        """x becomes its mean over all ranks, to the last bit the same everywhere; returns x."""
        return x

    def stack(self, x: Tensor) -> Tensor:
        """x (...) of every rank as (world, ...)."""
        return x[None]

    def copy_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of rank 0."""

    def gather(self, item: T) -> list[T]:
        """Every rank's object, in order, on rank 0; nothing elsewhere. Tensors must be the CPU's."""
        return [item]

    def broadcast(self, item: T) -> T:
        """The object of rank 0."""
        return item

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        return number

    def agree(self, work: Callable[[], T]) -> T:
        """Do something in which users' mistakes surface; it must not talk to other ranks.

        Raises:
            ValueError: on rank 0, if any rank met a mistake; `Told` on the others.
        """
        return work()

    def fail(self, error: Exception) -> NoReturn:
        """Raise an error that all ranks have in common: rank 0 that one, the others `Told`."""
        raise error

    def claim(self) -> bool:
        """Whether this rank is the first to have bad news of its own, and so tells the user."""
        return True

    def wait(self, device: torch.device) -> None:
        """Call it before reading results of `mean_` or `stack` that were computed on a device.

        To read a tensor waits too, but deafly: where another process has died NCCL's kernels do
        not end, and meanwhile no signal handler of Python's runs.

        Raises:
            RankLost: the device does not finish.
        """

    def leave(self) -> None:
        """No rank will talk to another one again."""


@contextmanager
def _listening() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLost(_reason(error)) from error


def _reason(error: RuntimeError) -> str:
    """Of gloo's message, which begins with its own line of code and ends with advice."""
    return re.sub(r"^\[.*?\] ", "", str(error).strip()).splitlines()[0].split(". ")[0]


class Processes(Ranks):
    """One of several processes; tensors on a GPU travel by NCCL, everything else by gloo."""

    def __init__(self) -> None:
        """Find the others by the environment variables that torchrun sets.

        Raises:
            ValueError: they cannot be found.
        """
        variables = os.environ
        self.rank, self.world = int(variables["RANK"]), int(variables["WORLD_SIZE"])
        self.local_rank = int(variables.get("LOCAL_RANK", self.rank))
        self.local_world = int(variables.get("LOCAL_WORLD_SIZE", self.world))
        backend = "gloo"
        if self.local_rank < torch.cuda.device_count() and dist.is_nccl_available():
            torch.cuda.set_device(self.local_rank)
            backend = "cpu:gloo,cuda:nccl"
        try:
            store, *_ = next(rendezvous("env://", timeout=TIMEOUT))
            # torchrun's store may outlive the processes, with the addresses of those it restarts
            attempt = variables.get("TORCHELASTIC_RESTART_COUNT", "0")
            self._store = dist.PrefixStore(f"widen/attempt_{attempt}", store)
            dist.init_process_group(
                backend,
                store=self._store,
                rank=self.rank,
                world_size=self.world,
                timeout=TIMEOUT,
            )
        except RuntimeError as error:
            raise ValueError(
                f"torchrun: the processes do not find each other: {_reason(error)}"
            ) from None

    @_listening()
    def mean_(self, x: Tensor) -> Tensor:
        dist.all_reduce(x)
        return x.div_(self.world)

    @_listening()
    def stack(self, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(self.world)]
        dist.all_gather(parts, x)
        return torch.stack(parts)

    @_listening()
    def copy_(self, tensors: Iterable[Tensor]) -> None:
        for x in tensors:
            dist.broadcast(x, 0)

    @_listening()
    def gather(self, item: T) -> list[T]:
        parts: list[Any] = [None] * self.world
        dist.gather_object(item, parts if self.first else None)
        return parts if self.first else []

    @_listening()
    def broadcast(self, item: T) -> T:
        box = [item]
        dist.broadcast_object_list(box)
        return box[0]

    @_listening()
    def largest(self, number: int) -> int:
        box = torch.tensor(number)
        dist.all_reduce(box, dist.ReduceOp.MAX)
        return int(box)

    def agree(self, work: Callable[[], T]) -> T:
        result: Any = None
        mistake: str | None = None
        try:
            result = work()
        except Exception as error:
            if (mistake := one_line(error)) is None:
                raise
        mistakes = [text for text in self.gather(mistake) if text is not None]
        if (told := self.broadcast(mistakes[:1])) != []:
            self.fail(ValueError(told[0]))
        return result

    def fail(self, error: Exception) -> NoReturn:
        raise error if self.first else Told

    def claim(self) -> bool:
        try:
            return self._store.add("told", 1) == 1
        except RuntimeError:  # it was rank 0's, and rank 0 is gone
            return True

    def wait(self, device: torch.device) -> None:
        if device.type != "cuda":
            return
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(device))
        deadline = time.monotonic() + TIMEOUT.total_seconds()
        while not done.query():
            if self.stop_requested:
                deadline = min(deadline, time.monotonic() + _GRACE)
            if time.monotonic() > deadline:
                raise RankLost("the GPU waits for a process that does not answer")
            time.sleep(5e-4)

    def leave(self) -> None:
        # who closes its connections while another one still reads from them resets them
        with suppress(RuntimeError):  # of one that is gone nobody reads
            if self._store.add("leaving", 1) == self.world:
                self._store.set("left", "")
            self._store.wait(["left"], _FAREWELL)
        dist.destroy_process_group()


def join() -> Ranks:
    """This process's place among those that torchrun started, or on its own.

    Raises:
        ValueError: the others cannot be found.
    """
    return Processes() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Ranks()

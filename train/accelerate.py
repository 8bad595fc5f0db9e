"""How the networks are computed: threads, fewer bits, fused kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """In here torch's operations on the CPU use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def network_precision(precision: str, device: torch.device) -> Iterator[None]:
    """In here the layers of networks compute with `PPOConfig.precision`."""
    if precision == "bfloat16":
        # without the cache: a pass needs every weight once
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            yield
    else:
        with backward_precision(precision):
            yield


@contextmanager
def backward_precision(precision: str) -> Iterator[None]:
    """In here gradients are computed; autograd itself remembers bfloat16, but not tf32.

    TF32 holds for all products of matrices, and a rotation with 10 bits of mantissa is none: so it
    is switched on for the networks alone.
    """
    if precision != "tf32":
        yield
        return
    products = torch.backends.cuda.matmul
    before, products.allow_tf32 = products.allow_tf32, True
    try:
        yield
    finally:
        products.allow_tf32 = before


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` for arguments whose shapes never change.

    The result raises ValueError where there is nothing to compile with.
    """
    fast = torch.compile(function, dynamic=False)

    def call(*args: Any) -> Any:
        try:
            return fast(*args)
        except Exception as error:
            if type(error).__module__.split(".")[:2] not in (
                ["torch", "_dynamo"],
                ["torch", "_inductor"],
            ):
                raise
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                "ppo.compile: torch.compile fails here, expected a C++ compiler (and Triton on a"
                f" GPU); use ppo.compile=false: {reason}"
            ) from error

    return call

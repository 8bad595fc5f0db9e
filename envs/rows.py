"""Some rows of a batched array, named by ids or by a mask.

Where environments begin anew, `which` says which: int64 ids (K,), sorted and unique, with values
of K rows, or a bool mask (N,), with values of N rows of which only those under the mask count.
Ids do the least work; a mask keeps every shape independent of the data, so that a program on a
GPU never waits to learn how many environments there are.
"""

from __future__ import annotations

import torch
from torch import Tensor


def count(which: Tensor) -> int:
    """Rows that go with `which`: K for ids, N for a mask."""
    return which.shape[0]


def take(x: Tensor, which: Tensor) -> Tensor:
    """Rows of x (N, ...): a copy (K, ...) for ids, x itself for a mask."""
    return x if which.dtype == torch.bool else x[which]


def put(x: Tensor, which: Tensor, values: Tensor | float) -> None:
    """Write values, a number or (K, ...) for ids and (N, ...) for a mask, into x (N, ...)."""
    if isinstance(values, Tensor):
        values = values.to(x.dtype)
    if which.dtype != torch.bool:
        x[which] = values
    elif isinstance(values, Tensor):
        torch.where(_beside(which, x), values, x, out=x)
    else:
        x.masked_fill_(_beside(which, x), values)


def merge(x: Tensor, which: Tensor, values: Tensor | float) -> Tensor:
    """As `put`, into a new tensor."""
    if which.dtype != torch.bool:
        fresh = x.clone()
        put(fresh, which, values)
        return fresh
    if isinstance(values, Tensor):
        return torch.where(_beside(which, x), values.to(x.dtype), x)
    return x.masked_fill(_beside(which, x), values)


def _beside(mask: Tensor, x: Tensor) -> Tensor:
    """The mask (N,) in a shape that goes with x (N, ...)."""
    return mask.view(-1, *[1] * (x.ndim - 1))


def check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError, which names the array, if its shape is another."""
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(value.shape)}")

"""An update over the samples of all ranks: what each computes from its own becomes common."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .ranks import Ranks


def normalized(advantages: Tensor, ranks: Ranks) -> Tensor:
    """Advantages (minibatches, B), each minibatch brought to mean 0 and deviation 1.

    A minibatch is that of all ranks; each holds B samples of it.
    """
    if ranks.world == 1:
        mean = torch.stack([row.mean() for row in advantages])
        std = torch.stack([row.std() for row in advantages])
    else:
        x, count = advantages.double(), advantages.shape[1] * ranks.world
        mean, square = ranks.mean_(torch.stack((x.mean(1), x.square().mean(1))))
        var = (square - mean.square()).clamp(min=0.0) * (count / (count - 1))
        mean, std = mean.float(), var.sqrt().float()
    return (advantages - mean[:, None]) / (std[:, None] + 1e-8)


def average_gradients(parameters: Iterable[Tensor], stats: Tensor, ranks: Ranks) -> Tensor:
    """Gradients become their means over all ranks; so do stats (n,), which are returned."""
    if ranks.world == 1:
        return stats
    trained = [p for p in parameters if p.grad is not None]
    flat = torch.cat([*(p.grad.flatten() for p in trained if p.grad is not None), stats])
    parts = ranks.mean_(flat).split([*(p.numel() for p in trained), len(stats)])
    for p, part in zip(trained, parts, strict=False):
        p.grad = part.view_as(p)
    return parts[-1]


def unexplained_variance(returns: Tensor, values: Tensor, ranks: Ranks) -> Tensor:
    """Var(return - value) / Var(return), a scalar."""
    x = torch.stack((returns - values, returns)).flatten(1)
    moments = torch.stack(torch.var_mean(x, dim=1, correction=0))
    var, mean = ranks.stack(moments).unbind(1)  # (world, 2) each
    unexplained, whole = var.mean(0) + mean.var(0, correction=0)
    return unexplained / whole

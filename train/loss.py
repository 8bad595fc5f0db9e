"""What an update of PPO minimises."""

from __future__ import annotations

import torch
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples
from torch import Tensor
from torch.nn import functional as F

from .buffer import SequenceSamples
from .policy import HandPolicy

STATS = ("policy_gradient_loss", "value_loss", "entropy_loss", "clip_fraction", "approx_kl", "loss")
"""what `clipped_loss` measures, in order, by the names of stable-baselines3's log"""


def clipped_loss(
    policy: HandPolicy,
    batch: DictRolloutBufferSamples | SequenceSamples,
    clip_range: float,
    entropy_coef: float,
    value_coef: float,
) -> tuple[Tensor, Tensor]:
    """PPO's clipped objective (Schulman et al., arXiv 1707.06347).

    Args:
        policy: that is trained.
        batch: B samples; their advantages are used as they are.
        clip_range: how far the probability ratio may move.
        entropy_coef, value_coef: weights beside the policy's loss.

    Returns:
        loss to minimise; `STATS` as one tensor without gradient, so that nothing waits for the
        device.
    """
    values, log_prob, entropy = policy.evaluate(batch)
    log_ratio = log_prob - batch.old_log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    policy_loss = -torch.min(batch.advantages * ratio, batch.advantages * clipped).mean()
    value_loss = F.mse_loss(values.flatten(), batch.returns)
    entropy_loss = -entropy.mean()
    loss = policy_loss + entropy_coef * entropy_loss + value_coef * value_loss
    with torch.no_grad():
        # Schulman's low-variance estimate, joschu.net/blog/kl-approx.html; never negative.
        kl = (ratio - 1.0 - log_ratio).mean()
        clip_fraction = ((ratio - 1.0).abs() > clip_range).float().mean()
        stats = torch.stack([policy_loss, value_loss, entropy_loss, clip_fraction, kl, loss])
    return loss, stats

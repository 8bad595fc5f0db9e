"""A learning rate that follows the divergence between the policies before and after an update."""

from __future__ import annotations

from .ppo_config import PPOConfig

_FACTOR = 1.3


def adapted(rate: float, kl: float, config: PPOConfig) -> float:
    """The next update's rate: one step toward `PPOConfig.target_kl`, within the rate's limits.

    Once per update. Per minibatch the rate oscillates.
    """
    target = config.target_kl
    if target is None:
        return rate
    if kl > 2.0 * target:
        return max(rate / _FACTOR, config.learning_rate_min)
    if kl < 0.5 * target:
        return min(rate * _FACTOR, config.learning_rate_max)
    return rate

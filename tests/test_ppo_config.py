from __future__ import annotations

import pytest
from pydantic import ValidationError

from widen.train.policy import PolicyConfig
from widen.train.ppo import PPOConfig, minibatch_size


def test_minibatches_must_divide_a_rollout():
    assert minibatch_size(512, PPOConfig()) == 2048
    with pytest.raises(ValueError, match=r"ppo\.minibatches: 10 environments x 16 steps = 160 "):
        minibatch_size(10, PPOConfig(minibatches=7))
    with pytest.raises(ValueError, match="possible are 4, 5, 8"):
        minibatch_size(10, PPOConfig(minibatches=6))
    with pytest.raises(ValueError, match=r"two or more$"):
        minibatch_size(1, PPOConfig(steps=1, minibatches=1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"gamma": 1.1},
        {"gamma": 1.0, "gamma_final": 0.9},
        {"gamma_final": 1.0},
        {"gamma_iterations": 10},
        {"minibatches": 0},
        {"clip_range": 1.0},
        {"learning_rate": 0.0},
        {"learning_rate": 0.01},
        {"learning_rate_min": 1e-3, "learning_rate_max": 1e-4},
        {"target_kl": 0.0},
        {"ent_coef": 0.0},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        PPOConfig(**wrong)  # type: ignore


def test_the_horizon_grows_evenly():
    config = PPOConfig(iterations=4, gamma=0.9, gamma_final=0.99)
    horizons = [10.0, 40.0, 70.0, 100.0, 100.0]  # control steps
    found = [1.0 / (1.0 - config.gamma_at(i)) for i in range(5)]
    assert found == pytest.approx(horizons)
    sooner = PPOConfig(iterations=9, gamma=0.9, gamma_final=0.99, gamma_iterations=4)
    assert [1.0 / (1.0 - sooner.gamma_at(i)) for i in range(5)] == pytest.approx(horizons)
    assert PPOConfig(gamma=0.7).gamma_at(100) == 0.7
    assert PPOConfig(iterations=1, gamma=0.5, gamma_final=0.9).gamma_at(0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "wrong", [{"hidden": [0]}, {"type": "gru"}, {"init_std": 0.0}, {"layers": [64]}]
)
def test_wrong_networks_are_refused(wrong: dict):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        PolicyConfig(**wrong)

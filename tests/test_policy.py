from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from widen.train.policy import HandPolicy, Normalizer, PolicyConfig


def observations(rows: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "actor": torch.randn(rows, 4, generator=generator) * 2 + 1,
        "critic": torch.randn(rows, 6, generator=generator) * 3 - 2,
    }


def make_policy(**config) -> HandPolicy:
    """Untrained, but with normalisers that have seen data and actions that reach the clip."""
    torch.manual_seed(0)
    box = {name: spaces.Box(-np.inf, np.inf, (n,)) for name, n in (("actor", 4), ("critic", 6))}
    actions = spaces.Box(-1.0, 1.0, (3,))
    policy = HandPolicy(spaces.Dict(box), actions, lambda _: 1e-3, PolicyConfig(**config))
    policy.update_normalizers(observations(100))
    with torch.no_grad():
        policy.action_net.weight.mul_(1000.0)
    return policy


def test_normalizer_equals_numpy_on_all_data_at_once():
    rng = np.random.default_rng(0)
    scales, shifts = np.array([1e-3, 1.0, 50.0, 0.0]), np.array([0.0, 3.0, -1e3, 7.0])
    batches = [rng.normal(size=(n, 4)) * scales + shifts for n in (1, 7, 1300, 2)]
    batches = [b.astype(np.float32) for b in batches]
    normalizer = Normalizer(4)
    for batch in batches:
        normalizer.update(torch.as_tensor(batch))
    rows = np.concatenate(batches).astype(np.float64)
    assert normalizer.count == len(rows)
    np.testing.assert_allclose(normalizer.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(normalizer.var, rows.var(0), rtol=1e-9, atol=1e-15)
    x = np.add(shifts, [[0.02, 1.0, 1e4, 0.05]]).astype(np.float32)
    expected = np.clip((x - rows.mean(0)) / np.maximum(rows.std(0), 0.1), -10.0, 10.0)
    np.testing.assert_allclose(normalizer(torch.as_tensor(x)), expected, rtol=1e-4)
    assert normalizer(torch.as_tensor(x))[0, 2] == 10.0


def test_mean_action_is_the_deterministic_prediction():
    policy = make_policy()
    obs = {k: v.numpy() for k, v in observations(7).items()}
    predicted, _ = policy.predict(obs, deterministic=True)
    with torch.no_grad():
        mean = policy.mean_action(torch.as_tensor(obs["actor"]))
    np.testing.assert_array_equal(predicted, mean.clamp(-1, 1).numpy())
    assert (np.abs(predicted) == 1).any()  # some are clipped
    single, _ = policy.predict({k: v[0] for k, v in obs.items()}, deterministic=True)
    np.testing.assert_allclose(single, predicted[0], rtol=1e-5, atol=1e-6)
    actor_only, _ = policy.predict({"actor": obs["actor"]}, deterministic=True)
    np.testing.assert_array_equal(actor_only, predicted)


def test_critic_alone_sees_the_privileged_entries():
    policy, obs = make_policy(), observations(7)
    other = {"actor": obs["actor"], "critic": obs["critic"] + 1.0}
    assert torch.equal(policy.get_distribution(obs).mode(), policy.mean_action(obs["actor"]))
    assert torch.equal(policy.get_distribution(obs).mode(), policy.get_distribution(other).mode())
    assert not torch.isclose(policy.predict_values(obs), policy.predict_values(other)).any()


def test_probabilities_equal_those_of_the_base_class():
    policy, obs, actions = make_policy(), observations(50), torch.randn(50, 3)
    theirs = ActorCriticPolicy.evaluate_actions(policy, obs, actions)
    for mine, expected in zip(policy.evaluate_actions(obs, actions), theirs, strict=True):
        torch.testing.assert_close(mine, expected)
    actions, values, log_prob = policy.sample(obs, torch.Generator().manual_seed(1))
    expected_values, expected_log_prob, _ = ActorCriticPolicy.evaluate_actions(policy, obs, actions)
    torch.testing.assert_close(values, expected_values.flatten())
    torch.testing.assert_close(log_prob, expected_log_prob)


def test_samples_have_the_initial_mean_and_deviation():
    policy, obs = make_policy(init_std=0.6), observations(20_000)
    actions, _, _ = policy.sample(obs, torch.Generator().manual_seed(0))
    noise = actions - policy.mean_action(obs["actor"])
    torch.testing.assert_close(noise.std(0), torch.full((3,), 0.6), rtol=0.03, atol=0.0)
    torch.testing.assert_close(noise.mean(0), torch.zeros(3), rtol=0.0, atol=0.02)


def test_network_widths_follow_the_config():
    policy = make_policy(hidden=[8, 5], critic_hidden=[7], activation="tanh")
    widths = {name: tuple(p.shape) for name, p in policy.named_parameters() if p.dim() == 2}
    assert list(widths.values()) == [(8, 4), (5, 8), (7, 6), (3, 5), (1, 7)]
    kinds = {type(m) for m in policy.mlp_extractor.modules()}
    assert nn.Tanh in kinds
    assert nn.ELU not in kinds


def test_policy_is_saved_and_loaded_as_the_library_does(tmp_path):
    policy, obs = make_policy(), observations(5)
    policy.save(str(tmp_path / "policy.pt"))
    loaded = HandPolicy.load(str(tmp_path / "policy.pt"), device="cpu")
    assert torch.equal(loaded.mean_action(obs["actor"]), policy.mean_action(obs["actor"]))
    assert torch.equal(loaded.predict_values(obs), policy.predict_values(obs))

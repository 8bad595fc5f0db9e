from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from widen.envs.batched import StepResult
from widen.train.policy import Normalizer, PolicyConfig
from widen.train.ppo import PPOConfig, WidenPPO, minibatch_size
from widen.train.vec_env import HandVecEnv


class LineEnv:
    """Points on lines, pushed toward a target; out of bounds fails, 12 steps are the limit."""

    def __init__(self, num_envs: int = 16, private: int = 2, nu: int = 2) -> None:
        self.num_envs, self.private, self.num_actions = num_envs, private, nu
        self.device = torch.device("cpu")
        self.num_actor_obs, self.num_critic_obs = 2 * nu, 2 * nu + private
        self.generator = torch.Generator().manual_seed(5)
        self.x = self.target = torch.zeros(num_envs, nu)
        self.age, self.total, self.score = torch.zeros(3, num_envs)

    def _random(self) -> torch.Tensor:
        return torch.rand(self.num_envs, self.num_actions, generator=self.generator) * 2 - 1

    def _obs(self) -> dict[str, torch.Tensor]:
        actor = torch.cat([self.x, self.target], -1)
        age = (self.age / 12.0).unsqueeze(-1).expand(-1, self.private)
        return {"actor": actor, "critic": torch.cat([actor, age], -1)}

    def reset(self) -> dict[str, torch.Tensor]:
        self.x, self.target = self._random(), self._random()
        self.age = torch.arange(self.num_envs).remainder(12).float()  # staggered
        self.total, self.score = torch.zeros(2, self.num_envs)
        return self._obs()

    def step(self, action: torch.Tensor) -> StepResult:
        self.x = self.x + 0.3 * action
        distance = (self.x - self.target).norm(dim=-1)
        effort = -0.01 * action.square().sum(-1)
        reward = effort - distance
        near = distance < 0.15
        self.age, self.total, self.score = self.age + 1, self.total + reward, self.score + near
        failed = self.x.abs().amax(-1) > 1.6
        truncated = (self.age >= 12) & ~failed
        done = failed | truncated
        episodes = {
            "env_ids": done.nonzero().flatten(),
            "score": self.score[done],
            "length": self.age[done],
            "return": self.total[done],
            "failed": failed[done],
        }
        final = self._obs()
        row = done.unsqueeze(-1)
        self.x = torch.where(row, self._random(), self.x)
        self.target = torch.where(row, self._random(), self.target)
        self.age, self.total, self.score = (x * ~done for x in (self.age, self.total, self.score))
        terms = {"effort": effort.mean(), "distance": -distance.mean()}
        return StepResult(self._obs(), reward, failed, truncated, final, episodes, terms)

    def state(self) -> dict:
        tensors = {k: getattr(self, k).clone() for k in ("x", "target", "age", "total", "score")}
        return tensors | {"generator": self.generator.get_state()}

    def load(self, state: dict) -> None:
        self.generator.set_state(state["generator"])
        for key in ("x", "target", "age", "total", "score"):
            setattr(self, key, state[key].clone())


def make(config: PPOConfig, env: LineEnv | None = None, **kwargs) -> WidenPPO:
    policy = kwargs.pop("policy_config", PolicyConfig(hidden=[16, 16]))
    vec_env = HandVecEnv(env or LineEnv(), privileged=True)  # type: ignore
    return WidenPPO(vec_env, config, policy, seed=3, device="cpu", **kwargs)


def learn(ppo: WidenPPO, iterations: int, callback: BaseCallback | None = None) -> WidenPPO:
    fresh = ppo.num_timesteps == 0
    ppo.learn(iterations * ppo.n_steps * ppo.n_envs, callback, reset_num_timesteps=fresh)
    return ppo


# ---- advantages


class ScriptedEnv(LineEnv):
    """Two environments whose critic observation is their value, by a policy made for it."""

    values = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 4.0], [4.0, 3.0]])
    rewards = torch.tensor([[1.0, 0.0], [5.0, 1.0], [3.0, 2.0]])
    terminated = torch.tensor([[False, False], [True, False], [False, False]])
    truncated = torch.tensor([[False, True], [False, False], [False, False]])

    def __init__(self) -> None:
        super().__init__(num_envs=2, private=0)
        self.t = 0

    def _obs(self) -> dict[str, torch.Tensor]:
        obs = torch.zeros(2, 4)
        obs[:, 0] = self.values[self.t]
        return {"actor": obs, "critic": obs.clone()}

    def step(self, action: torch.Tensor) -> StepResult:
        t, self.t = self.t, self.t + 1
        final = self._obs()
        if t == 0:
            final["critic"][1, 0] = 6.0
        if t == 1:
            final["critic"][0, 0] = 100.0  # a terminal state's value must not count
        ended = {key: torch.zeros(0) for key in ("score", "length", "return", "failed")}
        return StepResult(
            self._obs(),
            self.rewards[t],
            self.terminated[t],
            self.truncated[t],
            final,
            ended,
            {},
        )


def test_advantages_equal_hand_arithmetic_with_a_termination_and_a_truncation():
    config = PPOConfig(steps=3, minibatches=1, gamma=0.5, gae_lambda=0.5, reward_scale=1.0)
    ppo = make(config, ScriptedEnv(), policy_config=PolicyConfig(critic_hidden=[]))
    with torch.no_grad():
        ppo.policy.value_net.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    _, callback = ppo._setup_learn(6)
    assert ppo.collect_rollouts(ppo.env, callback, ppo.rollout_buffer, 3)
    # gamma = lambda = 1/2, so A_t = delta_t + A_{t+1} / 4.
    # Environment 0, values 1 2 3 | 4, rewards 1 5 3, terminated by its second step:
    #   delta_2 = 3 + 4/2 - 3 = 2, A_2 = 2
    #   delta_1 = 5 + 0   - 2 = 3, A_1 = 3 (nothing comes after a termination)
    #   delta_0 = 1 + 2/2 - 1 = 1, A_0 = 1 + 3/4
    # Environment 1, values 2 1 4 | 3, rewards 0 1 2, truncated by its first step at a state
    # that is worth 6:
    #   delta_2 = 2 + 3/2 - 4 = -1/2, A_2 = -1/2
    #   delta_1 = 1 + 4/2 - 1 = 2,    A_1 = 2 - 1/8
    #   delta_0 = 0 + 6/2 - 2 = 1,    A_0 = 1 (the next step is another episode)
    hand = torch.tensor([[1.75, 1.0], [3.0, 1.875], [2.0, -0.5]])
    torch.testing.assert_close(ppo.rollout_buffer.advantages, hand)
    torch.testing.assert_close(ppo.rollout_buffer.returns, hand + ScriptedEnv.values[:3])


# ---- one update against the library


class ActorEntry(BaseFeaturesExtractor):
    def __init__(self, space):
        super().__init__(space, space["actor"].shape[0])

    def forward(self, observations):
        return observations["actor"]


def test_rollout_and_update_equal_those_of_stable_baselines3(monkeypatch: pytest.MonkeyPatch):
    """Same start, same actions, same minibatches, and everything we added switched off."""
    steps, num_envs, epochs = 14, 16, 3
    config = PPOConfig(
        steps=steps,
        epochs=epochs,
        minibatches=4,
        target_kl=None,
        reward_scale=1.0,
        entropy_coef=0.01,
    )
    ours = make(config, LineEnv(num_envs, private=0))
    reference = PPO(
        ActorCriticPolicy,
        HandVecEnv(LineEnv(num_envs, private=0), privileged=True),  # type: ignore
        learning_rate=config.learning_rate,
        n_steps=steps,
        batch_size=ours.batch_size,
        n_epochs=epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        ent_coef=config.entropy_coef,
        vf_coef=config.value_coef,
        max_grad_norm=config.max_grad_norm,
        policy_kwargs={
            "net_arch": [16, 16],
            "activation_fn": nn.ELU,
            "features_extractor_class": ActorEntry,
        },
        seed=3,
        device="cpu",
    )
    ours.env.reset(), reference.env.reset()  # seed both in the same way before `learn` does
    start = {k: v.clone() for k, v in ours.policy.state_dict().items() if "extractor." not in k}
    start |= {k: v for k, v in ours.policy.state_dict().items() if k.startswith("mlp")}
    reference.policy.load_state_dict({k: v.clone() for k, v in start.items()})

    learn(ours, 1)

    buffer = ours.rollout_buffer
    remaining = iter(buffer.actions)

    def replay(obs, deterministic=False):
        actions = next(remaining)
        values, log_prob, _ = reference.policy.evaluate_actions(obs, actions)
        return actions, values, log_prob

    # Our generator drew all actions and then one permutation per epoch, step-major.
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        torch.empty(num_envs, 2).normal_(generator=generator)
    orders = [torch.randperm(steps * num_envs, generator=generator) for _ in range(epochs)]
    env_major = iter([((p % num_envs) * steps + p // num_envs).numpy() for p in orders])
    monkeypatch.setattr(reference.policy, "forward", replay)
    monkeypatch.setattr(np.random, "permutation", lambda n: next(env_major))
    reference.learn(steps * num_envs)

    assert buffer.episode_starts[1:].sum() > num_envs / 2  # episodes ended, most by time
    theirs = {
        name: torch.as_tensor(getattr(reference.rollout_buffer, name)).reshape(num_envs, steps).T
        for name in ("values", "log_probs", "advantages", "returns")
    }
    for name, expected in theirs.items():
        torch.testing.assert_close(getattr(buffer, name), expected, rtol=1e-5, atol=1e-5)
    end = ours.policy.state_dict()
    for name, expected in reference.policy.state_dict().items():
        assert not torch.equal(start[name], expected), f"{name} was not trained"
        torch.testing.assert_close(end[name], expected, rtol=1e-4, atol=2e-6)
    logged, expected_log = ours.logger.name_to_value, reference.logger.name_to_value
    names = [name for name in expected_log if name.startswith("train/")]
    assert len(names) == 11
    for name in names:
        assert logged[name] == pytest.approx(expected_log[name], rel=1e-3, abs=1e-5), name


# ---- normaliser


def test_normalizer_equals_numpy_on_all_data_at_once():
    rng = np.random.default_rng(0)
    scales, shifts = np.array([1e-3, 1.0, 50.0, 0.0]), np.array([0.0, 3.0, -1e3, 7.0])
    batches = [rng.normal(size=(n, 4)) * scales + shifts for n in (1, 7, 300, 2)]
    batches = [b.astype(np.float32) for b in batches]
    normalizer = Normalizer(4)
    for batch in batches:
        normalizer.update(torch.as_tensor(batch))
    rows = np.concatenate(batches).astype(np.float64)
    assert normalizer.count == len(rows)
    np.testing.assert_allclose(normalizer.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(normalizer.var, rows.var(0), rtol=1e-9, atol=1e-15)
    x = (shifts + [[0.02, 1.0, 1e4, 0.05]]).astype(np.float32)
    expected = np.clip((x - rows.mean(0)) / np.maximum(rows.std(0), 0.01), -10.0, 10.0)
    np.testing.assert_allclose(normalizer(torch.as_tensor(x)), expected, rtol=1e-4)
    assert normalizer(torch.as_tensor(x))[0, 2] == 10.0


def test_normalizers_see_each_rollout_once_and_after_its_update():
    ppo = make(PPOConfig(steps=12))
    normalizer = ppo.policy.vf_features_extractor.normalizer
    learn(ppo, 1)
    assert normalizer.count == 12 * 16
    rows = ppo.rollout_buffer.observations["critic"].flatten(0, 1).double()
    torch.testing.assert_close(normalizer.mean, rows.mean(0))
    assert normalizer.mean.shape == (6,)
    assert ppo.policy.pi_features_extractor.normalizer.mean.shape == (4,)
    learn(ppo, 2)
    assert normalizer.count == 3 * 12 * 16


# ---- policy


def test_mean_action_is_the_deterministic_prediction():
    ppo = learn(make(PPOConfig()), 3)
    obs = {k: v.numpy() for k, v in LineEnv(7).reset().items()}
    predicted, _ = ppo.policy.predict(obs, deterministic=True)
    with torch.no_grad():
        mean = ppo.policy.mean_action(torch.as_tensor(obs["actor"]))
    np.testing.assert_array_equal(predicted, mean.clamp(-1, 1).numpy())
    single, _ = ppo.predict({k: v[0] for k, v in obs.items()}, deterministic=True)
    np.testing.assert_allclose(single, predicted[0], rtol=1e-5, atol=1e-6)
    actor_only, _ = ppo.predict({"actor": obs["actor"]}, deterministic=True)
    np.testing.assert_array_equal(actor_only, predicted)


def test_critic_alone_sees_the_privileged_entries():
    policy = make(PPOConfig()).policy
    obs = LineEnv(7).reset()
    other = {"actor": obs["actor"], "critic": obs["critic"] + 1.0}
    torch.testing.assert_close(
        policy.get_distribution(obs).mode(), policy.mean_action(obs["actor"])
    )
    assert torch.equal(policy.get_distribution(obs).mode(), policy.get_distribution(other).mode())
    assert not torch.isclose(policy.predict_values(obs), policy.predict_values(other)).any()


def test_evaluate_actions_equals_the_base_class():
    policy = learn(make(PPOConfig()), 2).policy
    obs, actions = LineEnv(50).reset(), torch.randn(50, 2)
    ours = policy.evaluate_actions(obs, actions)
    theirs = ActorCriticPolicy.evaluate_actions(policy, obs, actions)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected)
    generator = torch.Generator().manual_seed(1)
    actions, values, log_prob = policy.sample(obs, generator)
    expected_values, expected_log_prob, _ = ActorCriticPolicy.evaluate_actions(policy, obs, actions)
    torch.testing.assert_close(values, expected_values.flatten())
    torch.testing.assert_close(log_prob, expected_log_prob)


def test_samples_have_the_initial_deviation():
    policy = make(PPOConfig(), policy_config=PolicyConfig(init_std=0.6)).policy
    actions, _, _ = policy.sample(LineEnv(4000).reset(), torch.Generator().manual_seed(0))
    assert actions.std().item() == pytest.approx(0.6, rel=0.03)


# ---- learning rate


@pytest.mark.parametrize(
    ("target_kl", "factor"), [(1e-7, 1 / 1.3), (1e3, 1.3), (None, 1.0)], ids=["down", "up", "off"]
)
def test_learning_rate_moves_once_per_iteration(target_kl: float | None, factor: float):
    ppo = make(PPOConfig(target_kl=target_kl, learning_rate=4e-4, learning_rate_max=1e-2))
    for n in range(1, 4):
        learn(ppo, 1)
        assert ppo.learning_rate == pytest.approx(4e-4 * factor**n)
    learn(ppo, 10)
    limits = ppo.config.learning_rate_min, ppo.config.learning_rate_max
    assert limits[0] <= ppo.learning_rate <= limits[1]
    if factor < 1:
        assert ppo.learning_rate == limits[0]


def test_learning_rate_stays_near_the_target():
    probe = learn(make(PPOConfig(target_kl=None)), 1)
    kl = probe.logger.name_to_value["train/approx_kl"]
    for target, moves in ((kl * 1.9, False), (kl / 1.9, False), (kl * 2.1, True), (kl / 2.1, True)):
        ppo = learn(make(PPOConfig(target_kl=target)), 1)
        assert (ppo.learning_rate != ppo.config.learning_rate) == moves


# ---- the whole


def test_learns_to_reach_a_target_on_a_line():
    ppo = make(PPOConfig(learning_rate_max=1e-2), LineEnv(64))
    means = []

    class Record(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            means.append(self.locals["result"].reward.mean().item())

    learn(ppo, 25, Record())
    assert np.mean(means[:2]) < -0.7
    assert np.mean(means[-3:]) > -0.4


def test_logs_carry_the_usual_keys_and_ours():
    ppo = make(PPOConfig(steps=12))
    seen: dict[str, float] = {}

    class Capture(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            seen.update(self.logger.name_to_value)

    dumped: list[dict[str, float]] = []
    ppo._setup_learn(1)
    dump = ppo.logger.dump
    ppo.logger.dump = lambda step: (dumped.append(dict(ppo.logger.name_to_value)), dump(step))  # type: ignore
    ppo.set_logger(ppo.logger)
    learn(ppo, 3, Capture())
    keys = set().union(*dumped)
    assert {
        *("rollout/ep_rew_mean", "rollout/ep_len_mean", "rollout/goals_mean", "rollout/drop_rate"),
        *("time/fps", "time/iterations", "time/total_timesteps", "reward/effort"),
        *("reward/distance", "time/share_simulation", "time/share_inference", "time/share_update"),
        *(f"train/{k}" for k in ("approx_kl", "clip_fraction", "entropy_loss", "std", "loss")),
        *(f"train/{k}" for k in ("explained_variance", "learning_rate", "value_loss")),
        "train/policy_gradient_loss",
    } <= keys
    last = dumped[-1]
    assert last["time/iterations"] == 3
    assert 0 <= last["rollout/drop_rate"] <= 1
    assert 1 <= last["rollout/ep_len_mean"] <= 12
    assert last["reward/effort"] < 0
    shares = [last[f"time/share_{k}"] for k in ("simulation", "inference", "update")]
    assert min(shares) > 0
    assert sum(shares) <= 1


def test_callbacks_of_the_library_stop_the_run():
    ppo = make(PPOConfig(steps=12))
    learn(ppo, 50, StopTrainingOnMaxEpisodes(max_episodes=2))
    # StopTrainingOnMaxEpisodes counts per environment.
    assert 0 < ppo.num_timesteps < 50 * 12 * 16


def test_threads_are_given_back():
    before = torch.get_num_threads()
    inside = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            inside.append(torch.get_num_threads())
            return True

    learn(make(PPOConfig(threads=2)), 1, Look())
    assert set(inside) == {1}
    assert torch.get_num_threads() == before


class SnapshotAt(BaseCallback):
    """What a checkpoint holds, written and read back at the start of one rollout."""

    def __init__(self, rollout: int) -> None:
        super().__init__()
        self.remaining = rollout
        self.file = io.BytesIO()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.remaining == 0:
            env = self.training_env.batched.state()
            torch.save({"ppo": self.model.training_state(), "env": env}, self.file)
        self.remaining -= 1


def test_resumed_run_is_equal_to_the_last_bit():
    config = PPOConfig(steps=10, threads=1)
    snapshot = SnapshotAt(3)
    whole = learn(make(config), 6, snapshot)
    snapshot.file.seek(0)
    state = torch.load(snapshot.file, weights_only=True)

    env = LineEnv()
    resumed = make(config, env)
    resumed.load_training_state(state["ppo"])
    env.load(state["env"])
    assert resumed.iteration == 3
    torch.manual_seed(123456)  # nothing may depend on torch's own generator
    learn(resumed, 3)

    assert resumed.num_timesteps == whole.num_timesteps == 960
    assert resumed.learning_rate == whole.learning_rate != config.learning_rate
    for name, expected in whole.policy.state_dict().items():
        assert torch.equal(resumed.policy.state_dict()[name], expected), name
    assert list(resumed.ep_info_buffer) == list(whole.ep_info_buffer)
    ours, theirs = resumed.logger.name_to_value, whole.logger.name_to_value
    for name in theirs:
        if name.startswith("train/"):
            assert ours[name] == theirs[name], name


def test_saves_and_loads_as_the_library_does(tmp_path):
    ppo = learn(make(PPOConfig()), 2)
    ppo.save(tmp_path / "model.zip")
    loaded = WidenPPO.load(tmp_path / "model.zip", device="cpu")
    obs = {k: v.numpy() for k, v in LineEnv(5).reset().items()}
    expected, _ = ppo.predict(obs, deterministic=True)
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], expected)
    assert loaded.learning_rate == ppo.learning_rate


def test_a_reward_that_is_not_finite_stops_the_run():
    env = LineEnv()
    good = env.step
    env.step = lambda action: good(action)._replace(reward=torch.full((16,), math.nan))
    with pytest.raises(FloatingPointError, match="after 256 steps"):
        learn(make(PPOConfig(), env), 1)


# ---- config


def test_minibatches_must_divide_a_rollout():
    assert minibatch_size(512, PPOConfig()) == 2048
    with pytest.raises(ValueError, match=r"ppo\.minibatches: 10 environments x 16 steps = 160 "):
        minibatch_size(10, PPOConfig(minibatches=7))
    with pytest.raises(ValueError, match="possible are 4, 5, 8"):
        minibatch_size(10, PPOConfig(minibatches=6))
    with pytest.raises(ValueError, match="two or more$"):
        minibatch_size(1, PPOConfig(steps=1, minibatches=1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"gamma": 1.1},
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


@pytest.mark.parametrize(
    "wrong", [{"hidden": [0]}, {"type": "gru"}, {"init_std": 0.0}, {"layers": [64]}]
)
def test_wrong_networks_are_refused(wrong: dict):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        PolicyConfig(**wrong)

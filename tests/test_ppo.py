from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from widen.envs.batched import StepResult
from widen.train.policy import PolicyConfig
from widen.train.ppo import PPOConfig, WidenPPO
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


class Memory(KVWriter):
    """Keeps what the logger writes, one dict per iteration."""

    def __init__(self) -> None:
        self.rows: list[dict] = []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append(dict(key_values))


def make(
    config: PPOConfig,
    env: LineEnv | None = None,
    policy_config: PolicyConfig | None = None,
) -> WidenPPO:
    """Its written log is `log_of(ppo)`."""
    vec_env = HandVecEnv(env or LineEnv(), privileged=True)  # type: ignore
    if config.threads == 0:  # more than one thread is slower at this size
        config = config.model_copy(update={"threads": 1})
    policy_config = policy_config or PolicyConfig(hidden=[16, 16])
    ppo = WidenPPO(vec_env, config, policy_config, seed=3, device="cpu")
    ppo.set_logger(Logger(None, [Memory()]))
    return ppo


def log_of(ppo: WidenPPO) -> list[dict]:
    return ppo.logger.output_formats[0].rows  # type: ignore


def learn(ppo: WidenPPO, iterations: int, callback: BaseCallback | None = None) -> WidenPPO:
    fresh = ppo.num_timesteps == 0
    ppo.learn(iterations * ppo.n_steps * ppo.n_envs, callback, reset_num_timesteps=fresh)
    return ppo


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
    logged, expected_log = log_of(ours)[0], reference.logger.name_to_value
    names = [name for name in expected_log if name.startswith("train/")]
    assert len(names) == 11
    for name in names:
        assert logged[name] == pytest.approx(expected_log[name], rel=1e-3, abs=1e-5), name


# ---- normaliser


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
    kl = log_of(probe)[0]["train/approx_kl"]
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
    learn(ppo, 3)
    assert len(log_of(ppo)) == 3
    last = log_of(ppo)[-1]
    assert {
        *("rollout/ep_rew_mean", "rollout/ep_len_mean", "rollout/goals_mean", "rollout/drop_rate"),
        *("time/fps", "time/iterations", "time/total_timesteps", "reward/effort"),
        *("reward/distance", "time/share_simulation", "time/share_inference", "time/share_update"),
        *(f"train/{k}" for k in ("approx_kl", "clip_fraction", "entropy_loss", "std", "loss")),
        *(f"train/{k}" for k in ("explained_variance", "learning_rate", "value_loss")),
        "train/policy_gradient_loss",
    } <= set(last)
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
    # It counts max_episodes for each of the 16 environments, which live 12 steps at the most.
    assert 0 < ppo.num_timesteps <= 2 * 12 * 16


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
    rows = [
        {key: value for key, value in row.items() if not key.startswith("time/")}
        for row in log_of(resumed) + log_of(whole)
    ]
    assert len(rows) == 9
    assert rows[:3] == rows[-3:]


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

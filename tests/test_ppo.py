from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from line_env import LineEnv, learn, log_of, make
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from widen.train.ppo import PPOConfig, WidenPPO
from widen.train.timing import Stopwatch
from widen.train.vec_env import HandVecEnv

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
    start = {
        k: v.clone()
        for k, v in ours.policy.state_dict().items()
        if k.startswith("mlp") or "extractor." not in k
    }
    reference.policy.load_state_dict(start)

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


class Rewards(BaseCallback):
    """Mean reward of every rollout's last step."""

    def __init__(self) -> None:
        super().__init__()
        self.means: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.means.append(self.locals["result"].reward.mean().item())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_learns_to_reach_a_target_on_a_line(precision: str):
    rewards = Rewards()
    config = PPOConfig(learning_rate_max=1e-2, precision=precision)  # type: ignore
    learn(make(config, LineEnv(64)), 40, rewards)
    assert np.mean(rewards.means[:2]) < -0.7
    assert np.mean(rewards.means[-3:]) > -0.4


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
    assert sorted(ppo.last_shares.values()) == sorted(shares)


# ---- precision and compilation


def test_lower_precision_is_the_networks_alone_and_nearly_the_same():
    exact = learn(make(PPOConfig(steps=12)), 2)
    rounded = learn(make(PPOConfig(steps=12, precision="bfloat16")), 2)
    expected = exact.policy.state_dict()
    differences = []
    for name, value in rounded.policy.state_dict().items():
        assert value.dtype == expected[name].dtype
        torch.testing.assert_close(value, expected[name], rtol=0.05, atol=2e-3)
        differences.append(not torch.equal(value, expected[name]))
    assert sum(differences) > len(differences) / 2
    for name in ("values", "log_probs", "actions"):
        theirs, ours = getattr(exact.rollout_buffer, name), getattr(rounded.rollout_buffer, name)
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
    # bfloat16 keeps 8 bits of a probability; it may not have been rounded to them
    log_probs = rounded.rollout_buffer.log_probs
    assert not torch.equal(log_probs, log_probs.bfloat16().float())


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_tf32_is_on_in_networks_only(precision: str, monkeypatch: pytest.MonkeyPatch):
    """In forward and backward passes, never in the simulation, and a user's own choice stays."""
    products = torch.backends.cuda.matmul
    env = LineEnv()
    ppo = make(PPOConfig(steps=12, precision=precision), env)  # type: ignore
    seen: dict[str, set[bool]] = {"simulation": set(), "forward": set(), "backward": set()}

    def look(place: str) -> None:
        seen[place].add(products.allow_tf32)

    step = env.step
    monkeypatch.setattr(env, "step", lambda action: (look("simulation"), step(action))[1])
    layer = ppo.policy.value_net
    layer.register_forward_hook(lambda *_: look("forward"))
    layer.register_full_backward_hook(lambda *_: look("backward"))
    learn(ppo, 1)
    on = {precision == "tf32"}
    assert seen == {"simulation": {False}, "forward": on, "backward": on}
    assert products.allow_tf32 is False


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_networks_compute_the_same(precision: str):
    from torch._dynamo.utils import counters

    settings = {"steps": 12, "epochs": 2, "precision": precision}
    plain = learn(make(PPOConfig(**settings)), 2)
    counters.clear()
    compiled = learn(make(PPOConfig(**settings, compile=True)), 2)
    # policy and loss, each once: neither a broken graph nor a change of the rate compiles again
    assert counters["stats"]["unique_graphs"] == 2
    assert plain.learning_rate == compiled.learning_rate != PPOConfig().learning_rate
    tolerance = 1e-5 if precision == "float32" else 1e-3
    for name, expected in plain.policy.state_dict().items():
        value = compiled.policy.state_dict()[name]
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def test_without_a_compiler_compilation_is_one_line(monkeypatch: pytest.MonkeyPatch):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("/nowhere/g++",))
    monkeypatch.setattr(config, "force_disable_caches", True)
    with pytest.raises(ValueError, match=r"^ppo\.compile: .*expected a C\+\+ compiler") as raised:
        learn(make(PPOConfig(compile=True)), 1)
    assert "\n" not in str(raised.value)


def test_a_gpu_is_asked_for_times_only_when_they_are_read(monkeypatch: pytest.MonkeyPatch):
    """Its events are scripted here: every recording is 10 ms after the one before."""
    waited = []

    class Event:
        clock = 0.0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            Event.clock += 10.0
            self.at = Event.clock

        def synchronize(self) -> None:
            waited.append(self)

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch = Stopwatch(torch.device("cuda"))
    for _ in range(3):
        with watch.section("simulation"):
            pass
        with watch.section("update"), watch.section("inner"):
            pass
    assert not waited
    assert watch.read() == pytest.approx({"simulation": 0.03, "inner": 0.03, "update": 0.09})
    assert waited
    assert watch.read() == {}


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

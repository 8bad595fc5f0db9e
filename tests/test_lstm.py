"""The policy with memory: against a plain loop over torch's own cell, in training and exported."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import SMALL, answer_of, widen
from gymnasium import spaces
from line_env import LineEnv, learn, make
from memory_env import MemoryEnv
from same_runs import assert_equal, newest
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn
from torch.func import functional_call

from widen.deploy.contract import TOLERANCE
from widen.deploy.export import PolicyGraph, describe, export_policy
from widen.deploy.runtime import OnnxPolicy
from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.sim import SimConfig
from widen.envs.task import task_class
from widen.train.evaluate import policy_step
from widen.train.policy import PolicyConfig
from widen.train.ppo import PPOConfig, WidenPPO
from widen.train.recurrent import Lstm, LstmPolicy, _Recurrence

SIZE = 8
LSTM = PolicyConfig(type="lstm", lstm_size=SIZE, hidden=[16])


def cell_of(lstm: Lstm) -> Callable[[Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """torch's own cell on the same parameters, which get its gradients."""
    size, width = lstm.weight_hh.shape[1], lstm.weight_ih.shape[1]
    cell, zeros = nn.LSTMCell(width, size), torch.zeros(4 * size)
    parameters = {**dict(lstm.named_parameters()), "bias_hh": zeros}
    parameters["bias_ih"] = parameters.pop("bias")
    return lambda x, state: functional_call(cell, parameters, (x, state))


def plain_loop(lstm: Lstm, x: Tensor, h: Tensor, c: Tensor, starts: Tensor) -> Tensor:
    """Environment by environment, step by step."""
    cell, rows = cell_of(lstm), []
    for env in range(x.shape[1]):
        state, outputs = (h[env], c[env]), []
        for t in range(len(x)):
            if starts[t, env]:
                state = torch.zeros_like(state[0]), torch.zeros_like(state[1])
            state = cell(x[t, env], state)
            outputs.append(state[0])
        rows.append(torch.stack(outputs))
    return torch.stack(rows, 1)


# ---- the layer


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0], ids=["no starts", "some", "only starts"])
def test_sequences_and_gradients_equal_a_loop_over_the_cell_of_torch(share: float) -> None:
    torch.manual_seed(0)
    lstm = Lstm(5, SIZE)
    steps, count = 9, 6
    x = torch.randn(steps, count, 5, requires_grad=True)
    h, c = torch.randn(2, count, SIZE)
    starts = (torch.rand(steps, count) < share).float()
    found, expected = lstm(x, h, c, starts), plain_loop(lstm, x, h, c, starts)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    got, plain = (
        torch.autograd.grad((y * weight).sum(), [x, *lstm.parameters()]) for y in (found, expected)
    )
    for a, b in zip(got, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_equal_finite_differences() -> None:
    torch.manual_seed(0)
    inputs, weight = torch.randn(4, 3, 8).double(), torch.randn(8, 2).double()
    h, c, keep = torch.randn(3, 2), torch.randn(3, 2), (torch.rand(4, 3, 1) > 0.3)

    def hidden(inputs: Tensor, weight: Tensor) -> Tensor:
        return _Recurrence.apply(inputs, weight, h.double(), c.double(), keep.double())  # type: ignore

    assert torch.autograd.gradcheck(hidden, (inputs.requires_grad_(), weight.requires_grad_()))


def test_one_step_is_the_cell_of_torch() -> None:
    torch.manual_seed(0)
    lstm = Lstm(5, SIZE)
    x, (h, c) = torch.randn(6, 5), torch.randn(2, 6, SIZE)
    for a, b in zip(lstm.step(x, h, c), cell_of(lstm)(x, (h, c)), strict=True):
        torch.testing.assert_close(a, b)


# ---- in training


class Look(BaseCallback):
    """Calls back at every step, and after every rollout before its update."""

    def __init__(self, step: Callable[[dict], Any], rollout: Callable[[], Any]) -> None:
        super().__init__()
        self.step, self.rollout = step, rollout

    def _on_step(self) -> bool:
        self.step(self.locals)
        return True

    def _on_rollout_end(self) -> None:
        self.rollout()


def trained(num_envs: int = 16, **config: Any) -> WidenPPO:
    settings = {"steps": 10, "threads": 1, "minibatches": 4, **config}
    return make(PPOConfig(**settings), LineEnv(num_envs), LSTM)


def test_state_of_every_environment_equals_a_loop_by_hand() -> None:
    """Over three rollouts with updates between; zero where an episode begins."""
    ppo = trained()
    policy: Any = ppo.policy
    by_hand: list[Any] = [None] * 16
    begun = []

    def step(seen: dict[str, Any]) -> None:
        cell = cell_of(policy.lstm)
        features = policy.pi_features_extractor.normalizer(ppo._last_obs["actor"])
        for env in range(16):
            if ppo._last_episode_starts[env]:
                by_hand[env] = torch.zeros(SIZE), torch.zeros(SIZE)
                begun.append(env)
            by_hand[env] = cell(features[env], by_hand[env])
            for found, expected in zip(seen["state"], by_hand[env], strict=True):
                torch.testing.assert_close(found[env], expected)

    learn(ppo, 3, Look(torch.no_grad()(step), lambda: None))
    assert len(begun) > 3 * 16


def test_an_update_sees_the_probabilities_of_the_rollout() -> None:
    """Sequences from the stored state give what single steps gave, resets inside included."""
    ppo = trained()
    checked = []

    def compare() -> None:
        buffer = ppo.rollout_buffer
        assert buffer.episode_starts[1:].sum() > 5
        for numbers in buffer.shuffled(ppo.batch_size):
            batch = buffer._get_samples(numbers)
            values, log_prob, _ = ppo.policy.evaluate(batch)
            torch.testing.assert_close(log_prob, batch.old_log_prob, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(values.flatten(), batch.old_values)
            checked.append(numbers)

    learn(ppo, 3, Look(lambda _: None, torch.no_grad()(compare)))
    assert len(checked) == 3 * 4
    assert torch.equal(torch.cat(checked[:4]).sort().values, torch.arange(160))
    steps, env_ids = checked[0].view(10, 4) // 16, checked[0].view(10, 4) % 16
    assert torch.equal(steps, torch.arange(10)[:, None].expand(10, 4))
    assert torch.equal(env_ids, env_ids[:1].expand(10, 4))


def test_gradient_of_the_policy_equals_that_of_the_loop() -> None:
    ppo = learn(trained(), 1)
    policy, buffer = ppo.policy, ppo.rollout_buffer
    assert isinstance(policy, LstmPolicy)
    batch: Any = buffer._get_samples(buffer.shuffled(ppo.batch_size)[0])
    features = policy._features(batch.observations["actor"])
    sequences = features.view(10, 4, -1)
    hidden = plain_loop(policy.lstm, sequences, *batch.lstm_states, batch.episode_starts)
    latent = torch.cat((features, hidden.flatten(0, 1)), -1)
    mean = policy.action_net(policy.mlp_extractor.policy_net(latent))
    noise = torch.distributions.Normal(mean, policy.log_std.exp())
    expected = noise.log_prob(batch.actions).sum(-1)
    found = policy.evaluate(batch)[1]
    torch.testing.assert_close(found, expected)
    actor = [policy.log_std, *policy.lstm.parameters(), *policy.action_net.parameters()]
    actor += policy.mlp_extractor.policy_net.parameters()
    got, plain = (
        torch.autograd.grad((y * batch.advantages).sum(), actor) for y in (found, expected)
    )
    for a, b in zip(got, plain, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def late_errors(kind: str) -> tuple[float, float]:
    """Squared error after the cue is gone, at the end of training: samples and their mean."""
    errors: list[float] = []
    config = PPOConfig(steps=8, learning_rate_max=1e-2, reward_scale=1.0)
    network = PolicyConfig(type=kind, lstm_size=16, hidden=[16], init_std=0.3)  # type: ignore
    ppo = make(config, MemoryEnv(48), network)
    learn(ppo, 30, Look(lambda seen: errors.append(seen["result"].terms["late_error"]), int))
    env, deterministic = MemoryEnv(48), []
    step, obs = policy_step(ppo.policy, env), env.reset()  # type: ignore
    fresh = torch.ones(48, dtype=torch.bool)
    for _ in range(48):
        result = step(obs, fresh)
        obs, fresh = result.obs, result.terminated | result.truncated
        deterministic.append(result.terms["late_error"])
    # the first episodes began before they were seen
    return float(np.mean(errors[-24:])), float(np.mean(deterministic[12:]))


def test_a_cue_is_remembered_past_the_end_of_a_rollout() -> None:
    """A rollout is 8 steps, an episode 12; without memory no error below 1 is possible."""
    assert min(late_errors("mlp")) > 0.9
    assert max(late_errors("lstm")) < 0.1


def test_resumed_run_is_equal_to_the_last_bit() -> None:
    file = io.BytesIO()
    whole = trained()

    def save() -> None:
        if whole.iteration == 3:  # in the middle of episodes: most states are not zero
            env: Any = whole.env
            file.seek(0)
            torch.save({"ppo": whole.training_state(), "env": env.batched.state()}, file)

    class AtStart(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            save()

    learn(whole, 6, AtStart())
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert [x.shape for x in state["ppo"]["own"]["policy_state"]] == [(16, SIZE)] * 2

    resumed = trained()
    resumed.load_training_state(state["ppo"])
    resumed.env.batched.load(state["env"])  # type: ignore
    learn(resumed, 3)
    assert_equal(resumed.training_state(), whole.training_state())

    forgetful = trained()
    state["ppo"]["own"]["policy_state"] = forgetful.policy.initial_state(16)
    forgetful.load_training_state(state["ppo"])
    forgetful.env.batched.load(state["env"])  # type: ignore
    learn(forgetful, 3)
    assert forgetful.training_state()["own"]["policy_state"][0].ne(whole._state[0]).any()


def test_a_new_learn_begins_without_memories() -> None:
    ppo = learn(trained(), 2)
    starts = []
    ppo.learn(160, Look(lambda _: None, lambda: starts.append(ppo.rollout_buffer.initial_state)))
    assert not torch.stack(starts[0]).any()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"minibatches": 5}, r"^ppo.minibatches: .* 16 environments do not make 5 .* 2, 4, 8$"),
        ({"precision": "bfloat16"}, r"^ppo.precision: bfloat16 .* expected float32 or tf32$"),
        ({"compile": True}, r"^ppo.compile: .* expected false$"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(**config)


# ---- as the library's users know it


def test_predict_takes_and_returns_the_state(tmp_path: Path) -> None:
    ppo = learn(trained(), 1)
    ppo.save(tmp_path / "model.zip")
    loaded = WidenPPO.load(tmp_path / "model.zip", device="cpu")
    env = LineEnv(5)
    obs, state = env.reset(), None
    carried = ppo.policy.initial_state(5)
    fresh = torch.ones(5, dtype=torch.bool)
    ended = 0
    for _ in range(30):
        action, state = loaded.predict(
            {"actor": obs["actor"].numpy()}, state, fresh.numpy(), deterministic=True
        )
        with torch.no_grad():
            expected, carried = ppo.policy.advance(obs["actor"], ppo.policy.begin(carried, fresh))
        np.testing.assert_array_equal(action, expected.clamp(-1, 1))
        result = env.step(torch.from_numpy(action))
        obs, fresh = result.obs, result.terminated | result.truncated
        ended += int(fresh.sum())
    assert ended > 5
    one, _ = loaded.predict({"actor": obs["actor"][0].numpy()}, deterministic=True)
    assert one.shape == (2,)
    with pytest.raises(TypeError, match="`advance`, which takes its state"):
        ppo.policy.mean_action(obs["actor"])


# ---- exported


def random_policy(env: BatchedEnv) -> LstmPolicy:
    """Normalisers that have seen data; a memory that is felt; actions that reach the clip."""
    torch.manual_seed(5)
    width = env.num_actor_obs
    seen = {"actor": spaces.Box(-9, 9, (width,)), "critic": spaces.Box(-9, 9, (7,))}
    actions = spaces.Box(-1, 1, (env.num_actions,))
    policy = LstmPolicy(spaces.Dict(seen), actions, lambda _: 1e-3, PolicyConfig(type="lstm"))
    policy.update_normalizers({"actor": torch.randn(512, width), "critic": torch.randn(512, 7)})
    with torch.no_grad():
        policy.action_net.weight.mul_(15.0)
        policy.lstm.weight_hh.mul_(2.0)
    return policy


@pytest.mark.parametrize("history", [1, 3])
def test_the_file_equals_torch_through_resets(history: int, tmp_path: Path) -> None:
    """50 steps of one world, driven by torch; episodes end one by one."""
    count, task = 6, "cube_rotate"
    config = EnvConfig(num_envs=count, history=history, episode_seconds=0.8)
    env = BatchedEnv(task, config=config, sim=SimConfig(threads=1), seed=3, stagger=True)
    policy = random_policy(env)
    graph = PolicyGraph(task_class(task).layout(env.scene), env.encoder, env.actions, policy)
    contract = describe(
        env.scene, task, graph, hand="leap", object_name=None, control_period=env.control_dt
    )
    report = export_policy(graph, contract, tmp_path / "policy.onnx")
    assert report.max_error <= TOLERANCE
    loaded = OnnxPolicy(report.path)
    assert loaded.verify() <= TOLERANCE
    described = [(s.name, s.input, s.output, s.shape) for s in loaded.contract.state]
    assert described[-2:] == [
        ("lstm_hidden", "state_lstm_hidden", "next_lstm_hidden", (128,)),
        ("lstm_cell", "state_lstm_cell", "next_lstm_cell", (128,)),
    ]
    assert len(described) == (4 if history == 1 else 6)
    assert not any(loaded.contract.state[-1].initial + loaded.contract.state[-2].initial)

    targets: list[Tensor] = []
    step = env.step
    env.step = lambda action: (step(action), targets.append(action))[0]  # type: ignore
    drive, obs = policy_step(policy, env), env.reset()
    loaded.reset(count)
    fresh, ended = torch.ones(count, dtype=torch.bool), 0
    for _ in range(50):
        loaded({name: x.numpy() for name, x in env.last_readings.items()})
        result = drive(obs, fresh)
        found = loaded.state["last_action"]
        np.testing.assert_allclose(found, targets[-1].clamp(-1, 1), atol=1e-4)
        obs, fresh = result.obs, result.terminated | result.truncated
        kept = loaded.state["lstm_cell"].copy()
        loaded.restart(fresh.nonzero()[:, 0].numpy())
        for name in ("lstm_hidden", "lstm_cell"):
            assert not loaded.state[name][fresh].any()
        np.testing.assert_array_equal(loaded.state["lstm_cell"][~fresh], kept[~fresh])
        assert np.abs(kept).max() > 0.1
        ended += int(fresh.sum())
    assert ended > 2 * count


def test_a_run_from_training_to_the_controller(tmp_path: Path) -> None:
    """Interrupted or not, the same numbers; then the file is verified and drives a hand."""
    config = tmp_path / "small.yaml"
    policy = {"type": "lstm", "lstm_size": SIZE, "hidden": [16]}
    config.write_text(yaml.safe_dump({**SMALL, "policy": policy}))
    whole, split = tmp_path / "whole", tmp_path / "split"
    answer_of("train", config, "ppo.iterations=4", "--run-dir", whole)
    answer_of("train", config, "ppo.iterations=2", "--run-dir", split)
    answer_of("train", config, "ppo.iterations=4", "--run-dir", split, "--resume")
    first, second = newest(whole), newest(split)
    for state in (first, second):
        assert state["ranks"][0]["ppo"]["policy_state"][0].any()
        del state["config"]
    assert_equal(first, second)

    evaluated = answer_of("eval", whole, "--episodes", "4")
    assert evaluated["episodes"] >= 4
    assert answer_of("verify", whole / "policy.onnx")["max_error"] <= TOLERANCE
    driven = widen("run", whole / "policy.onnx", "--robot", "sim", "--seconds", "1")
    assert driven.code == 0, driven.err

from __future__ import annotations

from typing import Any

import numpy as np
import paper_sim
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from widen.envs.batched import BatchedEnv, EnvConfig, Episodes, StepResult
from widen.randomization.config import RandomizationConfig
from widen.randomization.randomizer import Randomizer
from widen.train.buffer import DeviceRolloutBuffer, EndedEpisodes
from widen.train.policy import HandPolicy, PolicyConfig
from widen.train.ppo import PPOConfig, WidenPPO
from widen.train.vec_env import HandVecEnv


class ScriptedEnv:
    """Two environments whose first critic entry is their value, by a critic made for it."""

    num_envs, num_actor_obs, num_critic_obs, num_actions = 2, 4, 4, 2
    device = torch.device("cpu")
    generator = torch.Generator()

    values = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 4.0], [4.0, 3.0]])
    rewards = torch.tensor([[1.0, 0.0], [5.0, 1.0], [3.0, 2.0]])
    terminated = torch.tensor([[False, False], [True, False], [False, False]])
    truncated = torch.tensor([[False, True], [False, False], [False, False]])

    def __init__(self, masked: bool = False) -> None:
        self.t, self.masked = 0, masked

    def reset(self) -> dict[str, torch.Tensor]:
        return self._obs()

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
        nothing = torch.zeros(2)
        ended = Episodes(nothing > 0, nothing, nothing, nothing, nothing > 0)
        return StepResult(
            self._obs(),
            self.rewards[t],
            self.terminated[t],
            self.truncated[t],
            final,
            ended,
            {},
        )


@pytest.mark.parametrize("grown", [False, True], ids=["gamma", "gamma_final"])
@pytest.mark.parametrize("masked", [False, True], ids=["ids", "masks"])
def test_advantages_equal_hand_arithmetic_with_a_termination_and_a_truncation(
    masked: bool, grown: bool
):
    discount: dict = {"gamma": 0.2, "gamma_final": 0.5} if grown else {"gamma": 0.5}
    config = PPOConfig(steps=3, minibatches=1, gae_lambda=0.5, reward_scale=1.0, **discount)
    vec_env = HandVecEnv(ScriptedEnv(masked), privileged=True)  # type: ignore
    ppo = WidenPPO(vec_env, config, PolicyConfig(critic_hidden=[]), seed=0, device="cpu")
    with torch.no_grad():
        ppo.policy.value_net.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    _, callback = ppo._setup_learn(6)
    ppo.iteration = config.iterations - 1
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


ADR = {
    "curriculum": "adr",
    "parameters": {"joint_damping": {}, "joint_noise": {}, "action_latency": {}},
}


class StopAt(BaseCallback):
    """Ends a rollout before it is complete."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        return self.n_calls < self.steps


def test_nothing_waits_for_the_device_until_a_rollout_is_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor within an update until its figures are read."""
    with paper_sim.on_meta(monkeypatch):
        randomizer = Randomizer(RandomizationConfig.model_validate(ADR))
        randomizer.settle_every = 0
        env = BatchedEnv("fingertip_reach", config=EnvConfig(num_envs=8), perturbation=randomizer)
        ppo = on_the_device(env, PPOConfig(steps=6, minibatches=2), monkeypatch)
        callback = StopAt(5)
        callback.init_callback(ppo)
        env.step(torch.zeros(8, 16, device="meta"))  # constants of rotations are made at first use
        with paper_sim.nothing_from_the_host(monkeypatch):
            assert not ppo.collect_rollouts(ppo.env, callback, ppo.rollout_buffer, 6)
            assert ppo.rollout_buffer.pos == 4
            assert callback.locals["dones"].device.type == "meta"
            with torch.no_grad():
                last_values = ppo.policy.predict_values(ppo._last_obs)
            ppo.rollout_buffer.compute_returns_and_advantage(last_values, callback.locals["dones"])
            ppo.rollout_buffer.full = True
            stats = ppo._epoch(0.2)
        assert stats.shape == (2, 6)
        with pytest.raises(RuntimeError, match="meta"):
            ppo._log_update(stats[None], 0.2)


def on_the_device(env: BatchedEnv, config: PPOConfig, monkeypatch: pytest.MonkeyPatch) -> WidenPPO:
    """PPO wholly on meta, ready to collect."""
    # stable-baselines3 makes a policy on the CPU and moves it, but no optimiser can follow to meta;
    # and fused Adam, which on a GPU waits for nothing, has no kernel there
    made = HandPolicy.__init__

    def make_policy(self: HandPolicy, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.to("meta")
        self.optimizer = torch.optim.SGD(self.parameters(), lr=1e-3)

    draw = torch.randperm
    monkeypatch.setattr(HandPolicy, "__init__", make_policy)
    monkeypatch.setattr(torch, "randperm", lambda n, generator, device: draw(n, device=device))
    ppo = WidenPPO(HandVecEnv(env, privileged=True), config, seed=0, device="meta")
    ppo._last_obs = env.reset()
    ppo._last_episode_starts = torch.ones(env.num_envs, dtype=torch.bool, device="meta")
    ppo.set_logger(Logger(None, []))
    return ppo


def test_episodes_are_told_in_the_order_of_their_ends() -> None:
    """Step by step, then process by process, then environment by environment."""
    tables = []
    for process in range(2):
        ended = EndedEpisodes(2, 3, torch.device("cpu"))
        for rollout in range(2):  # the second one overwrites the first
            for step in range(2):
                number = torch.arange(3.0) + 10 * step + 100 * process + 1000 * rollout
                ended.add(
                    step,
                    Episodes(
                        counted=torch.tensor([True, step == 1, rollout == 0]),
                        score=number,
                        length=torch.tensor([4, 5, 6]),
                        returns=-number,
                        failed=torch.tensor([False, True, False]),
                    ),
                )
        tables.append(ended.table().tolist())
    entries = EndedEpisodes.read(tables)
    assert [entry["score"] for entry in entries] == [1000, 1100, 1010, 1011, 1110, 1111]
    assert entries[3] == {"r": -1011.0, "l": 5, "score": 1011.0, "failed": True}
    assert EndedEpisodes.read(tables[:1]) == [e for e in entries if e["score"] < 1100]


def filled_buffer() -> DeviceRolloutBuffer:
    """5 steps of 3 environments; every entry of a sample says which sample it is."""
    space = spaces.Dict(
        {"actor": spaces.Box(-np.inf, np.inf, (2,)), "critic": spaces.Box(-np.inf, np.inf, (4,))}
    )
    buffer = DeviceRolloutBuffer(5, space, spaces.Box(-1, 1, (2,)), "cpu", n_envs=3)
    for step in range(5):
        mark = 3.0 * step + torch.arange(3.0)
        column = mark.unsqueeze(-1)
        obs = {"actor": column.expand(-1, 2), "critic": column.expand(-1, 4)}
        buffer.add(obs, column.expand(-1, 2), mark, mark < 0, column, mark)
    return buffer


def test_minibatches_hold_every_sample_once_and_together():
    buffer = filled_buffer()
    buffer.advantages.copy_(buffer.rewards)
    buffer.returns.copy_(buffer.rewards)
    batches = list(buffer.get(5))
    assert len(batches) == 3
    for batch in batches:
        mark = batch.old_values
        for flat in (batch.old_log_prob, batch.advantages, batch.returns):
            assert torch.equal(flat, mark)
        for rows in (*batch.observations.values(), batch.actions):
            assert torch.equal(rows, mark.unsqueeze(-1).expand_as(rows))
    assert sorted(torch.cat([b.old_values for b in batches]).tolist()) == list(range(15))


def test_order_of_minibatches_comes_from_the_given_generator():
    buffer = filled_buffer()

    def orders(seed: int) -> list[list[float]]:
        buffer.generator = torch.Generator().manual_seed(seed)
        return [next(buffer.get()).old_values.tolist() for _ in range(2)]

    first = orders(1)
    torch.manual_seed(99)
    assert orders(1) == first
    assert first[0] != first[1]
    assert orders(2) != first

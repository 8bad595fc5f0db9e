from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces

from widen.envs.batched import StepResult
from widen.train.buffer import DeviceRolloutBuffer
from widen.train.policy import PolicyConfig
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

    def __init__(self) -> None:
        self.t = 0

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
    vec_env = HandVecEnv(ScriptedEnv(), privileged=True)  # type: ignore
    ppo = WidenPPO(vec_env, config, PolicyConfig(critic_hidden=[]), seed=0, device="cpu")
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

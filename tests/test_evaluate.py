"""Evaluation counts whole episodes, as many in every environment."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from widen.envs.batched import BatchedEnv, EnvConfig, Episodes
from widen.envs.sim import SimConfig
from widen.train.evaluate import evaluate


class Clockwork:
    """Two environments: episodes of 2 steps that drop with 1 goal, of 10 steps that reach 9."""

    lengths, goals = torch.tensor([2, 10]), torch.tensor([1.0, 9.0])

    def __init__(self) -> None:
        self.num_envs, self.device, self.divergences = 2, torch.device("cpu"), 0
        self.sim, self.checks = self, 0
        self.age = torch.zeros(2, dtype=torch.int64)

    def reset(self) -> dict[str, torch.Tensor]:
        return {}

    def check(self) -> None:
        self.checks += 1

    def step(self, obs: Any, fresh: torch.Tensor) -> Any:
        assert torch.equal(fresh, self.age == 0)
        self.age += 1
        ended = self.age == self.lengths
        ids = ended.nonzero()[:, 0]
        self.age[ids] = 0

        class Result:
            pass

        result: Any = Result()
        result.obs, result.terminated, result.truncated = {}, ended, torch.zeros(2) > 0
        first = torch.arange(2) == 0
        result.episodes = Episodes(ended, self.goals, self.lengths, self.goals, first & ended)
        return result


@pytest.mark.parametrize("episodes", [1, 4, 7])
def test_short_episodes_do_not_count_more_than_long_ones(episodes: int) -> None:
    env: Any = Clockwork()
    result = evaluate(env, env.step, episodes)
    assert result["episodes"] == 2 * -(-episodes // 2)
    assert env.checks == 1  # whether contacts were lost
    assert result["goals_mean"] == result["goals_median"] == 5.0
    assert result["drop_rate"] == 0.5
    assert sorted(result["goals"]) == [1.0] * (len(result["goals"]) // 2) + [9.0] * (
        len(result["goals"]) // 2
    )


def test_a_simulation_that_is_lost_again_and_again_ends_the_evaluation() -> None:
    config = EnvConfig(num_envs=2, episode_seconds=0.5)
    env = BatchedEnv("cube_rotate", config=config, sim=SimConfig(threads=1))

    def explode(obs: Any, fresh: torch.Tensor) -> Any:
        env.sim.qvel[:] = 1e12
        return env.step(torch.zeros(2, 16))

    with pytest.raises(ValueError, match="diverged 6 times"):
        evaluate(env, explode, 4)


def test_lost_episodes_are_told_and_not_counted() -> None:
    config = EnvConfig(num_envs=2, episode_seconds=0.25)
    env = BatchedEnv("cube_rotate", config=config, sim=SimConfig(threads=1))
    steps = 0

    def step(obs: Any, fresh: torch.Tensor) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            env.sim.qvel[1] = 1e12
        return env.step(torch.zeros(2, 16))

    result = evaluate(env, step, 2)
    assert (result["episodes"], result["diverged"]) == (2, 1)

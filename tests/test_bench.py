"""The benchmark's baseline against the batched environment, and the benchmark's own figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.sim import SimConfig
from widen.train.bench_env import CubeRotateEnv


def test_baseline_is_a_gymnasium_env() -> None:
    check_env(CubeRotateEnv(), skip_render_check=True)


def start_of(env: BatchedEnv, i: int) -> dict[str, object]:
    """Where the cube of environment i is put, for the baseline's `reset`."""
    pose = env.sim.qpos[i, env.scene.object_qpos : env.scene.object_qpos + 7].tolist()
    return {"position": pose[:3], "quat": tuple(pose[3:])}


@pytest.mark.parametrize(("spread", "end"), [(0.1, "time"), (0.6, "drop")])
def test_baseline_and_batched_environment_agree(spread: float, end: str) -> None:
    """Two programs that share no code tell the same story of whole episodes.

    Gentle actions keep the cube in the hand until time is up, wild ones drop it. One cube begins
    at its goal, so that it is reached and followed by the next.
    """
    num_envs = 6
    config = EnvConfig(num_envs=num_envs)
    batched = BatchedEnv("cube_rotate", config=config, sim=SimConfig(threads=1), seed=3)
    obs = batched.reset()["actor"]
    singles = [CubeRotateEnv() for _ in range(num_envs)]
    for i, single in enumerate(singles):
        first, _ = single.reset(seed=i, options=start_of(batched, i))
        np.testing.assert_allclose(first, obs[i].numpy(), atol=2e-6)
    pose = batched.task.readings()["object_quat"][0]
    batched.task.goal[0], batched.task.distance[0] = pose, 0.0
    singles[0]._goal, singles[0]._distance = tuple(pose.tolist()), 0.0
    running, ends, goals = set(range(num_envs)), [], 0
    generator = torch.Generator().manual_seed(0)
    while running:
        action = spread * torch.randn(num_envs, batched.num_actions, generator=generator)
        result = batched.step(action)
        for i in sorted(running):
            seen, reward, terminated, truncated, info = singles[i].step(action[i].numpy())
            np.testing.assert_allclose(seen, result.final_obs["actor"][i].numpy(), atol=2e-5)
            assert reward == pytest.approx(float(result.reward[i]), abs=2e-5)
            assert (terminated, truncated) == (
                bool(result.terminated[i]),
                bool(result.truncated[i]),
            )
            goals += info["goal"]
            if terminated or truncated:
                running.remove(i)
                ends.append("drop" if terminated else "time")
    assert end in ends
    assert goals > 0

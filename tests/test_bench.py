"""The benchmark's baseline against the batched environment, and the benchmark's own figures."""

from __future__ import annotations

import io
import json
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from rich.console import Console

from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.sim import SimConfig
from widen.randomization.parameters import CATALOGUE
from widen.train.bench import Size, bench, render
from widen.train.bench_cost import (
    PARAMETERS,
    Bare,
    CostSize,
    bench_env,
    env_block,
    parameter_costs,
)
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


NUM_ENVS = 8
TINY = Size(
    overrides=(f"env.num_envs={NUM_ENVS}", "ppo.steps=8", "ppo.threads=1"),
    blocks=2,
    rounds=1,
    default_samples=512,
    memory=(8, 16),
)


def test_bare_stepping_repeats_what_the_environment_did() -> None:
    """With every parameter: wrenches, contacts that roll, values of each joint, fading motors."""
    env = bench_env(NUM_ENVS, PARAMETERS)
    env.reset()
    bare, seen = Bare(env), {"wrench": False, "live": False, "changed": 0}
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        actions = 0.6 * torch.randn(8, env.num_envs, env.num_actions, generator=generator)
        recorded = env_block(env, actions).steps
        for before, after in pairwise(recorded):
            bare.repeat([before])
            same = np.setdiff1d(np.arange(env.num_envs), after.changed)
            np.testing.assert_array_equal(bare.batch.state[same], after.state[same])
            seen["wrench"] |= bool(np.any(before.wrench))
            seen["live"] |= bool(before.live)
            seen["changed"] += len(after.changed)
        bare.repeat(recorded[-1:])
    assert all(seen.values())
    assert env.sim.model.geom_condim.max() == 6


def test_time_is_that_of_the_steps_and_of_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that sleeps is the toolkit's own work, a simulation that sleeps is not."""
    env = bench_env(4, ())
    env.reset()
    sleepy = {"task": 0.02, "sim": 0.05}
    evaluate, step = env.task.evaluate, env.sim.step
    monkeypatch.setattr(
        env.task, "evaluate", lambda *a: (time.sleep(sleepy["task"]), evaluate(*a))[1]
    )
    monkeypatch.setattr(
        env.sim, "step", lambda *a: (time.sleep(sleepy["sim"]), step(*a))[1], raising=False
    )
    block = env_block(env, torch.zeros(3, 4, env.num_actions))
    assert (block.simulation > 0.05).all()
    assert (block.seconds - block.simulation > 0.02).all()
    assert (block.seconds < 0.5).all()


def test_every_parameter_has_its_costs() -> None:
    rows = parameter_costs(CostSize(num_envs=4, block=2, warm_up=1, blocks=1))
    assert [(row["name"], row["kind"]) for row in rows] == [
        (name, CATALOGUE[name].kind) for name in PARAMETERS
    ]
    assert all(np.isfinite([row["ms_per_batch_step"], row["simulation_ms"]]).all() for row in rows)


def test_figures_are_complete_and_fit_together() -> None:
    threads = torch.get_num_threads()
    result = bench(TINY)
    assert torch.get_num_threads() == threads
    assert json.loads(json.dumps(result)) == result
    bare, env = result["bare_steps_per_s"], result["env_steps_per_s"]
    assert result["env_over_bare"] == pytest.approx(env / bare, rel=0.02)
    train, theirs = result["train_steps_per_s"], result["sb3_steps_per_s"]
    assert result["train_over_sb3"] == pytest.approx(train / theirs, rel=0.02)
    assert theirs == max(result["sb3"].values())
    assert result["memory_mb_per_env"] < 50
    names = ["bare mujoco.batch", "+ task", "+ randomization", "+ policy inference", "+ PPO"]
    assert [row["layer"] for row in result["layers"]] == names
    rates = [row["steps_per_s"] for row in result["layers"]]
    assert (rates[0], rates[2]) == (bare, env)
    assert rates[3] < rates[2]
    for row in result["layers"]:
        assert row["steps_per_s"] == pytest.approx(8e3 / row["ms_per_batch_step"], rel=0.02)
    assert sum(row["parameters"] for row in result["groups"]) == len(PARAMETERS)
    assert set(result["measured"]) <= set(result)
    out = io.StringIO()
    Console(file=out, width=120).print(render(result))
    assert f"{bare:,}" in out.getvalue()
    assert result["machine"]["cpu"] in out.getvalue()

"""Simulations that diverge are begun anew and counted; nothing else notices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from saboteur import Saboteur
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.sim import SimConfig
from widen.envs.sim_cpu import CpuSim
from widen.randomization.config import RandomizationConfig
from widen.randomization.parameters import CATALOGUE, WORLD
from widen.randomization.randomizer import Randomizer
from widen.train.config import dump_config, parse_config
from widen.train.evaluate import evaluate
from widen.train.monitor import render, snapshot
from widen.train.run_folder import RunFolder, read_log
from widen.train.runner import Runner

BACKENDS = ["cpu", pytest.param("warp", marks=pytest.mark.warp)]
MODEL = [name for name, what in CATALOGUE.items() if what.kind == "model"]


def make_env(parameters: list[str], num_envs: int, backend: str = "cpu") -> BatchedEnv:
    """cube_rotate with these parameters drawn from their whole limits."""
    config = {"curriculum": "uniform", "parameters": dict.fromkeys(parameters)}
    return BatchedEnv(
        "cube_rotate",
        config=EnvConfig(num_envs=num_envs),
        sim=SimConfig(backend=backend, threads=1),  # type: ignore[arg-type]
        perturbation=Randomizer(RandomizationConfig.model_validate(config)),
        seed=3,
    )


def steps(env: BatchedEnv, count: int, size: float) -> Iterator[dict[str, torch.Tensor]]:
    """What every step gives, by name, for the same actions each time; all of it is finite."""
    generator = torch.Generator().manual_seed(0)
    env.reset()
    for _ in range(count):
        action = size * torch.randn(env.num_envs, env.num_actions, generator=generator)
        result = env.step(action.to(env.device))
        seen = {f"obs {name}": value for name, value in result.obs.items()}
        seen |= {f"final {name}": value for name, value in result.final_obs.items()}
        seen |= {name: getattr(result, name) for name in ("reward", "terminated", "truncated")}
        seen |= {"qpos": env.sim.qpos, "qvel": env.sim.qvel, "returns": result.episodes.returns}
        seen |= {f"term {name}": value for name, value in result.terms.items()}
        for name, value in seen.items():
            assert torch.isfinite(value).all(), name
        yield {name: value.clone() for name, value in seen.items() if value.ndim}


@pytest.mark.parametrize("masked", [False, True])
def test_untouched_environments_are_the_same_to_the_last_bit(
    masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With masks everything is drawn for all environments, so that even noise stays the same.

    With ids a new episode's draws follow those of the episodes before it, so there an environment
    is compared until its own first episode ends, and nothing random happens within it.
    """
    monkeypatch.setattr(CpuSim, "masked", masked)
    parameters = list(WORLD) if masked else MODEL
    envs = [make_env(parameters, 30) for _ in range(2)]
    saboteur = Saboteur(envs[0], every=20)
    size, count = (0.3, 70) if masked else (0.03, 45)
    untouched = torch.arange(30) >= len(saboteur.victims)
    ended, differ = 0, False
    for broken, whole in zip(*(steps(env, count, size) for env in envs), strict=True):
        over = (whole["terminated"] | whole["truncated"]) & untouched
        ended += int(over.sum())
        if not masked:
            untouched &= ~over
        for name in whole:
            assert torch.equal(broken[name][untouched], whole[name][untouched]), name
        differ |= not torch.equal(broken["qpos"], whole["qpos"])
    assert int(untouched.sum()) >= 15
    assert differ
    assert envs[0].divergences == envs[1].divergences + saboteur.count
    assert saboteur.count == 3 * (count // 20)
    assert ended > 0 or not masked


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_stays_finite_with_every_parameter(backend: str) -> None:
    env = make_env(list(WORLD), 10, backend)
    saboteur = Saboteur(env, every=10)
    for _ in steps(env, 35, 0.5):
        pass
    assert saboteur.count == 3
    assert env.divergences >= 3


def test_a_lost_episode_is_not_counted_in_an_evaluation() -> None:
    env = make_env(["joint_damping"], 20)
    env.max_steps = 30
    saboteur = Saboteur(env, every=40)  # in the second episode of each
    result = evaluate(env, lambda obs, fresh: env.step(torch.zeros(20, env.num_actions)), 40)
    assert result["episodes"] == len(result["goals"]) == 40
    assert result["diverged"] == saboteur.count > 0


def training(backend: str, iterations: int, folder: Path) -> Runner:
    config: dict[str, Any] = {
        "task": "fingertip_reach",
        "env": {"num_envs": 60, "episode_seconds": 4},
        "sim": {"backend": backend, "threads": 1},
        "policy": {"hidden": [64]},
        "ppo": {"iterations": iterations, "gamma": 0.9, "minibatches": 2, "threads": 1},
        "evaluation": {"episodes": 20},
        "randomization": {
            "curriculum": "adr",
            "adr": {"buffer": 2, "widen_at": 0.5, "narrow_at": 0.1},
            "parameters": {"joint_damping": {}, "joint_noise": {}, "action_latency": {}},
        },
    }
    validated = parse_config(config, "config")
    return Runner(validated, RunFolder.create(folder / "run", dump_config(validated)))


@pytest.mark.parametrize(
    ("backend", "iterations", "better"),
    [
        ("cpu", 14, None),
        pytest.param("warp", 14, None, marks=pytest.mark.warp),
        pytest.param("cpu", 80, 5.0, marks=pytest.mark.slow),
    ],
)
def test_training_goes_on_while_a_tenth_of_the_environments_diverges(
    backend: str, iterations: int, better: float | None, tmp_path: Path
) -> None:
    """better: by how much the return of an episode grows, which begins at about -50."""
    runner = training(backend, iterations, tmp_path)
    saboteur = Saboteur(runner.env)
    runner.train(lambda one, path: None)
    run = runner.run
    assert run is not None
    assert saboteur.count == 6 * (16 * iterations // 100)
    assert runner.env.divergences == saboteur.count
    assert all(torch.isfinite(x).all() for x in runner.policy.state_dict().values())

    intervals = read_log(run.adr_log).intervals
    expected = [6 * (16 * (i + 1) // 100) for i in range(iterations)]
    assert [line["diverged"] for line in intervals] == expected
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    assert [e.value for e in events.Scalars("rollout/diverged")] == expected
    for tag in events.Tags()["scalars"]:
        assert all(math.isfinite(e.value) for e in events.Scalars(tag)), tag
    state = snapshot(run)
    assert state["diverged"] == saboteur.count
    console = Console(width=160, record=True)
    console.print(render(state))
    assert f"diverged {saboteur.count} times" in console.export_text()
    if better is not None:
        returns = [x["return_mean"] for x in intervals if x["return_mean"] is not None]
        assert returns[-1] > returns[0] + better

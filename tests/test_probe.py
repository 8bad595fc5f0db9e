"""Room for contacts and rows, against counts that MuJoCo itself gives."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch

from widen.envs import probe
from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.perturbation import NoPerturbation
from widen.envs.sim import SimConfig, resolve_backend
from widen.randomization.config import RandomizationConfig
from widen.randomization.parameters import WORLD
from widen.randomization.randomizer import Randomizer


def room(randomizer: Randomizer | None = None, **sim: int) -> SimConfig:
    config = SimConfig(backend="warp", **sim)  # type: ignore[arg-type]
    return probe.with_room(
        config, randomizer or NoPerturbation(), "cube_rotate", "leap", None, EnvConfig()
    )


def test_counts_are_those_of_a_plain_loop() -> None:
    env = BatchedEnv("cube_rotate", config=EnvConfig(num_envs=3), sim=SimConfig(backend="cpu"))
    env.reset()
    datas = [mujoco.MjData(env.scene.model) for _ in range(3)]
    for data, qpos in zip(datas, env.sim.qpos.numpy(), strict=True):
        data.qpos[:] = qpos
    generator = torch.Generator().manual_seed(1)
    seen, alive = set(), [0, 1, 2]
    for _ in range(30):
        result = env.step(torch.rand(3, env.num_actions, generator=generator) * 2 - 1)
        alive = [i for i in alive if not result.terminated[i]]
        for i in alive:
            data = datas[i]
            data.ctrl[:] = env.target[i].numpy()
            for _ in range(env.substeps):
                mujoco.mj_step(env.scene.model, data)
            counts = int(env.sim.ncon[i]), int(env.sim.nefc[i])  # type: ignore[attr-defined]
            assert counts == (data.ncon, data.nefc)
            seen.add(counts)
    assert len(seen) > 5
    assert alive


def test_room_has_a_margin_over_what_a_longer_drive_needs() -> None:
    found = room()
    env = BatchedEnv(
        "cube_rotate",
        config=EnvConfig(num_envs=64),
        sim=SimConfig(backend="cpu"),
        seed=5,
    )
    env.reset()
    most = np.zeros(2, dtype=int)
    generator = torch.Generator().manual_seed(7)
    for step in range(200):
        if step % 5 == 0:
            action = torch.rand(64, env.num_actions, generator=generator) * 2 - 1
        env.step(action)
        counts = env.sim.ncon.max(), env.sim.nefc.max()  # type: ignore[attr-defined]
        most = np.maximum(most, [int(c) for c in counts])
    assert most[0] <= found.nconmax <= 4 * most[0]
    assert most[1] <= found.njmax <= 4 * most[1]
    assert found.nconmax % 8 == found.njmax % 8 == 0


def test_what_the_user_gave_stays() -> None:
    found = room(nconmax=11)
    assert found.nconmax == 11
    assert found.njmax > 8
    assert room(nconmax=11, njmax=12) == SimConfig(backend="warp", nconmax=11, njmax=12)


def test_randomisation_is_driven_to_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A curriculum that has not begun has zero width; the trial must not."""
    config = RandomizationConfig.model_validate(
        {"curriculum": "adr", "parameters": {"object_size": {"limits": [0.8, 1.2]}, "gravity": {}}}
    )
    driven = []
    real = probe._most

    def spy(env: BatchedEnv) -> tuple[int, int]:
        result = real(env)
        driven.append(env.perturbation.values)  # type: ignore[attr-defined]
        return result

    monkeypatch.setattr(probe, "_most", spy)
    randomizer = Randomizer(config)
    room(randomizer)
    size, gravity = driven[0].T
    assert size.min() < 0.82
    assert size.max() > 1.18
    assert gravity.max() > 1.45
    assert not hasattr(randomizer, "values")  # the run's own was not touched


def test_auto_means_cpu_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_backend(SimConfig()) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_backend(SimConfig()) == "warp"
    assert resolve_backend(SimConfig(backend="cpu")) == "cpu"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert resolve_backend(SimConfig()) == "cpu"
    with pytest.raises(ValueError, match=r"sim\.backend: 'warp' needs the package mujoco-warp"):
        resolve_backend(SimConfig(backend="warp"))


@pytest.mark.warp
def test_warp_finds_room_in_what_was_found() -> None:
    """Randomised to the limits, driven at random: nothing is lost, near pairs of geoms included."""
    pytest.importorskip("mujoco_warp")
    names = [name for name in WORLD if name != "action_latency"]
    entries = {"curriculum": "uniform", "parameters": dict.fromkeys(names)}
    env = BatchedEnv(
        "cube_rotate",
        config=EnvConfig(num_envs=16),
        sim=SimConfig(backend="warp"),
        perturbation=Randomizer(RandomizationConfig.model_validate(entries)),
    )
    env.reset()
    generator = torch.Generator(env.device).manual_seed(0)
    for _ in range(40):
        noise = torch.rand(16, env.num_actions, generator=generator, device=env.device)
        env.step(noise * 2 - 1)
    env.sim.check()
    assert not env.sim.overflow.any()

"""Environments told of by masks: the same as by ids, and never a wait for the device."""

from __future__ import annotations

from typing import Any

import paper_sim
import pytest
import torch
from torch import Tensor
from whole_catalogue import parameters_of

from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.rows import count, merge, put, take
from widen.envs.sim import SimConfig
from widen.envs.sim_cpu import CpuSim
from widen.randomization.config import RandomizationConfig
from widen.randomization.randomizer import Randomizer

TASKS = ["cube_rotate", "fingertip_reach"]


def randomizer(task: str, curriculum: str, **ranges: Any) -> Randomizer:
    entries = ranges or {name: {} for name in parameters_of(task)}
    config = {"curriculum": curriculum, "parameters": entries, "adr": {"buffer": 2}}
    return Randomizer(RandomizationConfig.model_validate(config))


@pytest.mark.parametrize("values", [7.0, "rows"])
@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 2, 2)])
def test_rows_by_ids_and_by_masks(shape: tuple[int, ...], values: Any) -> None:
    x, new = torch.rand(shape), torch.rand(shape)
    mask = torch.tensor([True, False, False, True, True, False])
    ids = mask.nonzero()[:, 0]
    expected = x.clone()
    for i in (0, 3, 4):
        expected[i] = 7.0 if values == 7.0 else new[i]
    assert (count(ids), count(mask)) == (3, 6)
    assert torch.equal(take(x, ids), x[[0, 3, 4]])
    assert take(x, mask) is x
    for which in (ids, mask):
        given = 7.0 if values == 7.0 else take(new, which)
        before = x.clone()
        assert torch.equal(merge(x, which, given), expected)
        assert torch.equal(x, before)
        written = x.clone()
        put(written, which, given)
        assert torch.equal(written, expected)


class DrawsByColumn:
    """Random numbers that depend on their column and the step, not on how many rows are drawn.

    What is drawn for K environments by ids and for N by a mask is then the same for each of them.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step = 0
        monkeypatch.setattr(torch, "rand", self._rand)
        monkeypatch.setattr(torch, "randn", self._randn)

    def _rand(self, *shape: int, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor:
        columns = torch.arange(shape[-1] if len(shape) > 1 else 1, dtype=torch.float64)
        # multiples of irrational numbers fill 0 to 1 evenly along columns and in time
        share = (0.37 + 0.6180339887 * columns + 0.4142135624 * self.step) % 1.0
        return share.to(dtype).expand(shape).clone()

    def _randn(self, *shape: int, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor:
        return torch.special.ndtri(self._rand(*shape, dtype=dtype))


def two_environments(task: str, monkeypatch: pytest.MonkeyPatch, **ranges: Any) -> list[BatchedEnv]:
    """The same one told of by ids and by masks."""
    envs = []
    for masked in (False, True):
        monkeypatch.setattr(CpuSim, "masked", masked)
        env = BatchedEnv(
            task,
            config=EnvConfig(num_envs=12, episode_seconds=0.7),
            sim=SimConfig(threads=1),
            perturbation=randomizer(task, "uniform", **ranges),
            seed=3,
            stagger=True,
        )
        if task == "fingertip_reach":  # one target for all, which is picked by randint
            env.task._draw = lambda rows, targets=env.task.targets: targets[:1].expand(rows, -1, -1)
        envs.append(env)
    return envs


FIXED = {
    "joint_damping": {"range": [1.5, 1.5]},
    "gravity": {"range": [1.2, 1.2]},
    "action_latency": {"range": [1.4, 1.4]},
}


@pytest.mark.parametrize("ranges", [FIXED, {}], ids=["fixed", "whole-catalogue"])
@pytest.mark.parametrize("task", TASKS)
def test_masks_do_what_ids_do(
    task: str, ranges: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Physics and sensors far from nominal, short episodes, drops: the very same numbers."""
    draws = DrawsByColumn(monkeypatch)
    envs = two_environments(task, monkeypatch, **ranges)
    first, second = (env.reset() for env in envs)
    assert (envs[0].perturbation.privileged().abs() > 1e-3).all()  # each parameter is at work
    generator, ended = torch.Generator().manual_seed(0), 0
    actions = torch.empty(40, 12, envs[0].num_actions).uniform_(-1, 1, generator=generator)
    for step, action in enumerate(actions):
        draws.step = step
        for key in first:
            assert torch.equal(first[key], second[key]), step
        if step in (15, 22):  # as an exploding contact would leave it
            for env in envs:
                env.sim.qvel[4, 0] = torch.nan
        a, b = (env.step(action) for env in envs)
        for name in ("reward", "terminated", "truncated"):
            assert torch.equal(getattr(a, name), getattr(b, name)), (step, name)
        for name, rows in a.episodes.rows().items():
            assert torch.equal(rows, b.episodes.rows()[name]), (step, name)
        assert torch.equal(a.final_obs["critic"], b.final_obs["critic"])
        for field in envs[0].perturbation.model_fields:
            one, other = (env.sim.per_env(field) for env in envs)
            assert torch.equal(one, other), (step, field)
        ended += int((a.terminated | a.truncated).sum())
        first, second = a.obs, b.obs
    assert ended > 20
    assert envs[0].divergences == envs[1].divergences == 2


@pytest.mark.parametrize("curriculum", ["adr", "uniform"])
@pytest.mark.parametrize("task", TASKS)
def test_nothing_in_a_step_waits_for_the_device(
    task: str, curriculum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with paper_sim.on_meta(monkeypatch):
        made = randomizer(task, curriculum)
        made.settle_every = 0
        env = BatchedEnv(task, config=EnvConfig(num_envs=8), perturbation=made, stagger=True)
        obs = env.reset()
        action = torch.zeros(8, env.num_actions, device="meta")
        result = env.step(action)  # constants of rotations are made at first use
        with paper_sim.nothing_from_the_host(monkeypatch):
            for _ in range(3):
                result = env.step(action)
        assert obs["actor"].device.type == result.final_obs["critic"].device.type == "meta"
        assert result.obs["actor"].shape == (8, env.num_actor_obs)


def test_the_meta_device_does_notice_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with paper_sim.on_meta(monkeypatch):
        env = BatchedEnv("cube_rotate", config=EnvConfig(num_envs=8))
        env.reset()
        action = torch.zeros(8, env.num_actions, device="meta")
        with pytest.raises(RuntimeError, match="meta"):
            float(env.score.sum())
        state, host = env.task.privileged(), torch.zeros(8, 1)
        wrong = (
            lambda ids: torch.cat((state, host), -1),  # two devices
            lambda ids: state + host.to("meta"),  # a copy
            lambda ids: state + torch.tensor([1.0], device="meta"),  # a copy of numbers
        )
        for privileged in wrong:
            env.task.privileged = privileged
            with (
                paper_sim.nothing_from_the_host(monkeypatch),
                pytest.raises(RuntimeError, match="meta"),
            ):
                env.step(action)

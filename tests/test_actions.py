"""From actions to joint targets, by hand arithmetic and in the simulation."""

import pytest
import torch

from widen.envs.actions import ActionPipeline
from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.sim import SimConfig

LOWER, UPPER = torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 2.0])


def pipeline(mode: str = "relative", scale: float = 0.2, **more: float) -> ActionPipeline:
    return ActionPipeline(mode, scale, [0.0, 0.5], LOWER.numpy(), UPPER.numpy(), **more)  # pyright: ignore


def new_target(made: ActionPipeline, action: float, target: float, joint_pos: float) -> float:
    """Of the first of two joints; the second stays at home."""
    rows = (torch.tensor([[first, second]]) for first, second in
            ((action, 0.0), (target, 0.5), (joint_pos, 0.5)))  # fmt: skip
    new = made(*rows)
    assert float(new[0, 1]) == 0.5
    return float(new[0, 0])


@pytest.mark.parametrize(
    ("action", "target", "joint_pos", "expected"),
    [
        (0.5, 0.1, 0.1, 0.2),  # near enough: as without a lead
        (1.0, 0.25, 0.0, 0.3),  # .45 would be too far ahead
        (1.0, 0.3, 0.0, 0.3),  # and it stays there
        (-1.0, 0.3, 0.0, 0.1),  # the way back begins at once
        (-1.0, -0.2, 0.0, -0.3),
        (0.0, 0.4, -0.1, 0.2),  # the joint was pushed away: the target follows
        (0.0, 0.4, -0.5, 0.2),  # but no faster than an action moves it
        (1.0, -0.9, 0.9, -0.7),
        (1.0, 0.95, 0.9, 1.0),  # the limit comes last
    ],
)
def test_a_lead(action: float, target: float, joint_pos: float, expected: float) -> None:
    found = new_target(pipeline(lead=0.3), action, target, joint_pos)
    assert found == pytest.approx(expected, abs=1e-6)


def test_without_a_lead_the_joint_does_not_matter() -> None:
    for joint_pos in (-1.0, 0.0, 0.9):
        assert new_target(pipeline(), 1.0, 0.7, joint_pos) == pytest.approx(0.9)
        assert new_target(pipeline("absolute", 0.8, smoothing=0.5), 1.0, 0.2, joint_pos) == (
            pytest.approx(0.5)
        )


def test_a_lead_of_absolute_targets() -> None:
    made = pipeline("absolute", 0.8, smoothing=0.5, lead=0.1)
    assert made.largest_move == 0.8
    assert new_target(made, 1.0, 0.2, 0.2) == pytest.approx(0.3)


@pytest.mark.parametrize("lead", [None, 0.15])
def test_targets_of_slow_joints(lead: float | None) -> None:
    """A full action moves a target by .2 rad, and motors of .27 N m cannot follow as fast."""
    config = EnvConfig(num_envs=4, target_lead=lead)
    env = BatchedEnv("cube_rotate", config=config, sim=SimConfig(threads=1), seed=0)
    env.reset()
    upper = env.actions.upper
    farthest = 0.0
    for _ in range(4):
        measured, before = env.last_readings["joint_pos"], env.target
        env.step(torch.ones(4, 16))
        expected = (before + 0.2).minimum(measured + lead if lead else upper).minimum(upper)
        torch.testing.assert_close(env.target, expected)
        farthest = max(farthest, float((env.target - measured).max()))
    assert (farthest > 0.3) if lead is None else (farthest <= lead + 1e-6)

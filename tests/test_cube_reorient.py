"""cube_reorient: goals, time limits, and the difficulty that a curriculum may set."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.rotations import cube_symmetries, quat_angle, quat_mul, random_rotation
from widen.envs.sim import SimConfig
from widen.randomization.config import RandomizationConfig
from widen.randomization.randomizer import Randomizer


def make(
    num_envs: int = 4, perturbation: Randomizer | None = None, name: str = "cube_reorient", **env
) -> BatchedEnv:
    config = EnvConfig(num_envs=num_envs, **env)
    return BatchedEnv(name, config=config, sim=SimConfig(threads=1), perturbation=perturbation)


def difficulty(curriculum: str, **about) -> Randomizer:
    parameters = {"goal_angle": {"step": 0.5, "limits": (0.7, math.pi), **about}}
    return Randomizer(
        RandomizationConfig.model_validate(
            {
                "curriculum": curriculum,
                "parameters": parameters,
                "adr": {"buffer": 2, "widen_at": 1, "narrow_at": 0.5, "evaluation_share": 1.0},
            }
        )
    )


def turn_object(env: BatchedEnv, which: int, quat: torch.Tensor) -> None:
    qpos, qvel = env.sim.qpos.clone(), torch.zeros_like(env.sim.qvel)
    qpos[which, env.scene.object_qpos + 3 : env.scene.object_qpos + 7] = quat.to(qpos)
    env.sim.reset(torch.tensor([which]), qpos[which : which + 1], qvel[which : which + 1])


def test_goals_do_not_depend_on_where_the_cube_is() -> None:
    """Uniform over all rotations: the relative angle has Haar measure's distribution."""
    env = make(4096)
    env.reset()
    _, quat = env.task.object_pose()
    share = np.sort((quat_angle(quat, env.task.goal)).numpy())
    share = (share - np.sin(share)) / math.pi
    assert np.abs(share - (np.arange(4096) + 0.5) / 4096).max() < 1.95 / 64
    # and so are the rotations in which episodes begin
    angle = np.sort(quat_angle(quat, quat.new_tensor([1.0, 0, 0, 0]).expand_as(quat)).numpy())
    share = (angle - np.sin(angle)) / math.pi
    assert np.abs(share - (np.arange(4096) + 0.5) / 4096).max() < 1.95 / 64


def test_a_reached_goal_counts_and_the_next_begins() -> None:
    env = make(2)
    env.reset()
    hold = torch.zeros(2, 16)
    env.step(hold)
    before = env.task.goal.clone()
    turn_object(env, 1, before[1])
    result = env.step(hold)
    assert env.score.tolist()[1] >= 1.0
    assert env.task.since[1] == 0.0
    assert env.task.since[0] == 2.0
    assert not torch.equal(env.task.goal[1], before[1])
    assert torch.equal(env.task.goal[0], before[0])
    assert not result.truncated.any()


def test_time_for_one_goal_ends_the_episode_without_failure() -> None:
    env = make(2, episode_seconds=60.0)
    env.reset()
    hold, steps = torch.zeros(2, 16), round(8.0 * 20)
    # goals that a cube at rest does not reach, and a new start for the clock of one
    env.task.goal = quat_mul(
        random_rotation(torch.zeros(2), env.generator), -env.task.object_pose()[1]
    )
    opposite = torch.tensor([[0.0, 1.0, 0, 0]]).expand(2, 4)
    ended = []
    for step in range(steps + 40):
        pose = env.task.object_pose()[1]
        env.task.goal = quat_mul(opposite, pose)
        if step == 30:
            env.task.since[1] = 0.0
        result = env.step(hold)
        assert not result.terminated.any()
        ended += [(step + 1, i) for i in result.truncated.nonzero()[:, 0].tolist()]
    assert ended == [(steps, 0), (steps + 30, 1)]


def test_the_policy_sees_the_same_cube_whichever_side_is_up() -> None:
    env = make(24)
    frame = env.encoder.frame
    readings = {name: x[:1].expand(24, -1).clone() for name, x in env.task.readings().items()}
    quat = random_rotation(torch.full((1,), math.pi), torch.Generator().manual_seed(3))
    goal = random_rotation(torch.full((1,), math.pi), torch.Generator().manual_seed(4))
    group = cube_symmetries()
    readings["object_quat"] = quat_mul(quat.expand(24, -1), group)
    readings["goal_quat"] = quat_mul(goal.expand(24, -1), group)
    seen = frame(readings, env.target, env.last_action)
    np.testing.assert_allclose(seen.numpy(), seen[:1].expand_as(seen).numpy(), atol=1e-5)
    # a cube that is turned and a goal that is not is another task
    readings["goal_quat"] = goal.expand(24, -1)
    assert (frame(readings, env.target, env.last_action)[1:] - seen[1:]).abs().amax(1).min() > 0.1


@pytest.mark.parametrize(
    ("curriculum", "about", "most"),
    [("none", {}, math.pi), ("uniform", {}, math.pi), ("uniform", {"range": (0.7, 2.0)}, 2.0)],
)
def test_fixed_difficulty(curriculum: str, about: dict, most: float) -> None:
    env = make(2000, difficulty(curriculum, **about))
    env.reset()
    _, quat = env.task.object_pose()
    assert env.task.goal_angle.allclose(torch.tensor(most))
    furthest = float(quat_angle(quat, env.task.goal).max())
    assert most - 0.1 < furthest < most + 1e-3


def test_difficulty_begins_low_widens_with_success_and_every_episode_takes_its_bound() -> None:
    randomizer = difficulty("adr")
    env = make(8, randomizer)
    env.reset()
    assert env.task.goal_angle.allclose(torch.tensor(0.7))
    _, quat = env.task.object_pose()
    assert float(quat_angle(quat, env.task.goal).max()) <= 0.7 + 1e-5
    hold = torch.zeros(8, 16)
    for _ in range(3):
        for i in range(8):
            turn_object(env, i, env.task.goal[i])
        env.step(hold)
    assert env.score.min() >= 1.0
    env.task.since[:] = 1000.0
    env.task.goal = quat_mul(env.task.object_pose()[1], torch.tensor([[0.0, 1.0, 0, 0]] * 8))
    result = env.step(hold)
    assert result.truncated.all()
    bound = float(randomizer.curriculum.bounds[0, 1])
    assert bound == pytest.approx(1.2)  # one move: later tickets were of the old bound
    low = float(randomizer.curriculum.bounds[0, 0])
    assert low == pytest.approx(0.7)
    turn_object(env, 0, env.task.goal[0])
    env._begin(torch.arange(8))
    assert env.task.goal_angle.allclose(torch.tensor(1.2))


def test_state_of_the_difficulty_is_in_a_checkpoint() -> None:
    env, other = make(3), make(3)
    env.reset(), other.reset()
    env.task.goal_angle[:] = 1.0
    env.task.since[:] = torch.tensor([1.0, 2.0, 3.0])
    other.load_state_dict(env.state_dict())
    assert torch.equal(other.task.goal_angle, env.task.goal_angle)
    assert torch.equal(other.task.since, env.task.since)


def test_a_task_without_such_goals_refuses_the_parameter() -> None:
    with pytest.raises(ValueError, match=r"parameters\.goal_angle: task cube_rotate does not know"):
        make(2, difficulty("uniform"), name="cube_rotate")


def test_settings_of_the_task() -> None:
    env = make(2, task={"success_angle": 0.1, "goal_seconds": 0.2})
    env.reset()
    hold, goal = torch.zeros(2, 16), env.task.goal[0].clone()
    for half, reached in ((0.055, False), (0.045, True)):
        off = torch.tensor([math.cos(half), 0.0, math.sin(half), 0.0])
        turn_object(env, 0, quat_mul(off, goal))
        assert bool(env.task.evaluate(hold).success[0]) == reached
    opposite = torch.tensor([[0.0, 1.0, 0, 0]]).expand(2, 4)
    env.task.since[:] = 1.0
    for late in (False, False, True):
        env.task.goal = quat_mul(opposite, env.task.object_pose()[1])
        assert (env.step(hold).truncated == late).all()
    for settings, message in (
        (
            {"succes_angle": 0.1},
            r"env\.task\.succes_angle: unknown setting; expected one of success_angle",
        ),
        ({"success_angle": 0.0}, r"env\.task\.success_angle: expected a number above 0, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make(2, task=settings)

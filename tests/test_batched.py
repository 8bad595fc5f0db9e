"""The batched environment: what ends, what is kept, what is counted, what is restored."""

import math
from types import SimpleNamespace

import pytest
import torch

from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.perturbation import NoPerturbation
from widen.envs.rotations import quat_angle
from widen.envs.sim import SimConfig

TASKS = ("cube_reorient", "cube_rotate", "fingertip_reach")


def make(task: str = "cube_rotate", num_envs: int = 8, seed: int = 0, **kwargs) -> BatchedEnv:
    stagger = kwargs.pop("stagger", False)
    config = EnvConfig(num_envs=num_envs, **kwargs)
    return BatchedEnv(task, config=config, sim=SimConfig(threads=1), seed=seed, stagger=stagger)


def actions(env: BatchedEnv, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(env.num_envs, env.num_actions, generator=generator)


@pytest.mark.parametrize("task", TASKS)
def test_smoke(task: str) -> None:
    env = make(task, episode_seconds=1.0)
    obs = env.reset()
    widths = {"actor": env.num_actor_obs, "critic": env.num_critic_obs}
    for _, action in zip(range(45), actions(env), strict=False):
        result = env.step(action)
        for each in (obs, result.obs, result.final_obs):
            for name, width in widths.items():
                assert each[name].shape == (8, width)
                assert each[name].dtype == torch.float32
                assert each[name].isfinite().all()
        assert result.reward.dtype == torch.float32
        assert set(result.terms) == set(env.weights)
        assert not (result.terminated & result.truncated).any()


def test_time_up_is_truncation_and_the_last_observation_is_kept() -> None:
    env = make(num_envs=4, episode_seconds=0.5, history=2)
    env.reset()
    hold = torch.zeros(4, 16)
    for _ in range(9):
        result = env.step(hold)
        assert not result.truncated.any()
        assert result.obs is result.final_obs
    before = env.sim.qpos.clone()
    result = env.step(hold)
    assert result.truncated.all()
    assert not result.terminated.any()
    frame = env.encoder.frame.width
    # the old episode's last frame follows the one before it; the new one has only itself
    assert not torch.equal(result.final_obs["actor"][:, :frame], result.obs["actor"][:, :frame])
    assert torch.equal(result.obs["actor"][:, :frame], result.obs["actor"][:, frame:])
    assert not torch.equal(
        result.final_obs["actor"][:, :frame], result.final_obs["actor"][:, frame:]
    )
    assert result.episodes.rows()["length"].tolist() == [10, 10, 10, 10]
    assert (env.age == 0).all()
    assert not torch.equal(before, env.sim.qpos)


def test_a_drop_terminates_and_costs() -> None:
    env = make(num_envs=3)
    env.reset()
    hold = torch.zeros(3, 16)
    env.step(hold)
    start = env.scene.object_qpos
    qpos, qvel = env.sim.qpos.clone(), env.sim.qvel.clone()
    qpos[1, start] += 0.3
    env.sim.reset(torch.tensor([1]), qpos[1:2], qvel[1:2])
    result = env.step(hold)
    assert result.terminated.tolist() == [False, True, False]
    assert not result.truncated.any()
    assert result.reward[1] < -19.0
    assert result.episodes.rows()["env_ids"].tolist() == [1]
    assert result.episodes.rows()["failed"].tolist() == [True]
    assert result.episodes.rows()["score"].tolist() == [0.0]


def test_goals_reached_by_turning_the_cube_by_hand() -> None:
    """The score and the goals against turns that the test itself makes."""
    env = make(num_envs=2)
    env.reset()
    start = env.scene.object_qpos
    ids = torch.tensor([0])
    goals = []
    for turn in range(3):
        goal = env.task.goal[0].clone()
        qpos, qvel = env.sim.qpos.clone(), torch.zeros_like(env.sim.qvel)
        qpos[0, start + 3 : start + 7] = goal.double()
        env.sim.reset(ids, qpos[:1], qvel[:1])
        result = env.step(torch.zeros(2, 16))
        assert env.score.tolist() == [turn + 1.0, 0.0]
        assert result.terms["goal"] > 0
        new = env.task.goal[0]
        assert quat_angle(new, goal) == pytest.approx(math.pi / 2, abs=1e-5)
        goals.append(new)
    # from the first of these to the third are two quarter turns
    assert quat_angle(goals[2], goals[0]) == pytest.approx(math.pi, abs=1e-3)


def test_rotation_reward_is_the_angle_turned_toward_the_goal() -> None:
    env = make(num_envs=4)
    env.reset()
    cube = slice(env.scene.object_qpos + 3, env.scene.object_qpos + 7)
    goal = env.task.goal.clone()
    before = quat_angle(env.sim.qpos[:, cube].float(), goal)
    for _, action in zip(range(12), actions(env), strict=False):
        result = env.step(0.2 * action)  # gentle: no goal is reached and nothing is dropped
        assert torch.equal(env.task.goal, goal)
        after = quat_angle(env.sim.qpos[:, cube].float(), goal)
        turned = float((before - after).mean())
        assert result.terms["rotation"] == pytest.approx(10.0 * turned, abs=1e-5)
        before = after


def test_staggered_first_episodes_are_not_counted() -> None:
    env = make(num_envs=64, episode_seconds=1.0, stagger=True)
    env.reset()
    ages = env.age.clone()
    assert ages.unique().numel() > 5
    lengths, ended = [], 0
    for _ in range(20):
        result = env.step(torch.zeros(64, 16))
        lengths += result.episodes.rows()["length"].tolist()
        ended += int((result.terminated | result.truncated).sum())
    assert ended >= 64
    # only those that began at age 0 lasted a whole episode within these 20 steps
    assert lengths == [20] * int((ages == 0).sum())


def test_a_diverged_environment_leaves_the_others_alone() -> None:
    good, bad = make(num_envs=3, seed=5), make(num_envs=3, seed=5)
    for env in (good, bad):
        env.reset()
        env.step(torch.zeros(3, 16))
    bad.sim.qvel[1, :] = 1e12
    for _, action in zip(range(5), actions(good), strict=False):
        a, b = good.step(action), bad.step(action)
        for name in ("actor", "critic"):
            assert b.obs[name].isfinite().all()
            assert torch.equal(a.obs[name][[0, 2]], b.obs[name][[0, 2]])
        assert b.reward.isfinite().all()
        assert 1 not in b.episodes.rows()["env_ids"].tolist()
    assert bad.divergences >= 1
    assert good.divergences == 0


def test_one_that_diverged_is_judged_by_what_it_reached() -> None:
    """Else a bound that breaks the simulation would be judged by its survivors."""
    told: list[tuple[list[int], list[float], list[bool]]] = []

    class Listening(NoPerturbation):
        def end(self, which: torch.Tensor, scores: torch.Tensor, counted: torch.Tensor) -> None:
            told.append((which.tolist(), scores.tolist(), counted.tolist()))

    env = BatchedEnv(
        "cube_rotate",
        config=EnvConfig(num_envs=3),
        sim=SimConfig(backend="cpu", threads=1),
        perturbation=Listening(),
    )
    env.reset()
    env.step(torch.zeros(3, 16))
    env.score[1] = 2.0
    env.sim.qvel[1, :] = 1e12
    result = env.step(torch.zeros(3, 16))
    assert told == [([1], [2.0], [True])]
    assert not result.episodes.counted.any()  # statistics of the policy are another matter


@pytest.mark.parametrize("task", TASKS)
def test_state_dict_continues_to_the_last_bit(task: str, tmp_path) -> None:
    env = make(task, num_envs=6, episode_seconds=1.0, stagger=True)
    env.reset()
    script = [next(actions(env, seed)) for seed in range(40)]
    for action in script[:17]:
        env.step(action)
    torch.save(env.state_dict(), tmp_path / "state.pt")
    expected = [env.step(action) for action in script[17:]]
    again = make(task, num_envs=6, seed=99, episode_seconds=1.0, stagger=True)
    again.reset()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for action, want in zip(script[17:], expected, strict=True):
        got = again.step(action)
        assert torch.equal(got.reward, want.reward)
        for name in ("actor", "critic"):
            assert torch.equal(got.obs[name], want.obs[name])
    assert torch.equal(again.sim.qpos, env.sim.qpos)


@pytest.mark.parametrize("task", TASKS)
def test_readings_that_were_handed_out_do_not_change_afterwards(task: str) -> None:
    env = make(task, num_envs=2, episode_seconds=0.1)
    env.reset()
    env.step(torch.zeros(2, 16))
    held = dict(env.last_readings)
    copies = {name: value.clone() for name, value in held.items()}
    assert env.step(torch.zeros(2, 16)).truncated.all()
    assert all(torch.equal(held[name], copies[name]) for name in held)
    env.step(torch.zeros(2, 16))
    held = dict(env.last_readings)
    copies = {name: value.clone() for name, value in held.items()}
    env.reset()
    assert all(torch.equal(held[name], copies[name]) for name in held)


def test_poses_are_copies_whatever_the_simulations_precision() -> None:
    env = make(num_envs=2)
    env.reset()
    env.task.sim = SimpleNamespace(qpos=env.sim.qpos.float(), qvel=env.sim.qvel.float())
    readings = env.task.readings()
    copies = {name: value.clone() for name, value in readings.items()}
    env.task.sim.qpos[:] = 7.0
    assert all(torch.equal(readings[name], copies[name]) for name in readings)


def test_restored_readings_are_the_environments_own() -> None:
    env = make(num_envs=2)
    env.reset()
    state = env.state_dict()
    env.load_state_dict(state)
    for name, value in env.last_readings.items():
        assert value.device == env.device
        assert torch.equal(value, state["readings"][name])
        assert value.data_ptr() != state["readings"][name].data_ptr()


def test_actions_beyond_the_box_are_clipped() -> None:
    a, b = make(num_envs=2), make(num_envs=2)
    a.reset(), b.reset()
    x, y = a.step(torch.full((2, 16), 7.0)), b.step(torch.ones(2, 16))
    assert torch.equal(x.obs["actor"], y.obs["actor"])
    assert torch.equal(x.reward, y.reward)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"task": "cube_rotat"}, "cube_rotate"),
        ({"task": "cube_rotate", "object_name": "cub"}, "cube"),
        ({"task": "fingertip_reach", "object_name": "cube"}, "no object"),
        ({"task": "cube_rotate", "config": EnvConfig(rewards={"gaol": 1.0})}, "goal"),
    ],
)
def test_wrong_names_are_answered(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        BatchedEnv(**kwargs)
    assert "\n" not in str(error.value)

"""What Gymnasium's and stable-baselines3's own checkers say."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.registration import ENVIRONMENTS
from widen.envs.sim import SimConfig
from widen.train.vec_env import HandVecEnv


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
@pytest.mark.filterwarnings("ignore:.*(infinity|Box|render).*")
def test_the_checkers_pass(env_id: str) -> None:
    env = gymnasium.make(env_id)
    check_env(env.unwrapped, skip_render_check=True)
    sb3_check_env(env.unwrapped, warn=False)


def test_make_vec_equals_single_environments_in_shape_and_resets_in_the_same_step() -> None:
    envs = gymnasium.make_vec(
        "widen/CubeRotate-v0",
        num_envs=5,
        vectorization_mode="vector_entry_point",
        episode_seconds=0.25,
    )
    obs, _ = envs.reset(seed=3)
    again, _ = envs.reset(seed=3)
    np.testing.assert_array_equal(obs, again)
    assert obs.shape == (5, 189)
    for step in range(1, 11):
        obs, reward, terminated, truncated, info = envs.step(np.zeros((5, 16), np.float32))
        assert obs.shape == (5, 189)
        assert reward.shape == terminated.shape == truncated.shape == (5,)
        if step % 5 == 0:
            assert truncated.all()
            assert info["_final_obs"].all()
            assert info["final_obs"][2].shape == (189,)
            assert not np.array_equal(info["final_obs"][2], obs[2])
        else:
            assert "final_obs" not in info


def first_observation(env_id: str, **kwargs) -> np.ndarray:
    return gymnasium.make(env_id, **kwargs).reset()[0]


def test_without_a_seed_no_two_environments_are_alike() -> None:
    """As gymnasium has it; a vector of equal environments would learn nothing new from the rest."""
    a, b = (first_observation("widen/CubeRotate-v0") for _ in range(2))
    assert not np.array_equal(a, b)
    envs = gymnasium.make_vec("widen/CubeRotate-v0", num_envs=2, vectorization_mode="sync")
    obs, _ = envs.reset()
    assert not np.array_equal(obs[0], obs[1])


def test_every_seed_of_a_vector_counts() -> None:
    envs = gymnasium.make_vec("widen/CubeRotate-v0", num_envs=3)

    def begin(seed) -> np.ndarray:
        return envs.reset(seed=seed)[0]

    np.testing.assert_array_equal(begin([1, 2, 3]), begin([1, 2, 3]))
    assert not np.array_equal(begin([1, 2, 3]), begin([1, 9, 9]))
    np.testing.assert_array_equal(begin(np.int64(4)), begin(4))
    assert not np.array_equal(begin([None, None, None]), begin([None, None, None]))


@pytest.mark.parametrize("make", [gymnasium.make, gymnasium.make_vec])
@pytest.mark.filterwarnings("ignore:.*render_mode.*")
def test_a_render_mode_that_there_is_not_is_refused(make) -> None:
    with pytest.raises(ValueError, match="render_mode"):
        make("widen/CubeRotate-v0", render_mode="nonsense")


def test_goals_are_told_by_one_environment_and_by_a_vector() -> None:
    single = gymnasium.make("widen/CubeRotate-v0", episode_seconds=0.1).unwrapped
    envs = gymnasium.make_vec("widen/CubeRotate-v0", num_envs=2, episode_seconds=0.1)
    single.reset(seed=0), envs.reset(seed=0)
    single._env.score[:], envs.unwrapped.batched.score[:] = 3.0, torch.tensor([3.0, 5.0])
    action = np.zeros(16, np.float32)
    assert single.step(action)[4] == {"goals": 3.0}
    info = envs.step(np.zeros((2, 16), np.float32))[4]
    assert info["goals"].tolist() == [3.0, 5.0]
    assert info["_goals"].all()
    assert single.step(action)[4] == {"goals": 3.0}
    info = envs.step(np.zeros((2, 16), np.float32))[4]
    assert info["goals"].tolist() == [0.0, 0.0]
    assert info["_final_info"].all()
    assert info["final_info"]["goals"].tolist() == [3.0, 5.0]


def test_options_reach_the_environment() -> None:
    env = gymnasium.make("widen/CubeRotate-v0", history=2, hand="allegro", control_hz=25.0)
    assert env.metadata["render_fps"] == 25
    assert env.observation_space.shape == (2 * 63,)
    assert env.unwrapped._env.scene.hand.name == "allegro"


@pytest.fixture
def vec_env() -> HandVecEnv:
    config = EnvConfig(num_envs=4, episode_seconds=0.5)
    return HandVecEnv(BatchedEnv("fingertip_reach", config=config, sim=SimConfig(threads=1)))


def test_vec_env_reports_time_outs_as_stable_baselines3_wants_them(vec_env: HandVecEnv) -> None:
    obs = vec_env.reset()
    assert obs.shape == (4, vec_env.observation_space.shape[0])
    for _ in range(10):
        obs, _, dones, infos = vec_env.step(np.zeros((4, 16), np.float32))
    assert dones.all()
    for i, info in enumerate(infos):
        assert info["TimeLimit.truncated"] is True
        assert info["terminal_observation"].shape == obs[i].shape
        assert not np.array_equal(info["terminal_observation"], obs[i])
        assert info["episode"]["l"] == 10


def test_the_librarys_own_ppo_trains_on_it(vec_env: HandVecEnv) -> None:
    model = PPO("MlpPolicy", vec_env, n_steps=16, batch_size=32, n_epochs=2, seed=0)
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(128)
    after = list(model.policy.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.isfinite().all() for p in after)
    assert len(model.ep_info_buffer) > 0

"""Gymnasium's names for the tasks."""

from __future__ import annotations

# id -> task
ENVIRONMENTS = {
    "widen/CubeReorient-v0": "cube_reorient",
    "widen/CubeRotate-v0": "cube_rotate",
    "widen/FingertipReach-v0": "fingertip_reach",
}


def register_envs() -> None:
    """Register every task for `gymnasium.make` and `gymnasium.make_vec`."""
    from gymnasium.envs.registration import register

    for env_id, task in ENVIRONMENTS.items():
        register(
            id=env_id,
            entry_point="widen.envs.gym:HandEnv",
            vector_entry_point="widen.envs.gym:HandVectorEnv",
            kwargs={"task": task},
            # no max_episode_steps: the episode's length is in the environment's own config
        )

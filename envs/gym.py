"""The batched environment as gymnasium knows it: one environment, or a vector of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from .batched import BatchedEnv, EnvConfig, Obs
from .objects import read_objects
from .sim import SimConfig


def _make(task: str, num_envs: int, options: dict[str, Any]) -> BatchedEnv:
    """A batched environment from keyword arguments of `gymnasium.make`."""
    options = dict(options)
    names = EnvConfig.model_fields.keys() - {"num_envs"}
    config = {key: options.pop(key) for key in tuple(options) if key in names}
    if (several := len(read_objects(options.get("object_name")))) > num_envs:
        raise ValueError(
            f"object_name: {several} objects need as many environments, got {num_envs}"
        )
    # one environment is slower on a GPU than on a processor
    alone = {"backend": "cpu", "threads": 1}
    sim = SimConfig(**options.pop("sim", alone if num_envs == 1 else {}))
    env = BatchedEnv(task, config=EnvConfig(num_envs=num_envs, **config), sim=sim, **options)
    # until reset(seed=...) every environment draws its own episodes, as gymnasium has it
    env.generator.seed()
    return env


def _seed(env: BatchedEnv, seed: int | Sequence[int | None]) -> None:
    """Seed the task's one generator; of a seed per environment every one counts."""
    if isinstance(seed, (int, np.integer)):
        env.generator.manual_seed(int(seed))
    elif known := [int(each) for each in seed if each is not None]:
        env.generator.manual_seed(int(np.random.SeedSequence(known).generate_state(1)[0]))


def _spaces(env: BatchedEnv) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
    observation = gymnasium.spaces.Box(-np.inf, np.inf, (env.num_actor_obs,), np.float32)
    return observation, gymnasium.spaces.Box(-1.0, 1.0, (env.num_actions,), np.float32)


class HandEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One environment: the actor's observation (n,), actions (nu,) in -1..1.

    Args:
        task: name of a task.
        render_mode: None, or "rgb_array" (offscreen, needs a working MUJOCO_GL).
        options: `hand`, `object_name` (as `object` in a config), `perturbation`, `sim` (a dict) and
            the keys of EnvConfig.

    Raises:
        ValueError: no such render mode; and what `BatchedEnv` raises.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, task: str, render_mode: str | None = None, **options: Any) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: expected None or 'rgb_array', got {render_mode!r}")
        self._env = _make(task, 1, options)
        self.metadata = {**self.metadata, "render_fps": round(self._env.config.control_hz)}
        self.observation_space, self.action_space = _spaces(self._env)
        self.render_mode = render_mode
        self._renderer: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            _seed(self._env, seed)
        return self._observation(self._env.reset()), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        given = torch.as_tensor(np.asarray(action), dtype=torch.float32)[None]
        result = self._env.step(given.to(self._env.device))
        # gymnasium resets by itself: the last observation of the old episode is the answer
        obs = self._observation(result.final_obs)
        done = bool(result.terminated[0]), bool(result.truncated[0])
        info = {"goals": float(result.episodes.score[0])}
        return obs, float(result.reward[0]), *done, info

    @staticmethod
    def _observation(obs: Obs) -> np.ndarray:
        return obs["actor"][0].cpu().numpy().copy()

    def render(self) -> np.ndarray | None:
        if self.render_mode != "rgb_array":
            return None
        if self._renderer is None:
            from .render import SceneRenderer

            self._renderer = SceneRenderer(self._env.scene)
        return self._renderer.frame(self._env.sim.qpos[0].cpu().numpy())

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


class HandVectorEnv(VectorEnv):
    """N environments in one batch, reset in the step in which they end (AutoresetMode.SAME_STEP).

    Args:
        task: name of a task.
        num_envs: N.
        options: as for `HandEnv`.

    Raises:
        ValueError: a render mode is asked for; and what `BatchedEnv` raises.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(
        self, task: str, num_envs: int = 1, render_mode: str | None = None, **options: Any
    ) -> None:
        if render_mode is not None:
            raise ValueError(f"render_mode: a vector has no pictures, got {render_mode!r}")
        self.num_envs = num_envs
        self.batched = _make(task, num_envs, options)
        self.single_observation_space, self.single_action_space = _spaces(self.batched)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            _seed(self.batched, seed)
        return self.batched.reset()["actor"].cpu().numpy().copy(), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        action = torch.as_tensor(np.asarray(actions), dtype=torch.float32)
        result = self.batched.step(action.to(self.batched.device))
        done = (result.terminated | result.truncated).cpu().numpy()
        info: dict[str, Any] = {
            "goals": self.batched.score.cpu().numpy().copy(),
            "_goals": np.ones(self.num_envs, dtype=bool),
        }
        if done.any():
            goals = result.episodes.score.cpu().numpy()
            info["final_info"] = {"goals": np.where(done, goals, 0), "_goals": done}
            info["_final_info"] = done
            final = result.final_obs["actor"].cpu().numpy()
            info["final_obs"] = np.array(
                [final[i] if done[i] else None for i in range(self.num_envs)], dtype=object
            )
            info["_final_obs"] = done
        return (
            result.obs["actor"].cpu().numpy().copy(),
            result.reward.cpu().numpy(),
            result.terminated.cpu().numpy(),
            result.truncated.cpu().numpy(),
            info,
        )

"""The one boundary between torch and numpy: the batched environment as an SB3 `VecEnv`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from widen.envs.batched import BatchedEnv


def _box(width: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (width,), np.float32)


class HandVecEnv(VecEnv):
    """`BatchedEnv` for any stable-baselines3 or sb3-contrib algorithm.

    Observations are the actor's, (N, n) float32. With `privileged` they are a dict of "actor" and
    "critic", for algorithms that know what to do with it, as `WidenPPO` does; that one takes
    tensors from `batched` and bypasses this class's numpy.
    """

    def __init__(self, batched: BatchedEnv, *, privileged: bool = False) -> None:
        self.batched = batched
        self.privileged = privileged
        space: spaces.Space = _box(batched.num_actor_obs)
        if privileged:
            space = spaces.Dict({"actor": space, "critic": _box(batched.num_critic_obs)})
        self.render_mode = None
        super().__init__(
            batched.num_envs, space, spaces.Box(-1.0, 1.0, (batched.num_actions,), np.float32)
        )
        self._actions = torch.zeros(batched.num_envs, batched.num_actions)

    def reset(self) -> Any:
        if self._seeds and self._seeds[0] is not None:
            self.batched.generator.manual_seed(self._seeds[0])
        obs = self.batched.reset()
        self._reset_seeds()
        self._reset_options()
        return self._numpy(obs)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = torch.as_tensor(actions, dtype=torch.float32, device=self.batched.device)

    def step_wait(self) -> Any:
        result = self.batched.step(self._actions)
        done = (result.terminated | result.truncated).cpu().numpy()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        ended = np.flatnonzero(done)
        if len(ended):
            truncated = result.truncated.cpu().numpy()
            final = self._numpy(result.final_obs)
            for i in ended:
                last = {k: v[i] for k, v in final.items()} if self.privileged else final[i]
                infos[i] = {
                    "terminal_observation": last,
                    "TimeLimit.truncated": bool(truncated[i]),
                }
            self._episode_infos(infos, result.episodes.rows())
        return self._numpy(result.obs), result.reward.cpu().numpy(), done, infos

    @staticmethod
    def _episode_infos(infos: list[dict[str, Any]], episodes: dict[str, torch.Tensor]) -> None:
        columns = (episodes[k].tolist() for k in ("env_ids", "return", "length", "score"))
        for i, total, length, score in zip(*columns, strict=True):
            infos[i]["episode"] = {"r": total, "l": length, "goals": score}

    def _numpy(self, obs: dict[str, torch.Tensor]) -> Any:
        arrays = {name: value.cpu().numpy().copy() for name, value in obs.items()}
        return arrays if self.privileged else arrays["actor"]

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        value = getattr(self, attr_name) if hasattr(self, attr_name) else None
        if value is None and attr_name != "render_mode":
            value = getattr(self.batched, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError(f"{attr_name}: the environments of a batch share their attributes")

    def env_method(
        self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
    ) -> list[Any]:
        raise AttributeError(f"{method_name}: the environments of a batch have no methods")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        # one generator serves the whole batch
        self._seeds = [seed] * self.num_envs
        return self._seeds

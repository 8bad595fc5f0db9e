"""A cue that is seen once and wanted ever after: no policy without memory can answer it."""

from __future__ import annotations

import torch

from widen.envs.batched import Episodes, StepResult


class MemoryEnv:
    """The first observation of an episode shows -1 or 1; every action shall be that number.

    Episodes last 12 steps. The squared error of the best policy without memory is 1 in all steps
    but the first.
    """

    masked = False
    LENGTH = 12

    def __init__(self, num_envs: int = 16) -> None:
        self.num_envs, self.num_actions = num_envs, 1
        self.num_actor_obs, self.num_critic_obs = 2, 2
        self.device = torch.device("cpu")
        self.generator = torch.Generator().manual_seed(5)
        self.cue = self.total = torch.zeros(num_envs)
        self.age = self.total

    def reset(self) -> dict[str, torch.Tensor]:
        self.cue = self._draw()
        self.age = torch.arange(self.num_envs).remainder(self.LENGTH).float()  # staggered
        self.total = torch.zeros(self.num_envs)
        return self._obs()

    def step(self, action: torch.Tensor) -> StepResult:
        error = (action[:, 0].clamp(-1.0, 1.0) - self.cue).square()
        late = error[self.age > 0]
        self.age, self.total = self.age + 1, self.total - error
        done = self.age >= self.LENGTH
        final, never = self._obs(), torch.zeros_like(done)
        episodes = Episodes(done, self.total, self.age, self.total, never)
        self.cue = torch.where(done, self._draw(), self.cue)
        self.age, self.total = self.age * ~done, self.total * ~done
        terms = {"late_error": late.mean()}
        return StepResult(self._obs(), -error, never, done, final, episodes, terms)

    def _draw(self) -> torch.Tensor:
        return torch.randint(2, (self.num_envs,), generator=self.generator) * 2.0 - 1.0

    def _obs(self) -> dict[str, torch.Tensor]:
        first = (self.age == 0).float()
        actor = torch.stack((self.cue * first, first), -1)
        return {"actor": actor, "critic": torch.stack((self.cue, self.age / self.LENGTH), -1)}

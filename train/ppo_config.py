"""Settings of PPO, in a module that loads neither torch nor stable-baselines3."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class PPOConfig(BaseModel):
    """How the policy is trained. Names are stable-baselines3's where it has one.

    Under torchrun a rollout and its minibatches are those of one process, and a gradient is the
    mean over all of them: K processes take steps from K times as many samples.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    iterations: int = Field(default=400, ge=1)
    """rollouts, each followed by one update"""
    steps: int = Field(default=16, ge=1, le=10_000)
    """control steps per environment in one rollout (n_steps)"""
    epochs: int = Field(default=5, ge=1, le=100)
    """passes over a rollout (n_epochs)"""
    minibatches: int = Field(default=4, ge=1)
    """parts of a rollout, one gradient step each; must divide num_envs * steps"""
    learning_rate: float = Field(default=1e-3, gt=0.0, le=1.0)
    """Adam's step size in the beginning"""
    learning_rate_min: float = Field(default=5e-5, gt=0.0, le=1.0)
    """the adaptive rate goes no lower"""
    learning_rate_max: float = Field(default=2e-3, gt=0.0, le=1.0)
    """the adaptive rate goes no higher"""
    target_kl: float | None = Field(default=0.02, gt=0.0)
    """KL divergence of one update toward which the rate is steered; none: fixed rate"""
    gamma: float = Field(default=0.98, ge=0.0, le=1.0)
    """discount per control step"""
    gamma_final: float | None = Field(default=None, ge=0.0, lt=1.0)
    """discount that the horizon 1 / (1 - gamma) grows evenly up to; none: gamma throughout. A short
    horizon learns faster in the beginning, a long one minds a drop more"""
    gamma_iterations: int | None = Field(default=None, ge=1)
    """iteration by which gamma_final is reached; none: the last one, so that a continuation with other
    iterations moves what is left of it"""
    gae_lambda: float = Field(default=0.95, ge=0.0, le=1.0)
    """advantage estimation: 0 one step and low variance, 1 whole returns and no bias"""
    clip_range: float = Field(default=0.2, gt=0.0, lt=1.0)
    """how far the probability ratio may move before its gradient is cut"""
    entropy_coef: float = Field(default=0.0, ge=0.0)
    """weight of the entropy bonus (ent_coef). Enough of it keeps the deviation of actions from shrinking;
    with a smaller one the same change of a policy is a larger divergence"""
    value_coef: float = Field(default=0.5, gt=0.0)
    """weight of the critic's squared error (vf_coef)"""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """norm to which the gradient of all parameters together is cut"""
    critic_warmup: int = Field(default=0, ge=0)
    """iterations in the beginning in which only the critic learns; for a run with `init_from` whose
    critic is new, and would spoil the policy it knows nothing of. A good policy wants a
    learning_rate of some 1e-4 as well"""
    reward_scale: float = Field(default=0.1, gt=0.0)
    """factor on the reward that PPO sees; logged returns are without it"""
    normalize_advantage: bool = True
    """bring the advantages of each minibatch to mean 0 and deviation 1"""
    threads: int = Field(default=0, ge=0, le=1024)
    """torch threads of an update; 0: one per processor, which processes under torchrun share.
    Rollouts use one"""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """arithmetic of the networks' layers: tf32 rounds their factors to 10 bits (on a GPU; elsewhere
    it is float32), bfloat16 everything in them to 8; the rest is float32 in any case"""
    compile: bool = False
    """torch.compile of policy and loss; needs a C++ compiler, on a GPU Triton too"""

    @model_validator(mode="after")
    def _rates_in_order(self) -> PPOConfig:
        low, rate, high = self.learning_rate_min, self.learning_rate, self.learning_rate_max
        if self.target_kl is not None and not low <= rate <= high:
            raise ValueError(
                f"learning_rate {rate:g} is not between learning_rate_min {low:g} and "
                f"learning_rate_max {high:g}"
            )
        return self

    @model_validator(mode="after")
    def _horizon_ends(self) -> PPOConfig:
        if self.gamma_final is not None and self.gamma == 1.0:
            raise ValueError("gamma 1 is an endless horizon, and gamma_final cannot follow it")
        if self.gamma_iterations is not None and self.gamma_final is None:
            raise ValueError("gamma_iterations: expected a gamma_final to be reached by then")
        return self

    def gamma_at(self, iteration: int) -> float:
        """The discount of an iteration, counted from 0."""
        if self.gamma_final is None:
            return self.gamma
        done = min(iteration / max(1, (self.gamma_iterations or self.iterations) - 1), 1.0)
        first, last = 1.0 / (1.0 - self.gamma), 1.0 / (1.0 - self.gamma_final)
        return 1.0 - 1.0 / (first + done * (last - first))


def minibatch_size(num_envs: int, config: PPOConfig) -> int:
    """Samples in one minibatch.

    Raises:
        ValueError: a rollout does not divide into equal minibatches of at least two samples.
    """
    samples = num_envs * config.steps
    if samples % config.minibatches == 0 and samples // config.minibatches > 1:
        return samples // config.minibatches
    right = [n for n in range(1, samples // 2 + 1) if samples % n == 0]
    near = sorted(sorted(right, key=lambda n: abs(n - config.minibatches))[:3])
    raise ValueError(
        f"ppo.minibatches: {num_envs} environments x {config.steps} steps = {samples} samples do "
        f"not make {config.minibatches} equal minibatches of two or more"
        + (f"; possible are {', '.join(map(str, near))}" if near else "")
    )

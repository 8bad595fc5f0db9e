"""The actor and the critic: two networks on two observations, each behind its own normaliser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from gymnasium import spaces
from pydantic import BaseModel, ConfigDict, Field
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from .buffer import DeviceRolloutBuffer
from .ranks import Ranks

_ACTIVATIONS: dict[str, type[nn.Module]] = {"elu": nn.ELU, "relu": nn.ReLU, "tanh": nn.Tanh}
_CLIP = 10.0
# A drawn parameter that the curriculum has just begun to widen has next to no variance so far, and
# dividing by it would turn small moves into jumps to the clip. What the networks see is of the size
# of 1 before it comes here.
_MIN_STD = 0.1
_BLOCK = 512  # rows
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)

Width = Annotated[int, Field(ge=1, le=4096)]
State = tuple[Tensor, ...]
"""What a policy carries from step to step, (N, width) each; nothing for one without memory."""


class PolicyConfig(BaseModel):
    """Shape of the networks."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["mlp", "lstm"] = "mlp"
    """mlp: no memory beyond the observation's history; lstm: the actor remembers within an episode"""
    lstm_size: Width = 128
    """numbers that the actor of type lstm carries from step to step, twice: hidden and cell state"""
    hidden: list[Width] = Field(default=[128, 128], max_length=8)
    """widths of the actor's hidden layers; wider ones cost speed: 512-256-128 halves it"""
    critic_hidden: list[Width] | None = Field(default=None, max_length=8)
    """widths of the critic's hidden layers; none: as the actor's"""
    activation: Literal["elu", "relu", "tanh"] = "elu"
    """nonlinearity after every hidden layer"""
    init_std: float = Field(default=0.6, gt=0.0, le=3.0)
    """standard deviation of the actions in the beginning, before they are clipped to -1...1"""
    explore_anew: bool = False
    """with init_from: true begins at init_std again, where false goes on with that run's deviation. One
    that has shrunk lets a policy change only slowly, since the same step is then a larger divergence"""


class Normalizer(nn.Module):
    """x -> clip((x - mean) / max(std, 0.1), -10, 10), with statistics of all rows ever shown.

    Until the first `update` it only clips. Statistics are kept in float64 and merged batch by
    batch (Chan, Golub, LeVeque 1979), so the result does not depend on how rows were grouped.
    """

    mean: Tensor
    var: Tensor
    count: Tensor
    offset: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("var", torch.ones(width, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        # What `forward` uses, in the precision of observations.
        self.register_buffer("offset", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) float32 -> the same shape, normalised."""
        # in place on what the difference allocated: half the time of three new tensors
        return (x - self.offset).mul_(self.scale).clamp_(-_CLIP, _CLIP)

    @torch.no_grad()
    def update(self, rows: Tensor, ranks: Ranks | None = None) -> None:
        """Take rows (B, width) into the statistics, those of all ranks with as many each."""
        moments = _moments(rows)
        for var, mean in moments[None] if ranks is None else ranks.stack(moments):
            self._merge(rows.shape[0], var, mean)
        self.offset.copy_(self.mean)
        self.scale.copy_(1.0 / self.var.sqrt().clamp(min=_MIN_STD))

    def _merge(self, count: int, var: Tensor, mean: Tensor) -> None:
        """Take rows of which only the population variance and the mean (width,) are known."""
        total = self.count + count
        share = count / total
        delta = mean - self.mean
        self.var.copy_(self.var * (1.0 - share) + var * share + delta**2 * share * (1.0 - share))
        self.mean.add_(delta * share)
        self.count.copy_(total)


def _moments(rows: Tensor) -> Tensor:
    """Population variance and mean of rows (B, width), float64 (2, width)."""
    if rows.device.type != "cpu":
        return torch.stack(torch.var_mean(rows.double(), dim=0, correction=0))
    # Products with ones over blocks that stay in the cache, as torch's sum over the first dimension
    # is slow. About the first row, which takes the size of the mean out of the squares.
    first, sums = rows[0].double(), rows.new_zeros(2, rows.shape[1], dtype=torch.float64)
    for block in rows.split(_BLOCK):
        x = block.double().sub_(first)
        ones = x.new_ones(len(x))
        sums[0] += ones @ x
        sums[1] += ones @ x.square_()
    mean, square = sums / len(rows)
    return torch.stack(((square - mean.square()).clamp(min=0.0), mean + first))


class NormalizedObservation(BaseFeaturesExtractor):
    """Picks one entry of a dict observation and normalises it."""

    def __init__(self, observation_space: spaces.Dict, key: str) -> None:
        width = spaces.flatdim(observation_space[key])
        super().__init__(observation_space, features_dim=width)
        self.key = key
        self.normalizer = Normalizer(width)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """{key: (B, width), ...} -> (B, width)."""
        return self.normalizer(observations[self.key])


class ActorCriticMlp(nn.Module):
    """Hidden layers of the two networks; the face of stable-baselines3's `MlpExtractor`."""

    def __init__(self, actor_dim: int, critic_dim: int, config: PolicyConfig) -> None:
        super().__init__()
        activation = _ACTIVATIONS[config.activation]
        critic_hidden = config.hidden if config.critic_hidden is None else config.critic_hidden
        self.policy_net = nn.Sequential(*create_mlp(actor_dim, 0, config.hidden, activation))
        self.value_net = nn.Sequential(*create_mlp(critic_dim, 0, critic_hidden, activation))
        self.latent_dim_pi = [actor_dim, *config.hidden][-1]
        self.latent_dim_vf = [critic_dim, *critic_hidden][-1]

    def forward_actor(self, features: Tensor) -> Tensor:
        return self.policy_net(features)

    def forward_critic(self, features: Tensor) -> Tensor:
        return self.value_net(features)


class HandPolicy(ActorCriticPolicy):
    """Gaussian policy over joint commands; the critic sees more than the actor.

    Observations are {"actor": (B, n), "critic": (B, m)} float32. Methods that need only the actor
    (`predict`, `get_distribution`) also accept a dict without "critic". Orthogonal
    initialisation and the standard deviation that does not depend on the state are
    stable-baselines3's.

    This one has no memory. The `State` that a subclass carries is handed in and given back by
    every method that needs it, so that each caller keeps its own.
    """

    rollout_buffer_class: ClassVar[type[DeviceRolloutBuffer]] = DeviceRolloutBuffer

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        config: PolicyConfig,
        use_sde: bool = False,
    ) -> None:
        self.config = config
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            use_sde=use_sde,
            log_std_init=math.log(config.init_std),
            share_features_extractor=False,
            normalize_images=False,
            optimizer_kwargs={"eps": 1e-5, "fused": True},
        )

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        # The base class asks twice, for the actor and then for the critic.
        key = "critic" if hasattr(self, "pi_features_extractor") else "actor"
        assert isinstance(self.observation_space, spaces.Dict)
        return NormalizedObservation(self.observation_space, key)

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor: Any = ActorCriticMlp(  # the face of MlpExtractor, no subclass
            self.pi_features_extractor.features_dim,
            self.vf_features_extractor.features_dim,
            self.config,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "config": self.config,
        }

    def mean_action(self, actor_obs: Tensor) -> Tensor:
        """The deterministic policy: actor observation (B, n) -> action (B, nu), not yet clipped.

        Normaliser included. A pure function of tensors, which export traces.
        """
        assert isinstance(self.pi_features_extractor, NormalizedObservation)
        features = self.pi_features_extractor.normalizer(actor_obs)
        return self.action_net(self.mlp_extractor.forward_actor(features))

    @property
    def state_widths(self) -> Mapping[str, int]:
        """Names and widths of the `State`, in order."""
        return MappingProxyType({})

    def initial_state(self, count: int) -> State:
        """The state in which `count` episodes begin: zeros."""
        device = self.log_std.device
        return tuple(torch.zeros(count, w, device=device) for w in self.state_widths.values())

    @staticmethod
    def begin(state: State, fresh: Tensor) -> State:
        """The state with the initial one where an episode begins, by a mask (N,)."""
        return tuple(x.masked_fill(fresh[:, None], 0.0) for x in state)

    def advance(self, actor_obs: Tensor, state: State) -> tuple[Tensor, State]:
        """`mean_action` of any policy: also takes the state, and gives that of the next step."""
        return self.mean_action(actor_obs), state

    def sample(
        self, obs: dict[str, Tensor], generator: torch.Generator, *state: Tensor
    ) -> tuple[Tensor, ...]:
        """`act` with noise from a generator of one's own, which a resumed run can restore."""
        return self.act(obs, self.noise(obs, generator), *state)

    def noise(self, obs: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """Standard normal numbers (B, nu) for `act`."""
        shape = obs["actor"].shape[0], self.log_std.shape[0]
        return torch.empty(shape, device=self.log_std.device).normal_(generator=generator)

    @torch.no_grad()
    def act(self, obs: dict[str, Tensor], noise: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Actions from standard normal noise (B, nu); a pure function of tensors.

        Returns:
            actions (B, nu), not yet clipped; values (B,); log-probabilities (B,); then the state.
        """
        mean, state = self.advance(obs["actor"], state)
        actions = mean.float() + noise * self.log_std.exp()
        log_prob = -0.5 * (noise * noise).sum(-1) - self._log_normalizer()
        return actions, self.predict_values(obs).flatten(), log_prob, *state

    def predict_values(self, obs: Any) -> Tensor:
        """The critic's estimates (B, 1), float32 also from networks of lower precision."""
        assert isinstance(self.vf_features_extractor, NormalizedObservation)
        features = self.vf_features_extractor.normalizer(obs["critic"])
        return self.value_net(self.mlp_extractor.forward_critic(features)).float()

    def evaluate(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """`evaluate_actions` of samples from this class's rollout buffer."""
        return self.evaluate_actions(batch.observations, batch.actions)

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The base class's numbers with fewer operations: a 5 % shorter update."""
        return self._judge(self.mean_action(obs["actor"]), obs, actions)

    def _judge(self, mean: Tensor, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values (B, 1), log-probabilities and entropies (B,) of actions about their means."""
        noise = (actions - mean.float()) * torch.exp(-self.log_std)
        log_prob = -0.5 * (noise * noise).sum(-1) - self._log_normalizer()
        entropy = self._log_normalizer() + 0.5 * actions.shape[-1]
        return self.predict_values(obs), log_prob, entropy.expand(actions.shape[0])

    def _log_normalizer(self) -> Tensor:
        """Logarithm of the Gaussian's normalising constant; its entropy is this plus nu / 2."""
        return self.log_std.sum() + self.log_std.numel() * _LOG_SQRT_2PI

    def update_normalizers(self, obs: dict[str, Tensor], ranks: Ranks | None = None) -> None:
        """Take the observations of a finished rollout, each (B, width), into the statistics.

        Those of all ranks, if there are several; each has as many rows.
        """
        for extractor in (self.pi_features_extractor, self.vf_features_extractor):
            assert isinstance(extractor, NormalizedObservation)
            extractor.normalizer.update(obs[extractor.key], ranks)

"""A policy that remembers: long short-term memory between the actor's observation and its layers.

Names are sb3-contrib's where it has one (`lstm_states`, `episode_starts`), so that a user of its
`RecurrentPPO` finds the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .buffer import SequenceRolloutBuffer
from .policy import ActorCriticMlp, HandPolicy, NormalizedObservation, PolicyConfig, State
from .ppo_config import PPOConfig


def policy_class(config: PolicyConfig) -> type[HandPolicy]:
    """The class that `PolicyConfig.type` names."""
    return {"mlp": HandPolicy, "lstm": LstmPolicy}[config.type]


def check_settings(policy: PolicyConfig, ppo: PPOConfig, num_envs: int) -> None:
    """Raise ValueError where settings of PPO do not go with the type of policy."""
    if policy.type != "lstm":
        return
    if num_envs % ppo.minibatches:
        right = [n for n in range(1, num_envs + 1) if num_envs % n == 0]
        near = sorted(sorted(right, key=lambda n: abs(n - ppo.minibatches))[:3])
        raise ValueError(
            f"ppo.minibatches: policy.type=lstm learns from whole sequences; {num_envs} environments"
            f" do not make {ppo.minibatches} equal minibatches; possible are "
            + ", ".join(map(str, near))
        )
    if ppo.precision == "bfloat16":
        raise ValueError(
            "ppo.precision: bfloat16 does not go with policy.type=lstm, whose memory would be"
            " rounded to 8 bits in every step; expected float32 or tf32"
        )
    if ppo.compile:
        raise ValueError(
            "ppo.compile: not offered for policy.type=lstm, whose sequences have a backward pass of"
            " their own; expected false"
        )


class LstmPolicy(HandPolicy):
    """`HandPolicy` whose actor carries a hidden and a cell state through an episode.

    The memory reads the normalised observation; the hidden layers read both, the observation and
    the memory, so that a memory that has learned nothing yet is not in the way of reflexes. The
    critic has none: it sees the true state and the drawn parameters, so nearly all that the past
    could tell, and is much cheaper this way.
    """

    rollout_buffer_class = SequenceRolloutBuffer

    def _build_mlp_extractor(self) -> None:
        width = self.pi_features_extractor.features_dim
        self.lstm = Lstm(width, self.config.lstm_size)
        self.mlp_extractor = ActorCriticMlp(
            width + self.config.lstm_size, self.vf_features_extractor.features_dim, self.config
        )

    @property
    def state_widths(self) -> Mapping[str, int]:
        return {"lstm_hidden": self.config.lstm_size, "lstm_cell": self.config.lstm_size}

    def mean_action(self, actor_obs: Tensor) -> Tensor:
        raise TypeError("a policy of type lstm acts by `advance`, which takes its state")

    def get_distribution(self, obs: Any) -> Any:
        raise TypeError("a policy of type lstm acts by `act`, which takes its state")

    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        raise TypeError("a policy of type lstm acts by `act`, which takes its state")

    def advance(self, actor_obs: Tensor, state: State) -> tuple[Tensor, State]:
        features = self._features(actor_obs)
        hidden, cell = self.lstm.step(features, *state)
        return self._head(features, hidden), (hidden, cell)

    def evaluate(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        return self.evaluate_actions(
            batch.observations, batch.actions, batch.lstm_states, batch.episode_starts
        )

    def evaluate_actions(  # type: ignore[override]
        self, obs: Any, actions: Tensor, lstm_states: State, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients reach back to the first step, but not across the start of an episode.

        Args:
            obs: (T * B, width) each, step-major.
            actions: (T * B, nu).
            lstm_states: before the first step, (B, size) each.
            episode_starts: (T, B), 1 where an observation is the first of its episode.

        Returns:
            values (T * B, 1), log-probabilities and entropies (T * B,).
        """
        features = self._features(obs["actor"])
        sequences = features.unflatten(0, episode_starts.shape)
        hidden = self.lstm(sequences, *lstm_states, episode_starts).flatten(0, 1)
        return self._judge(self._head(features, hidden), obs, actions)

    @torch.no_grad()
    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """As in the library: give back the state that the last call returned.

        Args:
            observation: with "actor" (B, n), or (n,) for one environment.
            state: None at the beginning.
            episode_start: (B,), true where an episode begins.
            deterministic: the mean instead of a sample.

        Returns:
            actions (B, nu) or (nu,), clipped; the state.
        """
        self.set_training_mode(False)
        device = self.log_std.device
        actor_obs = torch.as_tensor(observation["actor"], device=device)
        rows = actor_obs.reshape(-1, actor_obs.shape[-1])
        carried = self.initial_state(len(rows))
        if state is not None:
            carried = tuple(torch.as_tensor(x, device=device) for x in state)
        if episode_start is not None:
            fresh = torch.as_tensor(episode_start, dtype=torch.bool, device=device)
            carried = self.begin(carried, fresh.expand(len(rows)))
        actions, carried = self.advance(rows, carried)
        if not deterministic:
            actions = actions + torch.randn_like(actions) * self.log_std.exp()
        actions = actions.clamp(-1.0, 1.0).reshape(*actor_obs.shape[:-1], -1)
        return actions.cpu().numpy(), tuple(x.cpu().numpy() for x in carried)

    def _features(self, actor_obs: Tensor) -> Tensor:
        assert isinstance(self.pi_features_extractor, NormalizedObservation)
        return self.pi_features_extractor.normalizer(actor_obs)

    def _head(self, features: Tensor, hidden: Tensor) -> Tensor:
        latent = self.mlp_extractor.forward_actor(torch.cat((features, hidden), -1))
        return self.action_net(latent)


class Lstm(nn.Module):
    """One layer of long short-term memory (Hochreiter, Schmidhuber 1997; Gers et al. 2000).

    i, f, o = sigmoid(...), g = tanh(...) of W_ih x + W_hh h + b;  c' = f c + i g;  h' = o tanh(c').
    Parameters are those of `torch.nn.LSTMCell`, gates in its order i, f, g, o, but with one bias.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(4 * size, width))
        self.weight_hh = nn.Parameter(torch.empty(4 * size, size))
        self.bias = nn.Parameter(torch.zeros(4 * size))
        with torch.no_grad():
            for weight in (self.weight_ih, self.weight_hh):
                for gate in weight.chunk(4):
                    nn.init.orthogonal_(gate)
            # remember at first: Jozefowicz, Zaremba, Sutskever 2015
            self.bias[size : 2 * size] = 1.0

    def step(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, width), states (B, size) -> the next states. Plain operations, for export."""
        gates = F.linear(x, self.weight_ih, self.bias) + F.linear(hidden, self.weight_hh)
        i, f, g, o = gates.chunk(4, -1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor, starts: Tensor) -> Tensor:
        """All steps of B sequences.

        Args:
            x: (T, B, width).
            hidden, cell: (B, size) before the first step; no gradient reaches them.
            starts: (T, B), 1 where the state is zero before the step.

        Returns:
            hidden states (T, B, size).
        """
        inputs = F.linear(x, self.weight_ih, self.bias)
        return _Recurrence.apply(inputs, self.weight_hh, hidden, cell, 1.0 - starts[..., None])  # type: ignore[return-value]


class _Recurrence(torch.autograd.Function):
    """Hidden states (T, B, H) from the inputs' share of the gates (T, B, 4 H).

    With its own backward pass, because autograd's record of such a loop takes half as long again:
    here the gradient of the weights is one product over all steps, and what each gate contributes
    is computed for all steps at once. It is as fast as torch's own LSTM, which cannot begin anew
    inside a sequence.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor, keep: Tensor
    ) -> Tensor:
        """weight (4 H, H); hidden, cell (B, H); keep (T, B, 1), 0 where an episode begins."""
        size, gates, recurrent = hidden.shape[-1], inputs.clone(), weight.t()
        # what each step found, after the mask, and what it made
        found = inputs.new_empty(2, *inputs.shape[:2], size)
        made = inputs.new_empty(2, *inputs.shape[:2], size)
        for t, gate in enumerate(gates):
            h, c = found[:, t]
            torch.mul(hidden, keep[t], out=h)
            torch.mul(cell, keep[t], out=c)
            gate.addmm_(h, recurrent)
            gate[:, : 2 * size].sigmoid_()
            gate[:, 2 * size : 3 * size].tanh_()
            gate[:, 3 * size :].sigmoid_()
            i, f, g, o = gate.chunk(4, -1)
            cell = torch.addcmul(f * c, i, g)
            hidden = torch.mul(o, torch.tanh(cell, out=made[1, t]), out=made[0, t])
        ctx.save_for_backward(gates, weight, keep, *found, made[1])
        return made[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        gates, weight, keep, h, c, tanh = ctx.saved_tensors
        i, f, g, o = gates.chunk(4, -1)
        # how the cell moves with each gate's sum, and the output with cell and output gate
        cell_by_i, cell_by_f, cell_by_g = g * i * (1.0 - i), c * f * (1.0 - f), i * (1.0 - g * g)
        out_by_o, out_by_cell = tanh * o * (1.0 - o), o * (1.0 - tanh * tanh)
        back = f * keep
        sums = torch.empty_like(gates)
        d_hidden, d_cell = torch.zeros_like(grad[0]), torch.zeros_like(grad[0])
        for t in reversed(range(len(gates))):
            d_hidden = d_hidden + grad[t]
            d_cell = torch.addcmul(d_cell, d_hidden, out_by_cell[t])
            d_i, d_f, d_g, d_o = sums[t].chunk(4, -1)
            torch.mul(d_cell, cell_by_i[t], out=d_i)
            torch.mul(d_cell, cell_by_f[t], out=d_f)
            torch.mul(d_cell, cell_by_g[t], out=d_g)
            torch.mul(d_hidden, out_by_o[t], out=d_o)
            d_hidden, d_cell = (sums[t] @ weight) * keep[t], d_cell * back[t]
        return sums, sums.flatten(0, 1).t() @ h.flatten(0, 1), None, None, None

"""What two processes do together, and what one does in their place.

`python two_ranks.py FOLDER`, with the environment variables that torchrun sets, leaves each
process's results in FOLDER/<rank>.pt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from line_env import LineEnv, make
from stable_baselines3.common.logger import Logger
from torch import Tensor

from widen.envs.batched import BatchedEnv, EnvConfig
from widen.envs.sim import SimConfig
from widen.randomization.config import RandomizationConfig
from widen.randomization.curriculum import NEVER, Records
from widen.randomization.randomizer import Randomizer
from widen.train.callbacks import RunCallback
from widen.train.config import load_config
from widen.train.ppo import PPOConfig, WidenPPO
from widen.train.ranks import Ranks, join
from widen.train.start import start

NUM_ENVS, STEPS, UPDATES = 12, 7, 3
PPO = PPOConfig(steps=STEPS, minibatches=3, epochs=2, learning_rate=5e-4, entropy_coef=0.01)
ADR = RandomizationConfig.model_validate(
    {
        "curriculum": "adr",
        "adr": {"buffer": 4, "widen_at": 5, "narrow_at": 2},
        "parameters": {"joint_damping": {}, "joint_noise": {}},
    }
)


# ---- updates from given data


def updates(ranks: Ranks, parts: tuple[int, ...]) -> list[dict[str, Any]]:
    """Networks, rate and figures after each update from these of the two parts of the data."""
    ppo = make(PPO, LineEnv(NUM_ENVS * len(parts)), seed=3 + ranks.rank, ranks=ranks)
    ppo._setup_learn(1)
    after = []
    for update in range(UPDATES):
        _fill(ppo, update, parts)
        orders = iter([_order(update, epoch, parts) for epoch in range(PPO.epochs)])
        ppo.rollout_buffer.shuffled = lambda batch_size, orders=orders: next(orders)  # type: ignore
        ppo.train()
        figures = {k: float(v) for k, v in ppo.logger.name_to_value.items()}
        state = {k: v.clone() for k, v in ppo.policy.state_dict().items()}
        after.append({"policy": state, "rate": ppo.learning_rate, "figures": figures})
    return after


def _fill(ppo: WidenPPO, update: int, parts: tuple[int, ...]) -> None:
    """A rollout of random numbers; the policy's own actions and values, so that they fit."""
    generator = torch.Generator().manual_seed(update)

    def drawn(*shape: int) -> Tensor:
        both = torch.randn(STEPS, 2, NUM_ENVS, *shape, generator=generator)
        return both[:, list(parts)].flatten(1, 2)

    # the second part's rewards and observations are of other sizes: moments have to be pooled
    scale = torch.tensor([1.0, 4.0])[list(parts)].repeat_interleave(NUM_ENVS)
    actor, critic, noise = drawn(4), drawn(6), drawn(2)
    rewards, starts = drawn() * scale + scale, drawn() > 1.0
    buffer = ppo.rollout_buffer
    buffer.reset()
    for step in range(STEPS):
        obs = {"actor": actor[step] * scale[:, None], "critic": critic[step] + scale[:, None]}
        actions, values, log_probs = ppo.policy.act(obs, noise[step])
        buffer.add(obs, actions, rewards[step], starts[step], values, log_probs)
    buffer.compute_returns_and_advantage(torch.zeros(buffer.n_envs), starts[0])


def _order(update: int, epoch: int, parts: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Minibatches of sample numbers: each part's own, or for both parts their unions."""
    pieces = []
    for column, part in enumerate(parts):
        generator = torch.Generator().manual_seed(100 * update + 10 * epoch + part)
        own = torch.randperm(STEPS * NUM_ENVS, generator=generator)
        step, env = own // NUM_ENVS, own % NUM_ENVS
        numbers = step * NUM_ENVS * len(parts) + column * NUM_ENVS + env
        pieces.append(numbers.view(PPO.minibatches, -1))
    return torch.cat(pieces, 1).unbind()


# ---- decisions of the curriculum


def records(rollout: int, part: int) -> Records:
    """Boundary episodes of a part: their tickets interleave with the other's.

    In the first rollout an episode of the second part still runs, and holds up later ones.
    """
    generator = np.random.default_rng([rollout, part])
    bounds = np.tile([0, 1, 2, 3], 4)
    tickets = 1000 * rollout + 2 * np.arange(len(bounds)) + part
    scores = generator.uniform(0.0, 8.0, len(bounds)) + 4.0 * part
    oldest = np.full(4, NEVER)
    if rollout == 0 and part == 1:
        oldest[1:3] = 9
    return Records(bounds, tickets, scores, oldest, 1000 * (rollout + 1))


def decisions(ranks: Ranks) -> list[Any]:
    """Bounds after every rollout, as `RunCallback` leaves them in this rank."""
    callback, randomizer = _callback(ranks)
    after = []
    for rollout in range(3):
        randomizer.records = lambda rollout=rollout: records(rollout, ranks.rank)  # type: ignore
        callback._on_rollout_end()
        after.append(randomizer._draws._bounds.tolist())
    return [after, [move._asdict() for move in map(_plain, randomizer.drain_moves())]]


def _plain(move: Any) -> Any:
    return SimpleNamespace(_asdict=lambda: vars(move))


def _callback(ranks: Ranks) -> tuple[RunCallback, Randomizer]:
    randomizer = Randomizer(ADR, ranks.rank, ranks.rank)
    randomizer.settle_every = 0
    size, sim = EnvConfig(num_envs=2), SimConfig(threads=1)
    env = BatchedEnv("fingertip_reach", config=size, sim=sim, perturbation=randomizer)
    callback = RunCallback(ranks, randomizer, print, print, 1, 1, 0.0)
    vec_env, logger = SimpleNamespace(batched=env), Logger(None, [])
    callback.model = SimpleNamespace(env=vec_env, logger=logger)  # type: ignore
    return callback, randomizer


# ---- what goes wrong in one of them


def failures(ranks: Ranks) -> list[str]:
    """How mistakes and bad luck of rank 1 end in this rank."""

    def broken() -> None:
        if ranks.rank == 1:
            raise ValueError("sim.nconmax: too small")

    def overflow() -> None:
        callback, _ = _callback(ranks)
        callback._ppo.env.batched.sim.check = broken
        callback._on_rollout_end()

    def not_finite() -> None:
        ppo = make(PPO, LineEnv(NUM_ENVS), ranks=ranks)
        ppo._setup_learn(1)
        _fill(ppo, 0, (ranks.rank,))
        if ranks.rank == 1:
            ppo.rollout_buffer.returns[2, 3] = torch.nan
        ppo.train()

    def outcome(work: Callable[[], Any]) -> str:
        try:
            work()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "none"

    return [outcome(lambda: ranks.agree(broken)), outcome(overflow), outcome(not_finite)]


# ---- runs


def train(ranks: Ranks, config: Path, run: Path, iterations: int, resume: bool = False) -> Any:
    """A run without evaluation and export; how many ended, of rank 0's episodes."""
    chosen = load_config(str(config), [f"ppo.iterations={iterations}"])
    runner = start(chosen, run, resume, ranks)
    ranks.leave = lambda: None  # type: ignore
    runner._finish = lambda export: {}  # type: ignore
    return runner.train(lambda *_: None)


def everything(folder: Path) -> Iterator[tuple[str, Any]]:
    """What both processes do, one after the other."""
    ranks = join()
    yield "rank", ranks.rank
    yield "updates", updates(ranks, (ranks.rank,))
    yield "decisions", decisions(ranks)
    yield "failures", failures(ranks)
    yield "claims", [ranks.claim(), ranks.claim()]
    config = folder / "small.yaml"
    yield "whole", train(ranks, config, folder / "whole", 12)
    yield "more", train(ranks, config, folder / "one", 6, resume=True)
    # without it gloo's threads may abort the process when Python ends
    type(ranks).leave(ranks)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    results = dict(everything(place))
    torch.save(results, place / f"{results['rank']}.pt")

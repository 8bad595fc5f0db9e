"""How much room contacts and constraint rows need, found by a trial.

MuJoCo Warp allocates them once; too little loses contacts, too much wastes memory and time. What
is needed depends on the hand, the object and how far they are randomised, so a small batch of the
same environments is driven wildly on the CPU, with everything that the randomisation may ever
reach.
"""

from __future__ import annotations

from typing import Any

import torch

from .batched import BatchedEnv, EnvConfig
from .objects import ObjectChoice
from .perturbation import Perturbation
from .sim import SimConfig
from .sim_cpu import CpuSim

NUM_ENVS, STEPS = 128, 100
# A long training meets more than a short trial: half as many again, or at least so many contacts
# more, each with the four rows of a pyramid.
MARGIN, CONTACTS_MORE, ROWS_MORE = 1.5, 8, 32
HELD = 20  # control steps for which a held action lasts


def with_room(
    sim: SimConfig,
    perturbation: Perturbation,
    task: str,
    hand: str,
    object_name: ObjectChoice,
    config: EnvConfig,
) -> SimConfig:
    """`sim` with nconmax and njmax where they are 0.

    Arguments as for `BatchedEnv`. The trial takes about a second.
    """
    if sim.nconmax and sim.njmax:
        return sim
    env = BatchedEnv(
        task,
        hand,
        object_name,
        config.model_copy(update={"num_envs": NUM_ENVS}),
        sim.model_copy(update={"backend": "cpu"}),
        perturbation.widest(),
    )
    contacts, rows = _most(env)
    found = {"nconmax": _room(contacts, CONTACTS_MORE), "njmax": _room(rows, ROWS_MORE)}
    given: dict[str, Any] = {name: value for name, value in found.items() if not getattr(sim, name)}
    return sim.model_copy(update=given)


def _most(env: BatchedEnv) -> tuple[int, int]:
    """Most contacts and constraint rows of an environment under random actions.

    Half of the environments get a new action in every step and tremble; the others hold each
    for a second, which closes and opens whole fingers.
    """
    assert isinstance(env.sim, CpuSim)
    generator = torch.Generator().manual_seed(0)
    half = env.num_envs // 2
    env.reset()
    contacts = rows = 0
    action = torch.zeros(env.num_envs, env.num_actions)
    for step in range(STEPS):
        fresh = torch.rand(env.num_envs, env.num_actions, generator=generator) * 2 - 1
        action = fresh if step % HELD == 0 else torch.cat((fresh[:half], action[half:]))
        env.step(action)
        contacts = max(contacts, int(env.sim.ncon.max()))
        rows = max(rows, int(env.sim.nefc.max()))
    return contacts, rows


def _room(most: int, more: int) -> int:
    """With a margin, in steps of eight."""
    return -(-max(int(MARGIN * most), most + more) // 8) * 8

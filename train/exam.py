"""The examination of a policy: many worlds, the same episodes for everyone, with intervals."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from widen.envs.sim import SimConfig, resolve_backend
from widen.randomization.scripted import Scripted

from .candidate import Candidate
from .evaluate import SEED, Trial
from .exam_conditions import FINE_ITERATIONS, FINE_STEP, Condition, Syllabus
from .exam_file import ExamFile
from .statistics import bootstrap_mean, wilson

EPISODES = 512
"""Per condition unless the user says otherwise."""

MOST_ENVS = 512

Told = Callable[[int, int, dict[str, Any]], None]
"""Is told of every row: how many conditions are done, of how many, and the row."""


def examine(
    candidate: Candidate,
    plan: Syllabus,
    chosen: Sequence[Condition],
    episodes: int,
    file: ExamFile,
    told: Told,
) -> dict[str, Any]:
    """Examine a policy in the chosen conditions, those apart that the file already holds.

    Each row is in the file before the next condition begins, so that whatever ends this process
    costs one condition.

    Args:
        candidate: the policy.
        plan: all its conditions, for the order of the table.
        chosen: to be examined.
        episodes: per condition, at least.
        file: results, past and future.
        told: hears of every chosen condition's row, the old ones first.

    Returns:
        What the file now holds.

    Raises:
        ValueError: a condition does not fit the scene, or the simulation cannot be had.
        OSError: the file cannot be written.
    """
    order = {condition.name: i for i, condition in enumerate(plan.conditions)}
    keys = {c.name: row_key(candidate, c, episodes) for c in chosen}
    backend = resolve_backend(candidate.sim)
    file.keep(order, keys, backend)
    about = {
        "policy": candidate.name,
        "backend": backend,
        "unmoved": list(plan.unmoved),
    }
    done = [c for c in chosen if keys[c.name] in file.rows]
    for i, condition in enumerate(done, 1):
        told(i, len(chosen), file.rows[keys[condition.name]])
    content = file.write(about, order) if done else {}
    count = len(done)
    waiting = [c for c in chosen if c not in done]
    for scene in dict.fromkeys(map(_scene, waiting)):
        # all that were chosen, so that a continued exam has the very same simulation
        alike = [c for c in chosen if _scene(c) == scene]
        world = Scripted([c.script for c in alike])
        num_envs = -(-episodes // rounds(episodes))
        trial = candidate.open(world, num_envs, sim_of(candidate, scene[0]))
        for condition in alike:
            if condition not in waiting:
                continue
            row = examine_in(trial, world, condition, episodes)
            key = keys[condition.name]
            file.rows[key] = {**row, "backend": backend, "key": key}
            content = file.write(about, order)
            count += 1
            told(count, len(chosen), file.rows[key])
    return content


def examine_in(
    trial: Trial, world: Scripted, condition: Condition, episodes: int
) -> dict[str, Any]:
    """One row: a policy in one condition, every environment for one episode, as often as it takes.

    Args:
        trial: environments and the policy's step in them.
        world: their perturbation.
        condition: is in the world's scripts.
        episodes: at least so many.

    Raises:
        ValueError: the simulation lost more than half of the episodes.
    """
    env, began = trial[0], time.perf_counter()
    env.max_steps = condition.steps
    parts = []
    for i in range(rounds(episodes)):
        world.play(condition.script, SEED + i)
        env.generator.manual_seed(SEED + i)
        parts.append(first_episodes(trial))
    env.sim.check()
    score, length, failed, counted = (torch.cat(part) for part in zip(*parts, strict=True))
    goals, total = score[counted].tolist(), int(counted.sum())
    if 2 * total < len(score):
        raise ValueError(
            f"condition {condition.name}: the simulation diverged in {len(score) - total} of"
            f" {len(score)} episodes; expected a stable one: raise sim.substeps"
        )
    drops = int(failed[counted].sum())
    # control steps stretch with the simulation's time step, where that is what is held
    stretch = condition.script.ranges.get("time_step", (1.0, 1.0))[1]
    lived = float(length[counted].sum()) * env.control_dt * stretch
    seconds = condition.steps * env.control_dt * stretch
    return {
        "name": condition.name,
        "group": condition.group,
        "summary": condition.summary,
        "reference": condition.reference,
        "episodes": total,
        # whole stretched steps miss the reference's length by less than one
        "episode_seconds": round(seconds, 6 if stretch == 1.0 else 1),
        "event_seconds": None if condition.event is None else condition.event * env.control_dt,
        "goals_mean": round(sum(goals) / total, 4),
        "goals_ci": [round(end, 4) for end in bootstrap_mean(goals)],
        "goals_median": statistics.median(goals),
        "goals_per_minute": round(60.0 * sum(goals) / lived, 4),
        "drop_rate": round(drops / total, 4),
        "drop_ci": [round(end, 4) for end in wilson(drops, total)],
        "diverged": len(score) - total,
        "wall_seconds": round(time.perf_counter() - began, 3),
    }


def first_episodes(trial: Trial) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One episode in every environment.

    What an environment does after its first episode is not looked at: to count it would favour
    the short ones, which are the drops.

    Returns:
        score, length [control steps], failed and counted, (N,) each, on the CPU; an episode that
        the simulation lost does not count.
    """
    env, step = trial
    score, length = torch.zeros(2, env.num_envs, device=env.device)
    failed, counted = torch.zeros(2, env.num_envs, device=env.device, dtype=torch.bool)
    fresh = torch.ones(env.num_envs, device=env.device, dtype=torch.bool)
    running = fresh.clone()
    obs = env.reset()
    for _ in range(env.max_steps):
        result = step(obs, fresh)
        obs, fresh = result.obs, result.terminated | result.truncated
        ended, episodes = fresh & running, result.episodes
        score = torch.where(ended, episodes.score, score)
        length = torch.where(ended, episodes.length.float(), length)
        failed |= ended & episodes.failed
        counted |= ended & episodes.counted
        running &= ~fresh
    return score.cpu(), length.cpu(), failed.cpu(), counted.cpu()


def rounds(episodes: int) -> int:
    """How often all environments play an episode."""
    return -(-episodes // MOST_ENVS)


def sim_of(candidate: Candidate, fine: bool) -> SimConfig:
    """The simulation of a condition: the candidate's own, or a finer one."""
    sim = candidate.sim
    if not fine:
        return sim
    substeps = max(1, round(1.0 / (candidate.env.control_hz * FINE_STEP)))
    iterations = FINE_ITERATIONS * sim.iterations
    # the room that Warp needs is measured anew
    return sim.model_copy(update={"substeps": substeps, "iterations": iterations})


def row_key(candidate: Candidate, condition: Condition, episodes: int) -> str:
    """Tells apart what would give different numbers."""
    sim = sim_of(candidate, condition.fine)
    about = {
        "policy": candidate.digest,
        "condition": condition.describe(),
        "episodes": episodes,
        "backend": resolve_backend(sim),
        "substeps": sim.substeps,
        "iterations": sim.iterations,
        "control_hz": candidate.env.control_hz,
        "widen": importlib.metadata.version("widen"),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _scene(condition: Condition) -> tuple[bool, int, bool]:
    """Conditions with equal answers can share environments."""
    script = condition.script
    return condition.fine, script.contact_dims, "body_ipos" in script.model_fields

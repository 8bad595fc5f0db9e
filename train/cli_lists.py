"""What a config may name, and the policies that are shipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rows = list[dict[str, Any]]

_FIGURES = ("episodes", "episode_seconds", "goals_mean", "goals_ci", "drop_rate", "drop_ci")


def tasks() -> Rows:
    """name, summary, object, episode_seconds, rewards (default weights)."""
    from widen.envs.task import TASKS, task_class

    kinds = {name: task_class(name) for name in TASKS}
    return [
        {
            "name": name,
            "summary": kind.summary,
            "object": kind.object,
            "episode_seconds": kind.episode_seconds,
            "rewards": list(kind.weights),
        }
        for name, kind in kinds.items()
    ]


def objects() -> Rows:
    """name, summary, size (its lengths along x, y and z [m]), mass [kg], friction."""
    from widen.envs.objects import OBJECTS

    return [
        {
            "name": name,
            "summary": what.summary,
            "size": [round(2.0 * half, 9) for half in what.half_size],
            "mass": what.mass,
            "friction": what.friction,
        }
        for name, what in OBJECTS.items()
    ]


def hands() -> Rows:
    """name, summary, joints (how many), fingertips."""
    from widen.envs.hand import list_hands

    return [
        {
            "name": hand.name,
            "summary": hand.summary,
            "joints": len(hand.joints),
            "fingertips": list(hand.fingertips),
        }
        for hand in list_hands()
    ]


def parameters() -> Rows:
    """name, summary, unit, nominal, limits, step, kind, source."""
    from widen.randomization.parameters import CATALOGUE

    keys = ("name", "summary", "unit", "nominal", "limits", "step", "kind", "source")
    return [{key: getattr(entry, key) for key in keys} for entry in CATALOGUE.values()]


def configs() -> Rows:
    """name, summary."""
    from .config import shipped_configs

    return [{"name": name, "summary": summary} for name, summary in shipped_configs().items()]


def policies() -> Rows:
    """name, summary, task, training seconds [s] and steps, goals per episode in two worlds.

    Figures are those of the policy's exam; held_out is the world of `docs/exam.md`.
    """
    from .cli_subject import shipped_policies

    return [
        {
            "name": name,
            "summary": about["summary"],
            "task": about["task"],
            "training_seconds": about["training"]["seconds"],
            "training_steps": about["training"]["steps"],
            **{
                world: {key: row[key] for key in _FIGURES}
                for row in about["exam"]["conditions"]
                if (world := row["name"]) in ("nominal", "held_out")
            },
        }
        for name, about in shipped_policies().items()
    ]


LISTS: dict[str, Callable[[], Rows]] = {
    "tasks": tasks,
    "objects": objects,
    "hands": hands,
    "parameters": parameters,
    "configs": configs,
    "policies": policies,
}

"""What a config may name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rows = list[dict[str, Any]]


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


LISTS: dict[str, Callable[[], Rows]] = {
    "tasks": tasks,
    "hands": hands,
    "parameters": parameters,
    "configs": configs,
}

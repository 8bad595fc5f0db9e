"""A run with a log written by hand, for the tests of what shows it."""

from __future__ import annotations

from widen.train.run_folder import RunFolder

CONFIG = {
    "task": "cube_rotate",
    "hand": "leap",
    "seed": 3,
    "env": {"num_envs": 512},
    "randomization": {"curriculum": "adr", "adr": {"widen_at": 20, "narrow_at": 10}},
}
MASS = {"name": "object_mass", "unit": "×", "nominal": 1.0, "limit_low": 0.0, "limit_high": 4.0}
LATENCY = {"name": "latency", "unit": "steps", "nominal": 0.0, "limit_low": 0.0, "limit_high": 2.0}


def interval(iteration: int, total: int, mass: tuple, latency: tuple, **others) -> dict:
    keys = ("low", "high", "score_low", "score_high")
    return {
        "kind": "interval",
        "iteration": iteration,
        "total_iterations": total,
        "steps": 1000 * iteration,
        "seconds": 2.0 * iteration,
        "fps": 12_345.0,
        "goals_mean": 4.0 * iteration,
        "drop_rate": 0.5 / iteration,
        "npd": None if iteration == 1 else -1.5,
        "return_mean": 10.0,
        "parameters": [
            {**MASS, **dict(zip(keys, mass, strict=True))},
            {**LATENCY, **dict(zip(keys, latency, strict=True))},
        ],
        **others,
    }


def move(iteration: int, name: str, side: str, old: float, new: float) -> dict:
    keys = {"kind": "move", "iteration": iteration, "steps": 1000 * iteration}
    return {**keys, "name": name, "side": side, "old": old, "new": new, "mean": 21.5, "count": 240}


def make(path, total: int) -> RunFolder:
    run = RunFolder.create(path, CONFIG)
    run.append(interval(1, total, (1.0, 1.0, None, None), (0.0, 0.0, None, None)))
    run.append(move(2, "object_mass", "high", 1.0, 2.0), move(2, "latency", "high", 0.0, 0.5))
    run.append(interval(2, total, (1.0, 2.0, None, 21.5), (0.0, 0.5, None, 18.0)))
    run.append(move(3, "object_mass", "high", 2.0, 3.0))
    run.append(interval(3, total, (1.0, 3.0, 12.0, 21.5), (0.0, 0.5, None, 18.0)))
    return run

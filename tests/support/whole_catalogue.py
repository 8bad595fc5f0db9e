"""Every parameter that a task can have."""

from __future__ import annotations

import functools

from widen.envs.hand import load_hand
from widen.envs.scene import build_scene
from widen.envs.task import task_class
from widen.randomization.parameters import CATALOGUE, check_scene


@functools.cache
def parameters_of(task: str) -> tuple[str, ...]:
    """Names of the whole catalogue, less what is another task's and what a scene without an object cannot have."""
    kind = task_class(task)
    thing = kind.object
    scene = build_scene(load_hand("leap"), thing, timestep=1 / 60)
    names = []
    for name, what in CATALOGUE.items():
        if what.kind == "task" and name not in kind.parameters:
            continue
        try:
            check_scene([name], scene)
        except ValueError as error:
            # nothing but this may take a parameter out of the tests
            if thing is not None or "no object" not in str(error):
                raise
        else:
            names.append(name)
    return tuple(names)

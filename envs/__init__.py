"""Simulated hands as batched environments. Importing this registers them with Gymnasium:

import gymnasium, widen.envs
env = gymnasium.make("widen/CubeRotate-v0")
"""

import contextlib

from .registration import register_envs

# a robot computer has widen.envs.layout and no gymnasium
with contextlib.suppress(ModuleNotFoundError):
    register_envs()

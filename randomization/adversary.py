"""What works against the policy: an adversary network in every environment, pushes on the object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .parameter import Parameter, Plant

ADVERSARY: tuple[Parameter, ...] = ()


class Adversary:
    """Effects of the "adversary" parameters. One whose most value is not given costs nothing.

    Args:
        most: largest value of every parameter that varies, by name.
        plant: the simulation.
    """

    def __init__(self, most: Mapping[str, float], plant: Plant) -> None:
        pass

    def begin(self, which: Tensor, values: Mapping[str, Tensor]) -> None:
        """New episodes of environments `which` have these values (K or N,) by parameter."""

    def act(self, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Joint targets (N, nu) [rad] as the adversary leaves them, and its wrench (N, 6) or None."""
        return target, None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

"""What may stand between an ideal environment and the policy.

`BatchedEnv` calls a `Perturbation` at fixed points of a control step and knows nothing else of
randomization. `NoPerturbation` is the nominal world.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from widen.envs.scene import Scene
    from widen.envs.sim import BatchSim

Readings = dict[str, Tensor]


class Perturbation(Protocol):
    """Randomization as the environment sees it. Every array has one row per environment."""

    model_fields: tuple[str, ...]
    """MjModel fields that `begin` writes per environment; declared to the simulation."""
    contact_dims: int
    """condim that contacts of the object need at least: 3 slides, 4 also spins, 6 also rolls."""
    num_privileged: int
    """Width of `privileged()`."""
    task_parameters: tuple[str, ...]
    """Names in `task_values`, which the task must know; see `Task.parameters`."""

    def attach(self, sim: BatchSim, scene: Scene, control_dt: float) -> None:
        """Called once by the environment, before anything else.

        Args:
            sim: the simulation whose per-environment fields `begin` writes.
            scene: names and addresses of the hand and the object.
            control_dt: seconds of one control step.
        """
        ...

    def begin(self, which: Tensor) -> None:
        """New episodes start: draw their values, write model fields, call `sim.commit`.

        Called before `sim.reset` of the same environments. `which` is ids or a mask, here and
        below; see `envs.rows`.
        """
        ...

    def task_values(self) -> dict[str, Tensor]:
        """What is drawn for the task itself, by the names of its parameters, (N,) each."""
        ...

    def end(self, which: Tensor, scores: Tensor, counted: Tensor) -> None:
        """Episodes have ended with these scores.

        Args:
            which: the environments.
            scores: (K or N,), goals reached; the caller's own array, to be read now.
            counted: (K or N,) bool, False for a first episode cut short by staggering, whose score
                says nothing about the policy. One that diverged counts with what it had reached.
        """
        ...

    def act(self, target: Tensor, substeps: int) -> tuple[Tensor, Tensor | None]:
        """What the motors receive when the policy asks for `target`.

        Args:
            target: (N, nu) joint targets [rad] in actuator order, float32.
            substeps: simulation steps in a control step.

        Returns:
            ctrl (N, substeps, nu) [rad], one row per substep, and a wrench (N, 6) on the object
            [N, N m] or None.
        """
        ...

    def observe(self, readings: Readings) -> Readings:
        """What the sensors report of the true `readings`, each (N, ...); called once a step."""
        ...

    def observe_reset(self, readings: Readings, which: Tensor) -> Readings:
        """As `observe` for environments that were just reset; readings hold only their rows,
        with a mask all rows.

        Delay queues of these environments are filled with the reading.
        """
        ...

    def widest(self) -> Perturbation:
        """A fresh one, not attached, of the same kind and as hard as this one may ever become."""
        ...

    def privileged(self) -> Tensor:
        """The drawn parameters as the critic may see them, (N, num_privileged), about -1 to 1."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which `load_state_dict` continues exactly."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        ...


class NoPerturbation:
    """The nominal world: targets reach the motors at once, readings are true."""

    model_fields: tuple[str, ...] = ()
    contact_dims = 3
    num_privileged = 0
    task_parameters: tuple[str, ...] = ()

    def attach(self, sim: BatchSim, scene: Scene, control_dt: float) -> None:
        self._empty = torch.zeros(sim.num_envs, 0, device=sim.device)

    def begin(self, which: Tensor) -> None:
        pass

    def task_values(self) -> dict[str, Tensor]:
        return {}

    def end(self, which: Tensor, scores: Tensor, counted: Tensor) -> None:
        pass

    def act(self, target: Tensor, substeps: int) -> tuple[Tensor, Tensor | None]:
        return target[:, None, :].expand(-1, substeps, -1), None

    def observe(self, readings: Readings) -> Readings:
        return readings

    def observe_reset(self, readings: Readings, which: Tensor) -> Readings:
        return readings

    def widest(self) -> NoPerturbation:
        return NoPerturbation()

    def privileged(self) -> Tensor:
        return self._empty

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

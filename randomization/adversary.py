"""What works against the policy: an adversary network in every environment, pushes on the object."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from widen.envs.rotations import quat_to_6d
from widen.envs.rows import count, merge, put

from .parameter import Plant, effect

HIDDEN = (24, 24, 24)
"""Units of an adversary's hidden layers. [R] has 3 x 265: for hundreds of environments on a CPU
the weights alone, read in every step, would take longer than the physics."""
MOVE = 0.2
"""Largest change of a joint target that an adversary asks for [rad]."""
NEAR = 0.05
"""Distance from the nest that is 1 to an adversary [m]."""
PULSES_PER_SECOND = (0.0125, 1.25)
"""Lowest and highest rate of pushes: [D]'s probabilities .1 to 10 % of one in 80 ms."""
PULSE_DECAY, PULSE_INTERVAL = 0.99, 0.08
"""[D]: a push keeps this share of its force in each of these intervals [s]."""

# ruff format would give every argument a line and hide the table
# fmt: off
ADVERSARY = (
    effect("adversary", "adversary_action", "1", 0.5, 0.01,
            "share of a random network's moves in every change of the joint targets",
            "[R] alpha by ADR, [X] found .16"),
    effect("adversary", "adversary_wrench", "m/s^2", 5.0, 0.05,
            "largest force per mass, per axis, by which a random network pushes and turns the object",
            "[R] beta by ADR; range of ours"),
    effect("adversary", "pulse_force", "m/s^2", 5.0, 0.05,
            "std per axis of random pushes on the object, as force per mass",
            "[D] 1, [X] 2"),
)
# fmt: on


class Networks:
    """A random perceptron for every environment, all evaluated at once.

    Layers are affine with rectifiers between them and tanh at the end. Weights are normal with
    variance 2 / inputs before a rectifier and 1 / inputs at the end, so that inputs of about unit
    size give outputs that fill -1 to 1 (He et al., arXiv 1502.01852). Biases have the standard
    deviation .5, so that an output has a mean of its own.

    Args:
        sizes: of the input, the hidden layers and the output.
        num_envs: number of environments N.
        generator: draws every weight, on the simulation's device.
    """

    BIAS = 0.5

    def __init__(self, sizes: Sequence[int], num_envs: int, generator: torch.Generator) -> None:
        self._generator, device = generator, generator.device
        scales, self._shapes = [], list(itertools.pairwise(sizes))
        for layer, (inputs, outputs) in enumerate(self._shapes):
            last = layer == len(self._shapes) - 1
            std = math.sqrt((1.0 if last else 2.0) / inputs)
            scales += [torch.full((inputs * outputs,), std), torch.full((outputs,), self.BIAS)]
        self._scale = torch.cat(scales).to(device)
        self._sizes = [size for i, o in self._shapes for size in (i * o, o)]
        # each matrix in memory of its own: products would copy views of rows as long as all weights
        self._parts = [torch.zeros(num_envs, size, device=device) for size in self._sizes]

    @property
    def weights(self) -> Tensor:
        """(N, W), a copy: of each layer in turn the matrix (inputs, outputs), then the biases."""
        return torch.cat(self._parts, 1)

    @weights.setter
    def weights(self, values: Tensor) -> None:
        for part, value in zip(self._parts, values.split(self._sizes, 1), strict=True):
            part.copy_(value)

    def renew(self, which: Tensor) -> None:
        """Environments `which` get other networks."""
        shape = (count(which), len(self._scale))
        sample = torch.randn(*shape, generator=self._generator, device=self._scale.device)
        values = sample.mul_(self._scale).split(self._sizes, 1)
        for part, value in zip(self._parts, values, strict=True):
            put(part, which, value)

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Views: matrices (N, inputs, outputs) and biases (N, 1, outputs)."""
        return [
            (matrix.unflatten(1, shape), bias[:, None])
            for shape, matrix, bias in zip(
                self._shapes, self._parts[::2], self._parts[1::2], strict=True
            )
        ]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs (N, sizes[-1]) in -1 to 1 for inputs (N, sizes[0])."""
        *hidden, (matrix, bias) = self.layers()
        x = inputs[:, None]
        for weights, offset in hidden:
            x = torch.baddbmm(offset, x, weights).relu_()
        return torch.baddbmm(bias, x, matrix)[:, 0].tanh_()


class Adversary:
    """Effects of the "adversary" parameters. One whose most value is not given costs nothing.

    In every environment an adversary, a network of random weights that are drawn anew in every
    episode, sees joint positions, the last joint targets and the object's pose, and gives moves m
    within +-`MOVE` of the joint targets and u in [-1, 1]^6. With a target t after t', the motors
    get t' + (1 - alpha) (t - t') + alpha m. The object gets the force beta u[:3] mass and the
    torque beta u[3:] mass times the object's half size: that of the cube in its bounding sphere.

    Besides, pushes begin on the object's centre of mass at random. Their rate belongs to the
    episode, log-uniform within `PULSES_PER_SECOND`. A push is a force of normal components with
    the standard deviation `pulse_force` times the mass, it decays, and the next replaces it.

    Args:
        most: largest value of every parameter that varies, by name.
        plant: the simulation.
    """

    def __init__(self, most: Mapping[str, float], plant: Plant) -> None:
        self._plant, self._generator = plant, plant.generator
        num_envs, num_joints, device = plant.num_envs, plant.num_joints, plant.generator.device
        self._num_moves = num_joints if "adversary_action" in most else 0
        outputs = self._num_moves + (6 if "adversary_wrench" in most else 0)
        self._networks: Networks | None = None
        self._tensors: dict[str, Tensor] = {}
        if outputs:
            self._make_senses(plant)
            sizes = (len(self._centre) + 6 * self._sees_object, *HIDDEN, outputs)
            self._networks = Networks(sizes, num_envs, plant.generator)
            self._tensors["asked"] = torch.zeros(num_envs, num_joints, device=device)
        for name in most:
            self._tensors[name] = torch.zeros(num_envs, 1, device=device)
        if "pulse_force" in most:
            self._tensors["chance"] = torch.zeros(num_envs, 1, device=device)
            self._tensors["push"] = torch.zeros(num_envs, 3, device=device)
            self._decay = PULSE_DECAY ** (plant.control_dt / PULSE_INTERVAL)
        if "adversary_wrench" in most or "pulse_force" in most:
            self._mass = object_mass(plant)
            arm = _half_size(plant).expand(-1, 3)
            self._arms = torch.cat((torch.ones_like(arm), arm), 1)  # (N or 1, 6)

    def _make_senses(self, plant: Plant) -> None:
        """Centre and scale of joint positions, joint targets and the object's position."""
        scene = plant.scene
        self._sees_object = scene.object_body is not None
        middle, reach = 0.5 * (scene.upper + scene.lower), 0.5 * (scene.upper - scene.lower)
        centre, scale = [*middle, *middle], [*1 / reach, *1 / reach]
        if self._sees_object:
            centre, scale = [*centre, *scene.hand.nest], [*scale, *[1 / NEAR] * 3]
        device = plant.generator.device
        self._centre = torch.tensor(centre, dtype=torch.float32, device=device)
        self._scale = torch.tensor(scale, dtype=torch.float32, device=device)
        self._start = scene.object_qpos

    def begin(self, which: Tensor, values: Mapping[str, Tensor]) -> None:
        """New episodes of environments `which` have these values (K or N,) by parameter."""
        for name, value in values.items():
            put(self._tensors[name], which, value[:, None])
        if self._networks is not None:
            self._networks.renew(which)
        if "pulse_force" in values:
            low, high = (math.log(rate) for rate in PULSES_PER_SECOND)
            rate = (low + (high - low) * self._uniform(count(which), 1)).exp()
            put(self._tensors["chance"], which, -torch.expm1(-rate * self._plant.control_dt))
            put(self._tensors["push"], which, 0.0)

    def hold(self, which: Tensor, position: Tensor) -> None:
        """Before the first target of `which` stands the position (K or N, nu) of the joints."""
        if "asked" in self._tensors:
            self._tensors["asked"] = merge(self._tensors["asked"], which, position)

    def act(self, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Joint targets (N, nu) [rad] as the adversary leaves them, and its wrench (N, 6) or None.

        The wrench is force [N] and torque [N m] at the object's centre of mass, world frame.
        """
        changed, wrench = target, None
        if self._networks is not None:
            asked = self._tensors["asked"]
            found = self._networks(self._sense(asked))
            if self._num_moves:
                moved = torch.add(asked, found[:, : self._num_moves], alpha=MOVE)
                changed = torch.lerp(target, moved, self._tensors["adversary_action"])
            if "adversary_wrench" in self._tensors:
                wrench = (
                    found[:, self._num_moves :] * self._tensors["adversary_wrench"] * self._arms
                )
            self._tensors["asked"] = target
        if "push" in self._tensors:
            push = torch.nn.functional.pad(self._push(), (0, 3))
            wrench = push if wrench is None else wrench + push
        return changed, None if wrench is None else wrench * self._mass.float()

    def _sense(self, asked: Tensor) -> Tensor:
        """(N, inputs) of about unit size."""
        qpos = self._plant.sim.qpos
        joints = qpos.index_select(1, self._plant.joints).float()
        if not self._sees_object:
            return (torch.cat((joints, asked), -1) - self._centre) * self._scale
        pose = qpos[:, self._start : self._start + 7].float()
        state = (torch.cat((joints, asked, pose[:, :3]), -1) - self._centre) * self._scale
        return torch.cat((state, quat_to_6d(pose[:, 3:])), -1)

    def _push(self) -> Tensor:
        """Force per mass (N, 3) [m/s^2] of the running pushes, one control step later."""
        tensors = self._tensors
        begins = self._uniform(len(tensors["push"]), 1) < tensors["chance"]
        new = tensors["pulse_force"] * torch.randn(
            *tensors["push"].shape, generator=self._generator, device=self._generator.device
        )
        push = tensors["push"] = torch.where(begins, new, self._decay * tensors["push"])
        return push

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._generator, device=self._generator.device)

    def state_dict(self) -> dict[str, Any]:
        state = {name: value.clone() for name, value in self._tensors.items()}
        if self._networks is not None:
            state["weights"] = self._networks.weights
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        for name, value in self._tensors.items():
            self._tensors[name] = state[name].to(value.device).clone()
        if self._networks is not None:
            self._networks.weights = state["weights"]


def object_mass(plant: Plant) -> Tensor:
    """The object's mass in kg: (N, 1), live, where it is randomized, else (N or 1, 1)."""
    body = plant.parts.object_body
    try:
        return plant.sim.per_env("body_mass")[:, body : body + 1]
    except KeyError:
        mass = plant.scene.nominal("body_mass", plant.num_envs)[:, body : body + 1]
        return torch.tensor(mass, dtype=torch.float32, device=plant.generator.device)


def _half_size(plant: Plant) -> Tensor:
    """Nominal half edge [m] of the cube in the object's bounding sphere, (N or 1, 1)."""
    bounds = plant.scene.nominal("geom_rbound", plant.num_envs)[:, plant.scene.object_geoms]
    half = bounds.max(1, keepdims=True) / math.sqrt(3.0)
    return torch.tensor(half, dtype=torch.float32, device=plant.generator.device)

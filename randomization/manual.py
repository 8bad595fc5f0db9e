"""The manual randomization of "Learning Dexterous In-Hand Manipulation" as a held-out world.

[D] is arXiv 1808.00177: the world in which, with ranges tuned by hand, policies were trained that
worked on a real hand. Nothing in widen trains on this distribution; by it curricula are compared. docs/exam.md
lists what is taken from [D] and what has no counterpart here.

Ranges that [D] draws uniformly are ordinary scripted ranges. What it draws otherwise is written
here: log-uniform and normal model fields, noise in units of an action, forces that come and decay.
[G] is openai/robogym, whose wrappers say what the paper's words leave open.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from widen.envs.perturbation import Readings
from widen.envs.rows import count, put, take

from .actuation import Actuation
from .adversary import object_mass
from .parameter import Plant
from .scripted import Layer, Script, nominal_field

DAMPING = (0.3, 3.0)  # of every joint, log-uniform
GAIN = (0.75, 1.5)  # kp of every motor, log-uniform
GRAVITY = 0.4  # std of every component [m/s^2]
SCALED, OFFSET, JITTER = 0.05, 0.015, 0.015  # std of actions in -1..1
BACKLASH, BACKLASH_SPREAD = 0.01, 0.3  # gap [rad], ours; std of its logarithm, as in [G]
PUSHES = (0.001, 0.1)  # probability of a new force in one of [D]'s control steps, log-uniform
PUSH = 1.0  # std of each component of a force, by the object's mass [m/s^2]
DECAY = 0.99  # of a force in one of [D]'s control steps
STEP = 0.08  # [D]'s control step [s]

HAND = {
    "hand_mass": (0.5, 1.5),
    "hand_friction": (0.7, 1.3),
    "joint_limits": (0.15, 0.15),
}
OBJECT = {
    "object_mass": (0.5, 1.5),
    "object_size": (0.95, 1.05),
    "object_friction": (0.7, 1.3),
    "object_pos_bias": (0.005, 0.005),
    "object_pos_noise": (0.001, 0.001),
    "object_rot_bias": (0.1, 0.1),
    "object_rot_noise": (0.1, 0.1),
    "object_freeze": (0.2, 0.2),
}


def held_out(scene_has_object: bool) -> Script:
    """The held-out world.

    Args:
        scene_has_object: without one only the hand's part is left.
    """
    if not scene_has_object:
        return Script(HAND, (ManualPhysics, ManualActions, ManualBacklash))
    return Script(HAND | OBJECT, (ManualPhysics, ManualActions, ManualBacklash, ManualForces))


class ManualPhysics(Layer):
    """Damping of every joint and kp of every motor log-uniform, gravity normal, all independent."""

    fields = ("actuator_biasprm", "actuator_gainprm", "dof_damping", "opt.gravity")

    def __init__(self, plant: Plant) -> None:
        super().__init__(plant)
        self._nominal = {name: nominal_field(plant.sim, name) for name in self.fields}

    def begin(self, which: Tensor) -> None:
        plant, n, nu = self.plant, count(which), self.plant.num_joints
        rows = {name: x.expand(n, *x.shape).clone() for name, x in self._nominal.items()}
        rows["dof_damping"][:, plant.parts.dofs] *= log_uniform(DAMPING, plant, n, nu)
        gain = log_uniform(GAIN, plant, n, nu)
        rows["actuator_gainprm"][..., 0] *= gain
        rows["actuator_biasprm"][..., 1] *= gain
        rows["opt.gravity"] += GRAVITY * normal(plant, n, 3)
        for name, values in rows.items():
            put(plant.sim.per_env(name), which, values)


class ManualActions(Layer):
    """Each motor's action is disturbed:

        a (1 + .05 n) + .015 n' + .015 n''

    n and n' are drawn once an episode for each motor, n'' in every step, all standard normal. An
    action of [D] is the distance from where the joint is to where it shall be, by half its range.
    """

    def __init__(self, plant: Plant) -> None:
        super().__init__(plant)
        half = torch.tensor((plant.scene.upper - plant.scene.lower) / 2.0)
        self._half = half.to(plant.sim.device, torch.float32)  # (nu,)
        self._stretch = torch.zeros(plant.num_envs, plant.num_joints, device=plant.sim.device)
        self._offset = torch.zeros_like(self._stretch)

    def begin(self, which: Tensor) -> None:
        samples = normal(self.plant, 2 * count(which), self.plant.num_joints).float()
        stretch, offset = samples.tensor_split(2)
        put(self._stretch, which, SCALED * stretch)
        put(self._offset, which, OFFSET * self._half * offset)

    def target(self, target: Tensor) -> Tensor:
        away = target - self.plant.sim.qpos[:, self.plant.joints].float()
        jitter = normal(self.plant, *target.shape).float() * (JITTER * self._half)
        return torch.addcmul(target + self._offset + jitter, self._stretch, away)


class ManualBacklash(Layer):
    """The catalogue's backlash with log-normal gaps, .01 e^(.3 n) rad, one for each episode."""

    def __init__(self, plant: Plant) -> None:
        super().__init__(plant)
        self._effect = Actuation({"backlash": math.inf}, plant)

    def begin(self, which: Tensor) -> None:
        gap = BACKLASH * (BACKLASH_SPREAD * normal(self.plant, count(which))).exp()
        self._effect.begin(which, {"backlash": gap})

    def observe_reset(self, readings: Readings, which: Tensor) -> None:
        self._effect.hold(which, take(self.plant.sim.qpos, which)[:, self.plant.joints])

    def target(self, target: Tensor) -> Tensor:
        return self._effect.act(target, 1)[:, 0]


class ManualForces(Layer):
    """A force on the object, the same in all directions, is drawn now and then and decays.

    Probability and decay are [D]'s for steps of 80 ms, converted to this control step's length.
    """

    def __init__(self, plant: Plant) -> None:
        super().__init__(plant)
        device, share = plant.sim.device, plant.control_dt / STEP
        self._share, self._decay = share, DECAY**share
        self._mass = object_mass(plant)
        self._odds = torch.zeros(plant.num_envs, 1, device=device, dtype=torch.float64)
        self._wrench = torch.zeros(plant.num_envs, 6, device=device)

    def begin(self, which: Tensor) -> None:
        odds = log_uniform(PUSHES, self.plant, count(which), 1)
        put(self._odds, which, 1.0 - (1.0 - odds) ** self._share)
        put(self._wrench, which, 0.0)

    def wrench(self) -> Tensor:
        new = PUSH * self._mass.float() * normal(self.plant, self.plant.num_envs, 3).float()
        push = uniform(self.plant, self.plant.num_envs, 1) < self._odds
        force = torch.where(push, new, self._decay * self._wrench[:, :3])
        self._wrench = torch.cat((force, torch.zeros_like(force)), -1)
        return self._wrench


def log_uniform(bounds: tuple[float, float], plant: Plant, *shape: int) -> Tensor:
    """Numbers whose logarithm is uniform between those of the bounds, float64."""
    low, high = map(math.log, bounds)
    return (low + (high - low) * uniform(plant, *shape)).exp()


def uniform(plant: Plant, *shape: int) -> Tensor:
    generator = plant.generator
    return torch.rand(*shape, generator=generator, device=generator.device, dtype=torch.float64)


def normal(plant: Plant, *shape: int) -> Tensor:
    generator = plant.generator
    return torch.randn(*shape, generator=generator, device=generator.device, dtype=torch.float64)

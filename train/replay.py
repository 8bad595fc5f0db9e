"""A recorded run, done again by the simulated hand: how far apart are the two?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import mujoco
import numpy as np

from widen.envs.scene import Scene

TIMESTEP = 0.002  # of the simulation, where a log does not tell one [s]


@dataclass(frozen=True)
class Trace:
    """What a robot was told and did; a row for each cycle, joints in the scene's order.

    Attributes:
        measured_at: (T,) when the joints were where they are said to be [s].
        joint_pos: (T, nu) [rad], not a number where unknown.
        sent_at: (T,) when the target came into force [s].
        sent: (T, nu) joint targets [rad], not a number where none was sent.
        object_pose: (T, 7) position [m] and unit quaternion (w, x, y, z), not a number where
            unknown.
        anew: (T,) bool, cycles in which the scene may have been put back.
    """

    measured_at: np.ndarray
    joint_pos: np.ndarray
    sent_at: np.ndarray
    sent: np.ndarray
    object_pose: np.ndarray
    anew: np.ndarray


class Replayed(NamedTuple):
    """One cycle, done again."""

    qpos: np.ndarray
    """(nq,) of the simulation; where it does not run, as measured"""
    joint_pos: np.ndarray
    """(nu,) [rad] simulated, at the time of the measurement; not a number where not to be compared:
    the simulation does not run or began there, or there was no new measurement"""


def replay(scene: Scene, trace: Trace) -> Iterator[Replayed]:
    """Send the recorded joint targets to the simulated hand; one item for every cycle.

    The simulation begins at the first target, at rest, with joints and object as measured, and runs
    on its own from there: nothing is put right later, so that differences add up as they do between
    a simulator and a robot. Where no target was sent (the motors were off), and in cycles `anew`,
    it begins again.
    """
    hand = _Hand(scene)
    running = False
    for k in range(len(trace.sent)):
        joints, driven = trace.joint_pos[k], bool(np.isfinite(trace.sent[k]).all())
        compared = np.full(len(joints), np.nan)
        if not driven or trace.anew[k]:
            running = False
        if running:
            known = bool(np.isfinite(joints).all())
            # an old measurement lies before what has been simulated
            if known and hand.advance(round(hand.elapsed(trace.measured_at[k]))):
                compared = hand.joint_pos
        elif np.isfinite(joints).all():
            hand.place(joints, trace.object_pose[k], trace.measured_at[k])
            running = driven
        yield Replayed(hand.qpos, compared)
        if running:
            # recorded times have rounding errors
            hand.advance(math.floor(hand.elapsed(trace.sent_at[k]) + 1e-3))
            hand.data.ctrl[:] = trace.sent[k]


class _Hand:
    """The simulation, by the time of the recording."""

    def __init__(self, scene: Scene) -> None:
        self._scene, self.data = scene, mujoco.MjData(scene.model)
        self.data.qpos[scene.joint_qpos] = scene.hand.home
        self._begin, self._steps = 0.0, 0

    @property
    def qpos(self) -> np.ndarray:
        return self.data.qpos.copy()

    @property
    def joint_pos(self) -> np.ndarray:
        return self.data.qpos[self._scene.joint_qpos]

    def place(self, joints: np.ndarray, pose: np.ndarray, moment: float) -> None:
        """At rest, at a moment; an object whose pose is unknown rests where it does in training."""
        scene = self._scene
        mujoco.mj_resetData(scene.model, self.data)
        self.data.qpos[scene.joint_qpos] = self.data.ctrl[:] = joints
        if scene.object_body is not None and np.isfinite(pose).all():
            self.data.qpos[scene.object_qpos : scene.object_qpos + 7] = pose
        self._begin, self._steps = moment, 0

    def elapsed(self, moment: float) -> float:
        """Steps from the beginning to a moment."""
        return (moment - self._begin) / self._scene.model.opt.timestep

    def advance(self, due: int) -> bool:
        """So many steps from the beginning, but never back; says whether it stands there."""
        if due > self._steps:
            mujoco.mj_step(self._scene.model, self.data, due - self._steps)
            self._steps = due
        return due == self._steps

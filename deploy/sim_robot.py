"""A MuJoCo hand that goes by the clock on the wall, as a real one does."""

from __future__ import annotations

from typing import Any

import numpy as np

from .robot import Clock, Measurement, MonotonicClock

DROPPED = 0.1  # from the resting place [m]; the default of training
ABOVE_NEST = (-0.008, 0.0, 0.014)  # where an object is let go, from its resting place [m]


class SimRobot:
    """A simulated hand behind the `Robot` protocol.

    Simulated time is the clock's: whenever the robot is looked at or spoken to, the physics is
    first caught up to that moment. Nobody can tell this from a simulation that runs in a thread of
    its own, and there is no second thread that could make the controller late. When the object has
    fallen, the scene is put back as at the start, hand at home, and a drop is counted.
    """

    def __init__(
        self,
        model: Any,
        joint_names: tuple[str, ...],
        joint_qpos: np.ndarray,
        home: np.ndarray,
        *,
        object_qpos: int | None = None,
        nest: np.ndarray | None = None,
        tip_sites: tuple[int, ...] = (),
        dropped: float = DROPPED,
        clock: Clock | None = None,
        seed: int = 0,
    ) -> None:
        """A hand at home, the object above its palm.

        Args:
            model: compiled mujoco.MjModel with position actuators in the order of the joints.
            joint_names: in actuator order.
            joint_qpos: (nu,) addresses of the joints in qpos.
            home: (nu,) [rad].
            object_qpos: address of the object's free joint in qpos, or None without an object.
            nest: (3,) [m] where the object rests; needed with an object.
            tip_sites: site ids of the fingertips.
            dropped: how far from its resting place an object counts as fallen [m].
            clock: None for the computer's.
            seed: of the yaw at which the object is let go.
        """
        import mujoco

        self._mujoco = mujoco
        self._model, self._data = model, mujoco.MjData(model)
        self._off = int(mujoco.mjtDisableBit.mjDSBL_ACTUATION)
        self.joint_names = tuple(joint_names)
        self.clock: Clock = clock if clock is not None else MonotonicClock()
        self.drops = 0
        self._joints, self._home = np.asarray(joint_qpos), np.asarray(home, np.float64)
        self._object = object_qpos
        self._nest = np.asarray(nest if nest is not None else np.zeros(3), np.float64)
        self._tips, self._dropped = list(tip_sites), dropped
        self._rng = np.random.default_rng(seed)
        self._begin, self._steps = 0.0, 0
        self._place()

    @classmethod
    def from_scene(
        cls, scene: Any, clock: Clock | None = None, seed: int = 0, dropped: float = DROPPED
    ) -> SimRobot:
        """The hand and object of a `widen.envs.scene.Scene`; else as the constructor."""
        hand = scene.hand
        return cls(
            scene.model,
            hand.joints,
            scene.joint_qpos,
            hand.home,
            object_qpos=scene.object_qpos if scene.object_body is not None else None,
            nest=hand.nest,
            tip_sites=tuple(int(scene.model.site(tip).id) for tip in hand.fingertips),
            dropped=dropped,
            clock=clock,
            seed=seed,
        )

    @property
    def timestep(self) -> float:
        """Of the physics [s]."""
        return float(self._model.opt.timestep)

    def start(self) -> None:
        self._begin, self._steps = self.clock.now(), 0

    def read(self) -> dict[str, Measurement]:
        """joint_pos, fingertip_pos, and with an object object_pos and object_quat."""
        self._catch_up()
        if self._fallen():
            self.drops += 1
            self._place()
        self._mujoco.mj_kinematics(self._model, self._data)
        qpos = self._data.qpos.astype(np.float32)
        values = {"joint_pos": qpos[self._joints]}
        if self._tips:
            values["fingertip_pos"] = self._data.site_xpos[self._tips].astype(np.float32)
        if self._object is not None:
            pose = qpos[self._object : self._object + 7]
            values |= {"object_pos": pose[:3], "object_quat": pose[3:]}
        moment = self._begin + self._steps * self._model.opt.timestep
        return {name: Measurement(value, moment) for name, value in values.items()}

    def command(self, joint_target: np.ndarray) -> None:
        self._catch_up()
        self._model.opt.disableflags &= ~self._off
        self._data.ctrl[:] = joint_target

    def disarm(self) -> None:
        """Motors without torque until the next command."""
        self._catch_up()
        self._model.opt.disableflags |= self._off

    def stop(self) -> None:
        """A simulated hand is always safe."""

    def _catch_up(self) -> None:
        """Step the physics to the present; counted from the start, so that no error adds up."""
        elapsed = (self.clock.now() - self._begin) / self._model.opt.timestep
        due = int(elapsed + 1e-6) - self._steps  # a rounding error is not a step less
        if due > 0:
            self._mujoco.mj_step(self._model, self._data, due)
            self._steps += due

    def _fallen(self) -> bool:
        if self._object is None:
            return False
        gap = self._data.qpos[self._object : self._object + 3] - self._nest
        return not float(np.linalg.norm(gap)) <= self._dropped

    def _place(self) -> None:
        """Hand at home and at rest, object above the palm at any yaw."""
        self._mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[self._joints] = self._home
        self._data.ctrl[:] = self._home
        if self._object is not None:
            half = 0.5 * self._rng.uniform(-np.pi, np.pi)
            place = self._nest + ABOVE_NEST
            pose = (*place, np.cos(half), 0.0, 0.0, np.sin(half))
            self._data.qpos[self._object : self._object + 7] = pose

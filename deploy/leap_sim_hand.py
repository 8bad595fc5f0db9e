"""A MuJoCo LEAP hand, moved by emulated motors and seen by an emulated tracker."""

from __future__ import annotations

import contextlib
import json
import math
import socket
from typing import Any

import numpy as np

from .leap_motor import Drive
from .leap_registers import MOTOR_JOINTS, TORQUE_CONSTANT
from .pose_udp import HOST, PORT, SCHEMA
from .sim_robot import ABOVE_NEST, DROPPED

POSE_HZ = 60.0
PICKED_UP = 0.5  # a fallen object is put back after so long [s]
LONGEST = 1.0  # after a pause of the computer no more than this is made up for [s]
AT_HOME = 0.15  # the object is let go when no joint is further from home [rad]
HELD = 1e3  # damping of a joint that something holds [N m s/rad]


class PoseSender:
    """Sends object poses as datagrams of schema widen.pose/1; docs/object-pose.md."""

    def __init__(self, host: str = HOST, port: int = PORT) -> None:
        """Raises ValueError when the host is unknown."""
        try:
            family, kind, protocol, _, self._address = socket.getaddrinfo(
                host, port, type=socket.SOCK_DGRAM
            )[0]
        except OSError as error:
            raise ValueError(f"--pose {host}:{port}: {error.strerror or error}") from None
        self._socket = socket.socket(family, kind, protocol)
        self._socket.setblocking(False)
        self._seq = 0

    def send(self, time: float, pose: np.ndarray) -> None:
        """Send position and quaternion (7,) of `time` [s]; lost where nobody listens."""
        datagram = {
            "schema": SCHEMA,
            "frame": "hand_base",
            "seq": self._seq,
            "time": time,
            "position": pose[:3].tolist(),
            "quaternion": pose[3:].tolist(),
        }
        self._seq += 1
        with contextlib.suppress(OSError):  # Linux tells a sender that nobody listens
            self._socket.sendto(json.dumps(datagram).encode(), self._address)

    def close(self) -> None:
        self._socket.close()


class SimHand:
    """The `leap_motor.Hand` whose joints are those of a scene.

    The scene's position servos move the joints, with the gains of the contract; torque, goals and
    current limits are the motors'. A current is a torque over the torque constant.

    Somebody holds the object above the palm until all motors have torque and the hand is at home.
    When it has fallen it is put back after half a second, into a hand without torque not at all.

    Attributes:
        angle, velocity, current: (16,) [rad], [rad/s], [A] in the order of motor ids.
        drops: how often the object has fallen.
    """

    def __init__(
        self,
        scene: Any,
        pose: PoseSender | None = None,
        *,
        dropped: float = DROPPED,
        seed: int = 0,
    ) -> None:
        """At home, the object above the palm.

        Args:
            scene: a `widen.envs.scene.Scene` of the LEAP hand.
            pose: where the object's pose goes; None for nowhere.
            dropped: an object further than this from its nest has fallen [m].
            seed: of the yaw at which the object is let go.
        """
        import mujoco

        self._mujoco, self._model = mujoco, scene.model
        self._data = mujoco.MjData(scene.model)
        order = [scene.hand.joints.index(joint) for joint in MOTOR_JOINTS]
        self._actuators = np.array(order)
        self._qpos, self._dof = scene.joint_qpos[order], scene.joint_dof[order]
        self._object = scene.object_qpos if scene.object_body is not None else None
        self._object_dof = scene.object_dof
        self._nest = np.array(scene.hand.nest)
        self._rng = np.random.default_rng(seed)
        self._pose, self._dropped = pose, dropped
        self._gain = scene.model.actuator_gainprm[order, 0].copy()
        self._bias = scene.model.actuator_biasprm[order, 1:3].copy()
        self._force = scene.model.actuator_forcerange[order, 1].copy()
        self._damping = scene.model.dof_damping[self._dof].copy()
        self._driven = b""  # what the model was last set to
        self._home = np.array(scene.hand.home)[order]
        self._begin, self._steps, self._seen, self._fell = 0.0, 0, 0, math.inf
        self.drops = 0
        self._data.qpos[self._qpos] = self._home
        self._held = True
        self._put_back()
        mujoco.mj_forward(scene.model, self._data)
        self._look()

    def start(self, now: float) -> None:
        self._begin, self._steps = now, 0

    def advance(self, now: float, drive: Drive) -> None:
        """Step the physics to the present, counted from the start so that no error adds up."""
        self._obey(drive)
        dt = self._model.opt.timestep
        due = int((now - self._begin) / dt + 1e-6) - self._steps
        if due * dt > LONGEST:
            self._begin += due * dt - LONGEST
            due = round(LONGEST / dt)
        if due <= 0:
            return
        self._mujoco.mj_step(self._model, self._data, due)
        self._steps += due
        self._look()
        if self._object is not None:
            self._watch_object(self._object, bool(drive.torque.all()))

    def _obey(self, drive: Drive) -> None:
        """Set the servos as the motors' registers are."""
        asked = b"".join(
            part.tobytes() for part in (drive.torque, drive.goal, drive.current, drive.stuck)
        )
        if asked == self._driven:
            return
        self._driven = asked
        model, order = self._model, self._actuators
        model.actuator_gainprm[order, 0] = self._gain * drive.torque
        model.actuator_biasprm[order, 1:3] = self._bias * drive.torque[:, None]
        force = np.minimum(self._force, TORQUE_CONSTANT * drive.current)
        model.actuator_forcerange[order, 0] = -force
        model.actuator_forcerange[order, 1] = force
        model.dof_damping[self._dof] = np.where(drive.stuck, HELD, self._damping)
        self._data.ctrl[order] = drive.goal

    def _look(self) -> None:
        self.angle = self._data.qpos[self._qpos].copy()
        self.velocity = self._data.qvel[self._dof].copy()
        self.current = self._data.actuator_force[self._actuators] / TORQUE_CONSTANT

    def _watch_object(self, place: int, torque: bool) -> None:
        """Publish its pose, and put it back some time after it has fallen."""
        moment = self._begin + self._steps * self._model.opt.timestep
        pose = self._data.qpos[place : place + 7]
        gap = float(np.linalg.norm(pose[:3] - self._nest))
        if self._fell == math.inf and not gap <= self._dropped:
            self.drops += 1
            self._fell = moment
        if moment >= self._fell + PICKED_UP:
            self._held = not torque
            self._put_back()
        if self._held:
            at_home = float(np.abs(self.angle - self._home).max()) <= AT_HOME
            self._held = not (torque and at_home)
            pose[:] = self._place
            self._data.qvel[self._object_dof : self._object_dof + 6] = 0.0
        frame = int((moment - self._begin) * POSE_HZ)
        if self._pose is not None and frame != self._seen:
            self._seen = frame
            self._pose.send(moment, pose)

    def _put_back(self) -> None:
        """The object at rest above the palm, at any yaw; the hand stays as it is."""
        self._fell = math.inf
        if self._object is None:
            return
        half = 0.5 * self._rng.uniform(-np.pi, np.pi)
        above = self._nest + ABOVE_NEST
        self._place = np.array((*above, np.cos(half), 0.0, 0.0, np.sin(half)))
        self._data.qpos[self._object : self._object + 7] = self._place
        self._data.qvel[self._object_dof : self._object_dof + 6] = 0.0

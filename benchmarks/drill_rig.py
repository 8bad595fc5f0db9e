"""An emulated LEAP hand under a controller, and what can be done to it; for `fault_drill.py`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from widen.deploy.contract import Contract
from widen.deploy.controller import Controller
from widen.deploy.estop import EmergencyStop
from widen.deploy.leap import LeapRobot
from widen.deploy.leap_emulator import LeapEmulator
from widen.deploy.leap_motor import MotorHand
from widen.deploy.leap_registers import MOTOR_JOINTS
from widen.deploy.pose import ObjectPose, TrackedRobot
from widen.deploy.robot import Measurement
from widen.deploy.runtime import OnnxPolicy
from widen.deploy.safety import State
from widen.train.cli_subject import policies_folder

POLICY = "cube_rotate"


class Policy(OnnxPolicy):
    """A policy whose answers can be replaced."""

    spoil: Callable[[np.ndarray], np.ndarray] | None = None

    def __call__(self, readings: dict[str, np.ndarray]) -> np.ndarray:
        answer = super().__call__(readings)
        return answer if self.spoil is None else self.spoil(answer)


class Camera:
    """Sees the object at rest in its nest, 10 ms ago, until something is done to it."""

    def __init__(self, place: Sequence[float]) -> None:
        self.place = np.array(place, np.float32)
        self.quaternion = np.array([1.0, 0, 0, 0], np.float32)
        self.frame, self.age = "hand_base", 0.01
        self.frozen: float | None = None

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def latest(self) -> ObjectPose:
        now = time.monotonic() if self.frozen is None else self.frozen
        return ObjectPose(self.place, self.quaternion, now - self.age, self.frame)

    def freeze(self) -> None:
        self.frozen = time.monotonic()


class Wire:
    """Between controller and robot: spoils joint readings and remembers commands."""

    spoil: Callable[[Measurement], Measurement | None] | None = None

    def __init__(self, robot: TrackedRobot) -> None:
        self._robot = robot
        self.commands: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._robot, name)

    def read(self) -> dict[str, Measurement]:
        measured = self._robot.read()
        if self.spoil is not None and "joint_pos" in measured:
            spoilt = self.spoil(measured.pop("joint_pos"))
            measured |= {"joint_pos": spoilt} if spoilt is not None else {}
        return measured

    def command(self, joint_target: np.ndarray) -> None:
        self.commands.append(joint_target.copy())
        self._robot.command(joint_target)


@dataclass
class Rig:
    """One repetition: an emulated hand and a controller on it."""

    emulator: LeapEmulator
    policy: Policy
    camera: Camera
    wire: Wire
    estop: EmergencyStop
    controller: Controller
    pressed: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Fault:
    """What is done, in what states that may end, and how soon.

    Attributes:
        cause: does it.
        ends: states in which the controller may be at the end.
        reasons: what the reason given must begin with, one of them; any if empty.
        within: control periods in which the motors must be passive, or the hand on hold where the
            motors stay active; None where nothing of that kind has to happen.
        seconds: of a repetition, if nothing ends it.
    """

    what: str
    cause: Callable[[Rig], object]
    ends: tuple[State, ...] = (State.FAULT,)
    reasons: tuple[str, ...] = ()
    within: float | None = 7.0  # a reading is useless after 5; 2 to notice
    seconds: float = 1.6


def _emulate(name: str, target: str | float | None = None) -> Callable[[Rig], object]:
    return lambda rig: rig.emulator.inject(name, target)


def _camera(**changes: Any) -> Callable[[Rig], object]:
    return lambda rig: [setattr(rig.camera, name, value) for name, value in changes.items()]


def _joints(change: Callable[[Measurement], Measurement | None]) -> Callable[[Rig], object]:
    return lambda rig: setattr(rig.wire, "spoil", change)


def _answers(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Rig], object]:
    return lambda rig: setattr(rig.policy, "spoil", change)


def _slow(answer: np.ndarray) -> np.ndarray:
    time.sleep(0.12)
    return answer


def _gap(rig: Rig) -> None:
    rig.camera.freeze()
    threading.Timer(0.17, lambda: setattr(rig.camera, "frozen", None)).start()


HOLDS = (State.HOLD,)
RUNS = (State.ACTIVE, State.HOLD)
AT_ONCE = 2.0
BUS = ("stale_reading:joint_pos", "robot_fault")
JOINTS = ("stale_reading:joint_pos",)
OBJECT = ("stale_reading:object",)
STOP = ("emergency_stop",)


def _runs(what: str, cause: Callable[[Rig], object]) -> Fault:
    return Fault(what, cause, RUNS, within=None)


FAULTS = {
    "unplug": Fault("the port disappears", _emulate("unplug"), reasons=BUS),
    "hung_bus": Fault("nothing on the bus answers", _emulate("hung_bus"), reasons=BUS),
    "silent_motor": Fault("one motor does not answer", _emulate("silent_motor"), reasons=BUS),
    # answers have no numbers: one that is late can be taken for that of the next question
    "slow_bus": Fault("answers 0.3 s late", _emulate("slow_bus", 0.3), reasons=BUS, within=None),
    "overload": Fault("a motor reports an overload", _emulate("overload"), reasons=BUS[1:]),
    "wrong_crc": Fault("every CRC is wrong", _emulate("wrong_crc", 1.0), reasons=BUS),
    "some_crc": _runs("1 CRC in 50 is wrong", _emulate("wrong_crc", 0.02)),
    "lost_bytes": Fault("every packet loses a byte", _emulate("lost_bytes", 1.0), reasons=BUS),
    "noise": _runs("garbage between packets", _emulate("noise", 0.2)),
    "joint_nan": Fault(
        "a joint reading is not a number",
        _joints(lambda m: Measurement(m.value * np.nan, m.time)),
        reasons=JOINTS,
    ),
    "joint_jump": Fault(
        "joint readings jump by 2 rad",
        _joints(lambda m: Measurement(m.value + 2.0, m.time)),
        reasons=JOINTS,
    ),
    "joint_shape": Fault(
        "a joint is missing in the reading",
        _joints(lambda m: Measurement(m.value[:15], m.time)),
        reasons=JOINTS,
    ),
    "joint_missing": Fault("no joint reading at all", _joints(lambda m: None), reasons=JOINTS),
    "other_clock": Fault(
        "time stamps of another clock",
        _joints(lambda m: Measurement(m.value, m.time + 1e9)),
        reasons=JOINTS,
    ),
    "camera_dead": Fault("no more object poses", lambda rig: rig.camera.freeze(), reasons=OBJECT),
    "camera_gap": _runs("no object poses for 0.17 s", _gap),
    "camera_late": Fault(
        "object poses 0.15 s old", _camera(age=0.15), HOLDS, reasons=OBJECT, within=5.0
    ),
    "camera_nan": Fault(
        "object position not a number", _camera(place=np.full(3, np.nan)), reasons=OBJECT
    ),
    "camera_zero": Fault("object quaternion zero", _camera(quaternion=np.zeros(4)), reasons=OBJECT),
    "camera_frame": Fault("poses in another frame", _camera(frame="camera"), reasons=OBJECT),
    "object_gone": Fault(
        "the object falls",
        _camera(place=np.array([0.0, 0.0, -0.3])),
        (State.HOMING,),
        within=None,
    ),
    "policy_nan": Fault(
        "the policy answers NaN", _answers(lambda a: a * np.nan), reasons=("bad_output",)
    ),
    "policy_wild": _runs(
        "the policy asks for 100 rad, by turns",
        _answers(lambda a: np.where(np.arange(a.size) % 2, 100.0, -100.0).astype(np.float32)[None]),
    ),
    "policy_slow": Fault(
        "the policy takes 0.12 s",
        _answers(_slow),
        reasons=("deadline_missed",),
        within=60.0,
        seconds=5.0,
    ),
    "emergency": Fault(
        "emergency stop", lambda rig: rig.estop.press(), reasons=STOP, within=AT_ONCE
    ),
    "callback": Fault(
        "a callback asks for the stop",
        lambda rig: rig.pressed.append(True),
        reasons=STOP,
        within=AT_ONCE,
    ),
}


@contextlib.contextmanager
def rig(seed: int, contract: Contract) -> Iterator[Rig]:
    """A hand at home with torque off, and a controller that is not started."""
    order = [contract.joints.index(joint) for joint in MOTOR_JOINTS]
    emulator = LeapEmulator(MotorHand(np.array(contract.home)[order]), seed=seed)
    policy = Policy(policies_folder() / f"{POLICY}.onnx")
    assert contract.reach is not None
    camera = Camera(contract.reach.center)
    pressed: list[bool] = []
    estop = EmergencyStop(callbacks=(lambda: bool(pressed),))
    with emulator:
        robot: Any = LeapRobot(emulator.port, contract)
        wire: Any = Wire(TrackedRobot(robot, camera))
        controller = Controller(policy, wire, estop=estop)
        try:
            wire.start()
            yield Rig(emulator, policy, camera, wire, estop, controller, pressed)
        finally:
            wire.stop()


def passive(emulator: LeapEmulator) -> bool:
    """Whether no motor pushes."""
    return all(not m.torque_enabled or m.watchdog_tripped for m in emulator.motors)

"""A hand and a policy of three joints, for controllers under test."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from scripted_clock import ScriptedClock

from widen.deploy.contract import Contract, MaxAge, Reach
from widen.deploy.robot import Measurement
from widen.envs.layout import Reading

PERIOD = 0.05
NAMES = ("a", "b", "c")
HOME = np.array([0.1, 0.2, 0.15])
LOWER, UPPER = np.array([-1.0, -0.5, 0.0]), np.array([1.0, 0.5, 0.2])


class FakeRobot:
    """Follows commands at once. `script` is called with the number of each read.

    Attributes:
        commands: (nu,) each, in the policy's order.
        stretches: [commands, pose before the first of them] of each time with active motors.
        kind: of the joint reading: "good", "nan", "short", "far", "none", "jump" or "raises".
    """

    def __init__(self, script: Any = lambda robot, count: None, start: np.ndarray = HOME) -> None:
        self.joint_names = ("c", "a", "b")  # not the policy's order
        self.clock, self.drops, self.reads = ScriptedClock(), 0, 0
        self.pose = dict(zip(NAMES, start, strict=True))
        self.commands: list[np.ndarray] = []
        self.stretches: list[tuple[list[np.ndarray], np.ndarray]] = []
        self.times: list[float] = []
        self.script, self.age, self.kind, self.fault = script, 0.0, "good", ""
        self.stopped, self.disarmed, self.active = 0, 0, False
        self.extra: dict[str, np.ndarray] = {}

    def start(self) -> None:
        pass

    def read(self) -> dict[str, Measurement]:
        self.script(self, self.reads)
        self.reads += 1
        value = self._ordered(self.joint_names)
        time = self.clock.now() - self.age
        if self.kind == "raises":
            raise OSError("no bus")
        if self.kind == "nan":
            value[1] = np.nan
        elif self.kind in ("far", "jump"):
            value[0] += 9.0 if self.kind == "far" else 1.1
        elif self.kind == "short":
            value = value[:2]
        measured = {"joint_pos": Measurement(value, time)} if self.kind != "none" else {}
        return measured | {name: Measurement(v, time) for name, v in self.extra.items()}

    def command(self, joint_target: np.ndarray) -> None:
        if not self.active:
            self.active = True
            self.stretches.append(([], self._ordered(NAMES)))
        self.pose = dict(zip(self.joint_names, joint_target, strict=True))
        self.commands.append(self._ordered(NAMES))
        self.stretches[-1][0].append(self._ordered(NAMES))
        self.times.append(self.clock.now() - 100.0)

    def disarm(self) -> None:
        self.active, self.fault = False, ""
        self.disarmed += 1

    def stop(self) -> None:
        self.active = False
        self.stopped += 1

    def _ordered(self, names: tuple[str, ...]) -> np.ndarray:
        return np.array([self.pose[name] for name in names])


class FakePolicy:
    """Answers what a function of the number of its calls says; keeps the face of OnnxPolicy."""

    path = Path("fake.onnx")

    def __init__(
        self,
        answer: Any = lambda count: HOME,
        error: float = 0.0,
        *,
        limits: Any = ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)),
        readings: tuple[Reading, ...] = (),
        reach: Reach | None = None,
    ) -> None:
        readings = (
            Reading("joint_pos", (3,), "rad", "joint", "robot"),
            *readings,
            Reading("goal", (1, 3), "m", "hand_base", "goal"),
        )
        goal = {"kind": "points", "reading": "goal", "of": "tips", "values": [[[0.0, 0.0, 0.0]]]}
        self.contract: Any = SimpleNamespace(
            joints=NAMES,
            lower=tuple(limits[0]),
            upper=tuple(limits[1]),
            home=tuple(HOME),
            control_period=PERIOD,
            max_target_speed=4.0,
            readings=readings,
            goal={**goal, "reached": 0.01, "seconds": 2.0},
            max_age={r.name: MaxAge(2 * PERIOD, 5 * PERIOD) for r in readings[:-1]},
            reach=reach,
        )
        for name in ("check_joints", "check_limits"):
            setattr(self.contract, name, getattr(Contract, name).__get__(self.contract))
        self.answer, self.error, self.calls, self.resets = answer, error, 0, 0
        self.seen: list[np.ndarray] = []
        self.overruled: list[np.ndarray] = []

    def verify(self) -> float:
        return self.error

    def reset(self, n: int = 1) -> None:
        self.resets += 1

    def overrule(self, joint_target: np.ndarray) -> None:
        self.overruled.append(joint_target[0].copy())

    def __call__(self, readings: dict[str, np.ndarray]) -> np.ndarray:
        self.seen.append(readings["joint_pos"][0].copy())
        self.calls += 1
        return np.array(self.answer(self.calls - 1), np.float32)[None]


def check_commands(commands: np.ndarray, speed: float, acceleration: float, start: Any) -> None:
    """Plain differences of what was sent, the first from rest at `start`."""
    assert np.isfinite(commands).all()
    # a hand found beyond a limit goes back, and no further out
    before = np.concatenate([[start], commands[:-1]])
    assert (commands >= np.minimum(LOWER, before)).all()
    assert (commands <= np.maximum(UPPER, before)).all()
    moves = np.diff(np.concatenate([[start], commands]), axis=0) / PERIOD
    assert np.abs(moves).max() <= speed * (1 + 1e-9)
    changes = np.diff(np.concatenate([[np.zeros(3)], moves]), axis=0) / PERIOD
    assert np.abs(changes).max() <= acceleration * (1 + 1e-9)

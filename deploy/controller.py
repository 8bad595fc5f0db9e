"""The control loop: read, decide, restrain, command, at a fixed rate."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .contract import TOLERANCE
from .goals import make_goals
from .robot import Measurement, Robot
from .runtime import OnnxPolicy
from .safety import BAD_OUTPUT, ramp, reading_problem, restrain

HOMING_SPEED = 1.0  # of every joint on the way to the home pose [rad/s]
MAX_AGE = 5  # control periods after which a reading is too old to act upon


@dataclass(frozen=True)
class RunReport:
    """What a run came to."""

    goals: int
    seconds: float
    cycles: int
    """executed; a late cycle makes the ones it overran fall out"""
    deadline_misses: int
    """control periods that had ended before their command, or without one, was sent"""
    interventions: int
    interventions_by_name: dict[str, int]
    drops: int
    cycle_ms_p50: float
    """from the beginning of a cycle to its command [ms]"""
    cycle_ms_p99: float

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self)


def run(
    policy: OnnxPolicy,
    robot: Robot,
    seconds: float,
    *,
    dry_run: bool = False,
    max_speed: float | None = None,
) -> RunReport:
    """Control a robot for a while, homing included, or until Ctrl-C, SIGTERM or a lost terminal.

    The hand first goes slowly from its measured pose to the home pose; then the policy takes
    over. Whenever the readings cannot be used, the last command holds.

    Args:
        policy: what decides; begins a new episode.
        robot: what is controlled. It is stopped whatever happens.
        seconds: duration, rounded to control periods.
        dry_run: decide, but send nothing.
        max_speed: of joint targets [rad/s], above 0; None for the most that a healthy policy asks for.

    Raises:
        ValueError: the robot's joints are not the policy's, the policy does not answer its golden
            vectors on this computer, or the robot's readings are no `Measurement`.
    """
    controller = Controller(policy, robot, dry_run=dry_run, max_speed=max_speed)
    with _one_interrupt() as stopping:
        try:
            robot.start()
            controller.loop(seconds)
        except KeyboardInterrupt:
            pass  # the ordinary way to end a run early
        finally:
            stopping.set()
            robot.stop()
    return controller.report()


@contextlib.contextmanager
def _one_interrupt() -> Iterator[threading.Event]:
    """The first signal that asks to end raises KeyboardInterrupt, unless the event is set.

    A terminal that is lost would else end the process with the motors on, and a second Ctrl-C
    would end the stopping itself. Elsewhere than in the main thread signals are not ours.
    """
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def interrupt(number: int, frame: Any) -> None:
        if not stopping.is_set():
            stopping.set()
            raise KeyboardInterrupt

    names = ("SIGINT", "SIGTERM", "SIGHUP")  # not every system has all
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # what is ignored stays so: nohup wants a run to survive its terminal
    before = {n: h for n in numbers if (h := signal.getsignal(n)) not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Controller:
    """One run of one policy on one robot; see `run`."""

    def __init__(
        self, policy: OnnxPolicy, robot: Robot, *, dry_run: bool, max_speed: float | None
    ) -> None:
        contract = policy.contract
        if not (error := policy.verify()) <= TOLERANCE:
            raise ValueError(
                f"{policy.path}: differs from its golden vectors by {error:.2g} on this computer,"
                f" expected at most {TOLERANCE:g}"
            )
        if max_speed is not None and not max_speed > 0:
            raise ValueError(f"max_speed: expected more than 0 rad/s, got {max_speed}")
        if sorted(robot.joint_names) != sorted(contract.joints):
            odd = sorted(set(robot.joint_names) ^ set(contract.joints))
            raise ValueError(f"joints of robot and policy differ: {', '.join(odd) or 'one twice'}")
        self._policy, self._robot, self._dry_run = policy, robot, dry_run
        # the robot's order of joints is its own: a policy joint's place there, and back
        self._from_robot = [robot.joint_names.index(name) for name in contract.joints]
        self._to_robot = [contract.joints.index(name) for name in robot.joint_names]
        self._period = contract.control_period
        speed = contract.max_target_speed if max_speed is None else max_speed
        self._max_step = speed * self._period
        self._limits = np.array(contract.lower), np.array(contract.upper)
        self._home = np.array(contract.home)
        self._measured = [r for r in contract.readings if r.source != "goal"]
        self._goals = make_goals(contract.goal)
        self._inputs = {r.name: np.zeros((1, *r.shape), np.float32) for r in contract.readings}
        self._interventions: Counter[str] = Counter()
        self._cycle_ms = np.zeros(0)
        self._cycles = self._misses = 0
        self._elapsed = 0.0
        self._drops = robot.drops
        self._command: np.ndarray | None = None
        self._approach: np.ndarray | None = None  # poses on the way home that are left

    def loop(self, seconds: float) -> None:
        """Run for so long. Cycle k begins at k periods after the first, so that nothing drifts."""
        clock, period = self._robot.clock, self._period
        total = max(1, round(seconds / period))
        self._cycle_ms = np.zeros(total)
        self._policy.reset()
        begin, k = clock.now(), 0
        while k < total:
            clock.sleep_until(begin + k * period)
            woke = clock.now()
            self.cycle()
            done = clock.now()
            self._cycle_ms[self._cycles] = 1e3 * (done - woke)
            self._cycles += 1
            self._elapsed = done - begin
            # after an overrun go on at once with the period that is now running
            ended = max(0, int(self._elapsed / period) - k)
            self._misses += min(ended, total - k)
            k += max(1, ended)
        clock.sleep_until(begin + total * period)
        self._elapsed = clock.now() - begin

    def cycle(self) -> None:
        """One control period."""
        measured = self._robot.read()
        now = self._robot.clock.now()
        if self._robot.drops != self._drops:
            self._drops = self._robot.drops
            self._approach = None
            self._policy.reset()
            self._goals.restart()
        if problem := reading_problem(measured, self._measured, now, MAX_AGE * self._period):
            self._interventions[problem] += 1
            if self._command is not None:
                self._send(self._command)
            return
        self._take(measured)
        if self._approach is None:
            self._approach = self._way_home()
        if len(self._approach):
            pose, self._approach = self._approach[0], self._approach[1:]
            self._send(pose)
        else:
            self._send(self._decide(measured, now))

    def report(self) -> RunReport:
        """What came of it so far."""
        times = self._cycle_ms[: self._cycles] if self._cycles else np.zeros(1)
        p50, p99 = np.percentile(times, (50, 99))
        return RunReport(
            goals=self._goals.reached,
            seconds=round(self._elapsed, 3),
            cycles=self._cycles,
            deadline_misses=self._misses,
            interventions=self._interventions.total(),
            interventions_by_name=dict(self._interventions),
            drops=self._robot.drops,
            cycle_ms_p50=round(float(p50), 3),
            cycle_ms_p99=round(float(p99), 3),
        )

    def _take(self, measured: dict[str, Measurement]) -> None:
        for reading in self._measured:
            value = np.asarray(measured[reading.name].value)
            if reading.frame == "joint":
                value = value[self._from_robot]
            self._inputs[reading.name][0] = value

    def _way_home(self) -> np.ndarray:
        """Poses (K, nu) to send before the policy decides; the first is the measured one."""
        start = self._inputs["joint_pos"][0].astype(np.float64)
        # in a dry run nothing moves: the policy begins where the hand is
        end = start if self._dry_run else self._home
        self._policy.overrule(end[None])
        return ramp(start, end, HOMING_SPEED * self._period)

    def _decide(self, measured: dict[str, Measurement], now: float) -> np.ndarray:
        assert self._command is not None  # the way home has at least one pose
        values = {name: m.value for name, m in measured.items()}
        self._inputs[self._goals.reading][0] = self._goals.update(values, now)
        asked = self._policy(self._inputs)[0].astype(np.float64)
        target, names = restrain(asked, self._command, *self._limits, self._max_step)
        if names:
            self._interventions.update(names)
            if BAD_OUTPUT in names:  # whatever it remembers is not to be trusted
                self._policy.reset()
            self._policy.overrule(target[None])
        return target

    def _send(self, target: np.ndarray) -> None:
        self._command = target
        if not self._dry_run:
            self._robot.command(target[self._to_robot])

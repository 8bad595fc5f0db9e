"""The control loop: read, judge, decide, restrain, command, at a fixed rate."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from .contract import TOLERANCE
from .estop import EmergencyStop
from .goals import make_goals
from .report import RunReport, Timings
from .robot import Measurement, Robot
from .runtime import OnnxPolicy
from .safety import (
    BAD_OUTPUT,
    DEADLINE,
    EMERGENCY_STOP,
    OUT_OF_REACH,
    ROBOT_ERROR,
    ROBOT_FAULT,
    Limiter,
    MotorGuard,
    Problem,
    ReadingGuard,
    State,
    Supervisor,
    ramp,
)
from .signals import one_interrupt

if TYPE_CHECKING:
    from .control_log import ControlLog

HOMING_SPEED = 1.0  # of every joint on the way to the home pose [rad/s]
LATE_HOLD, LATE_FAULT = 3, 20  # missed deadlines in a row
BAD_OUTPUTS_FAULT = 5  # in a row
FORGET_AFTER = 2  # cycles of HOLD after which the policy's memory of the past is worth nothing
AT_HOME = 1e-4  # [rad]
BACK = 0.8  # an object that left the hand is back within this share of its reach


def run(
    policy: OnnxPolicy,
    robot: Robot,
    seconds: float,
    *,
    dry_run: bool = False,
    max_speed: float | None = None,
    max_acceleration: float | None = None,
    max_current: float | None = None,
    estop: EmergencyStop | None = None,
    log: ControlLog | None = None,
    on_fault: Literal["end", "wait"] = "end",
) -> RunReport:
    """Control a robot for a while, homing included, or until Ctrl-C, SIGTERM or a lost terminal.

    The hand first goes slowly from its measured pose to the home pose; then the policy takes
    over. See `widen.deploy.safety` for when it holds and when its motors are turned off.

    Args:
        policy: what decides; begins a new episode.
        robot: what is controlled. It is stopped whatever happens.
        seconds: duration, rounded to control periods.
        dry_run: decide, but send nothing.
        max_speed: of joint targets [rad/s], above 0; None for the most that a healthy policy asks for.
        max_acceleration: of joint targets [rad/s^2]; None for what takes a joint from full speed
            one way to full speed the other way in one control period, as in training.
        max_current: of a motor [A], where the robot reports currents; None for no limit.
        estop: asked in every cycle; None for one that nobody can press.
        log: every cycle is written to it.
        on_fault: "end" the run, or "wait" with the motors off for `Controller.rearm`.

    Raises:
        ValueError: the robot's joints are not the policy's or have narrower limits, the policy does
            not answer its golden vectors on this computer, the robot cannot be started, or its
            readings are no `Measurement`.
    """
    controller = Controller(
        policy,
        robot,
        dry_run=dry_run,
        max_speed=max_speed,
        max_acceleration=max_acceleration,
        max_current=max_current,
        estop=estop,
        log=log,
    )
    with one_interrupt() as stopping:
        try:
            robot.start()
            controller.loop(seconds, on_fault)
        except KeyboardInterrupt:
            pass  # the ordinary way to end a run early
        finally:
            stopping.set()
            robot.stop()
    return controller.report()


class Controller:
    """One run of one policy on one robot; see `run`."""

    def __init__(
        self,
        policy: OnnxPolicy,
        robot: Robot,
        *,
        dry_run: bool = False,
        max_speed: float | None = None,
        max_acceleration: float | None = None,
        max_current: float | None = None,
        estop: EmergencyStop | None = None,
        log: ControlLog | None = None,
    ) -> None:
        contract = policy.contract
        if not (error := policy.verify()) <= TOLERANCE:
            raise ValueError(
                f"{policy.path}: differs from its golden vectors by {error:.2g} on this computer,"
                f" expected at most {TOLERANCE:g}"
            )
        limits = {"max_speed": max_speed, "max_acceleration": max_acceleration}
        for name, value in {**limits, "max_current": max_current}.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected more than 0, got {value:g}")
        contract.check_joints(robot.joint_names)
        if (own := getattr(robot, "joint_limits", None)) is not None:
            contract.check_limits(robot.joint_names, *own)
        self._policy, self._robot, self._dry_run = policy, robot, dry_run
        # the robot's order of joints is its own: a policy joint's place there, and back
        self._from_robot = [robot.joint_names.index(name) for name in contract.joints]
        self._to_robot = [contract.joints.index(name) for name in robot.joint_names]
        self._period = contract.control_period
        self._home = np.array(contract.home)
        self._limiter = self._make_limiter(max_speed, max_acceleration)
        self._measured = [r for r in contract.readings if r.source != "goal"]
        lower, upper = self._limiter.lower[self._to_robot], self._limiter.upper[self._to_robot]
        self._guard = ReadingGuard(self._measured, contract.max_age, (lower, upper), self._period)
        self._motors = MotorGuard(tuple(robot.joint_names), max_current)
        self._supervisor = Supervisor()
        self._estop = estop or EmergencyStop()
        self._goals = make_goals(contract.goal)
        self._inputs = {r.name: np.zeros((1, *r.shape), np.float32) for r in contract.readings}
        self._pose, self._reach = self._home, contract.reach
        self._interventions: Counter[str] = Counter()
        self._timings = Timings(robot.clock)
        self._log = log
        self._drops, self._fallen = robot.drops, 0
        self._approach: np.ndarray | None = None  # poses on the way home that are left
        self._lost = False  # the object is out of reach
        self._late = self._bad_outputs = self._held = 0
        self._error = ""

    @property
    def state(self) -> State:
        """Of the hand."""
        return self._supervisor.state

    @property
    def history(self) -> list[tuple[float, State, str]]:
        """(time [s] on the robot's clock, state, reason) of every change of state."""
        return self._supervisor.history

    def loop(self, seconds: float, on_fault: Literal["end", "wait"] = "end") -> None:
        """Run for so long. Cycle k begins at k periods after the first, so that nothing drifts."""
        total = max(1, round(seconds / self._period))
        period, timings = self._period, self._timings
        timings.begin(total)
        self._policy.reset()
        # a collection takes milliseconds, and nothing here makes cycles of references
        gc.collect()
        gc.disable()
        try:
            k = 0
            while k < total:
                timings.wait(k, period)
                self.cycle()
                # after an overrun go on at once with the period that is now running
                ended = timings.end_cycle(k, period, total)
                self._late = self._late + ended if ended else 0
                k += max(1, ended)
                if self.state is State.FAULT and on_fault == "end":
                    return
            timings.wait(total, period)
        finally:
            gc.enable()
            timings.finish()

    def rearm(self) -> None:
        """Leave FAULT: the hand goes home from where it then is, and the policy begins anew.

        The emergency stop is released. If the reason is still there, it faults again.
        """
        if self.state is State.FAULT:
            self._estop.reset()
            self._guard.forget()
            self._error, self._late, self._bad_outputs = "", 0, 0
            self._begin_anew()
            self._supervisor.rearm(self._robot.clock.now())

    def cycle(self) -> None:
        """One control period."""
        measured = self._read()
        now = self._robot.clock.now()
        self._look_for_drops()
        problems = self._problems(measured, now)
        names = [p.name for p in problems]
        if not problems:
            self._take(measured)
            names += self._watch_object()
        before = self.state
        at_home = self._approach is not None and not len(self._approach) and self._arrived()
        state = self._supervisor.step(
            problems, now, at_home=at_home, go_home=self._lost or self._approach is None
        )
        asked = sent = None
        if state is State.FAULT:
            self._fault(before)
        elif state is State.HOLD:
            self._held += 1
            if before is State.HOMING:
                self._approach = None
            sent = self._limiter.rest()
        elif state is State.HOMING:
            sent = self._go_home(before)
        elif state is State.ACTIVE:
            asked, sent, restrained = self._decide(measured, now, before)
            names += restrained
        if sent is not None and (error := self._send(sent)):
            names.append(error)
        self._interventions.update(names)
        self._timings.end_work()
        if self._log is not None:
            goal = Measurement(self._inputs[self._goals.reading][0], now)
            self._log.write(
                cycle=self._timings.number,
                time=now,
                state=list(State).index(state),
                interventions=names,
                readings={**measured, self._goals.reading: goal},
                asked=asked,
                sent=sent,
                cycle_ms=self._timings.last_ms,
            )

    def report(self) -> RunReport:
        """What came of it so far."""
        return self._timings.report(
            goals=self._goals.reached,
            interventions=self._interventions.total(),
            interventions_by_name=dict(self._interventions),
            drops=self._robot.drops + self._fallen,
            state=self.state.value,
            reason=self._error or self._supervisor.reason,
        )

    def _make_limiter(self, max_speed: float | None, max_acceleration: float | None) -> Limiter:
        contract = self._policy.contract
        speed = contract.max_target_speed if max_speed is None else max_speed
        turn = 2.0 * speed / self._period  # from full speed one way to the other in one period
        acceleration = turn if max_acceleration is None else max_acceleration
        lower, upper = np.array(contract.lower), np.array(contract.upper)
        return Limiter(lower, upper, speed, acceleration, self._period)

    def _read(self) -> dict[str, Measurement]:
        try:
            return self._robot.read()
        except Exception as error:  # whatever a user's robot raises: motors off, and a report
            self._broken(error)
            return {}

    def _broken(self, error: Exception) -> None:
        self._error = self._error or f"{ROBOT_ERROR}: " + " ".join(
            f"{type(error).__name__}: {error}".split()
        )

    def _look_for_drops(self) -> None:
        if self._robot.drops == self._drops:
            return
        self._drops = self._robot.drops
        self._guard.forget()  # the scene was put back: everything jumps
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._approach = None
        self._policy.reset()
        self._goals.restart()

    def _problems(self, measured: dict[str, Measurement], now: float) -> list[Problem]:
        found = []
        if self._estop.pressed():
            found.append(Problem(EMERGENCY_STOP, True))
        if self._error:
            found.append(Problem(ROBOT_ERROR, True))
        if fault := getattr(self._robot, "fault", ""):
            self._error = f"{ROBOT_FAULT}: {fault}"
            found.append(Problem(ROBOT_FAULT, True))
        found += self._motors.check(measured, now)
        if self._late >= LATE_HOLD:
            found.append(Problem(DEADLINE, self._late >= LATE_FAULT))
        if self._bad_outputs >= BAD_OUTPUTS_FAULT:
            found.append(Problem(BAD_OUTPUT, True))
        return found + self._guard.check(measured, now)

    def _take(self, measured: dict[str, Measurement]) -> None:
        for reading in self._measured:
            value = np.asarray(measured[reading.name].value)
            if reading.frame == "joint":
                value = value[self._from_robot]
            if reading.name == "joint_pos":
                self._pose = value.astype(np.float64)  # the first command equals it, exactly
            self._inputs[reading.name][0] = value

    def _watch_object(self) -> list[str]:
        """See whether the object left the hand, or came back to stay."""
        if (reach := self._reach) is None or reach.reading not in self._inputs:
            return []
        if self._lost:  # an object on the border is not lost and found in turns
            reach = replace(reach, radius=BACK * reach.radius)
        out = not reach.contains(self._inputs[reach.reading][0])
        if out and not self._lost and self.state is not State.DISARMED:
            self._fallen += 1
            self._begin_anew()
        self._lost = out
        return [OUT_OF_REACH] if out else []

    def _arrived(self) -> bool:
        end = self._limiter.position if self._dry_run else self._home
        return bool(np.abs(self._limiter.position - end).max() <= AT_HOME)

    def _go_home(self, before: State) -> np.ndarray:
        """The next pose (nu,) [rad] on the slow way home."""
        if before is State.DISARMED:
            self._limiter.start(self._pose)
            self._approach = None
        if self._approach is None:
            start = self._limiter.position
            # in a dry run nothing moves: the policy begins where the hand is
            end = start if self._dry_run else self._home
            self._policy.overrule(end[None])
            self._approach = ramp(start, end, HOMING_SPEED * self._period)
        self._held = 0
        target = self._limiter.position if self._dry_run else self._home
        if len(self._approach):
            target, self._approach = self._approach[0], self._approach[1:]
        return self._limiter.step(target)[0]

    def _decide(
        self, measured: dict[str, Measurement], now: float, before: State
    ) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """What the policy asked for (nu,) [rad], what may be sent, and what was done to it."""
        if before is State.HOLD:
            if self._held > FORGET_AFTER:
                self._policy.reset()
            self._policy.overrule(self._limiter.position[None])
            self._held = 0
        values = {name: m.value for name, m in measured.items()}
        self._inputs[self._goals.reading][0] = self._goals.update(values, now)
        began = self._robot.clock.now()
        asked = self._policy(self._inputs)[0].astype(np.float64)
        self._timings.end_policy(began)
        sent, names = self._limiter.step(asked)
        self._bad_outputs = self._bad_outputs + 1 if BAD_OUTPUT in names else 0
        if names:
            if BAD_OUTPUT in names:  # whatever it remembers is not to be trusted
                self._policy.reset()
            self._policy.overrule(sent[None])
        return asked, sent, names

    def _send(self, target: np.ndarray) -> str | None:
        """Command it, unless this is a dry run; the name under which a failure counts."""
        if self._dry_run:
            return None
        try:
            self._robot.command(target[self._to_robot])
        except Exception as error:  # the next cycle faults
            self._broken(error)
            return ROBOT_ERROR
        return None

    def _fault(self, before: State) -> None:
        """Motors off, once. A robot that cannot even do that is reported, and stopped in the end."""
        if before is State.FAULT or self._dry_run:
            return
        try:
            getattr(self._robot, "disarm", self._robot.stop)()
        except Exception as error:
            self._broken(error)

"""The control loop: read, judge, decide, restrain, command, at a fixed rate."""

from __future__ import annotations

import gc
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from .contract import TOLERANCE
from .estop import EmergencyStop
from .goals import make_goals
from .homing import WayHome
from .report import RunReport, Timings
from .robot import Measurement, Robot, checked
from .runtime import OnnxPolicy
from .safety import (
    BAD_OUTPUT,
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
)
from .signals import one_interrupt
from .watch import DeadlineWatch, ObjectWatch

if TYPE_CHECKING:
    from .control_log import ControlLog

BAD_OUTPUTS_FAULT = 5  # in a row
FORGET_AFTER = 2  # cycles of HOLD after which the policy's memory is worth nothing
TELL_AFTER = 2.0  # of waiting for readings the user is told for which [s]


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
        max_acceleration: of joint targets [rad/s^2]; None as for max_speed.
        max_current: of a motor [A], where the robot reports currents; None for the robot's own
            `max_currents`, if it has them.
        estop: asked in every cycle; None for one that nobody can press.
        log: gets every cycle.

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
    with one_interrupt() as interrupt:
        try:
            robot.start()
            interrupt.deferred = True
            controller.loop(seconds, stopped=lambda: interrupt.asked)
        except KeyboardInterrupt:
            pass  # the ordinary way to end a run early
        finally:
            interrupt.deferred = True
            controller.stop()
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
        if max_current is not None and not max_current > 0:
            raise ValueError(f"max_current: expected more than 0, got {max_current:g}")
        contract.check_joints(robot.joint_names)
        if (own := getattr(robot, "joint_limits", None)) is not None:
            contract.check_limits(robot.joint_names, *own)
        self._policy, self._robot, self._dry_run = policy, robot, dry_run
        # the robot's order of joints is its own: a policy joint's place there, and back
        self._from_robot = [robot.joint_names.index(name) for name in contract.joints]
        self._to_robot = [contract.joints.index(name) for name in robot.joint_names]
        self._period = contract.control_period
        self._limiter = Limiter.of(contract, max_speed, max_acceleration)
        self._measured = [r for r in contract.readings if r.source != "goal"]
        lower, upper = self._limiter.lower[self._to_robot], self._limiter.upper[self._to_robot]
        self._guard = ReadingGuard(self._measured, contract.max_age, (lower, upper), self._period)
        own = getattr(robot, "max_currents", None)
        most = own if max_current is None else np.full(len(contract.joints), max_current)
        self._motors = MotorGuard(tuple(robot.joint_names), most)
        self._supervisor = Supervisor()
        self._estop = estop or EmergencyStop()
        self._goals = make_goals(contract.goal)
        self._inputs = {r.name: np.zeros((1, *r.shape), np.float32) for r in contract.readings}
        self._pose = np.array(contract.home)
        self._interventions: Counter[str] = Counter()
        self._timings = Timings(robot.clock)
        self._log = log
        self._drops, self._fallen = robot.drops, 0
        self._way = WayHome(np.array(contract.home), self._period, stay=dry_run)
        self._object, self._deadlines = ObjectWatch(contract.reach), DeadlineWatch()
        self._bad_outputs = self._held = 0
        self._passive = True  # the motors may have been moved by hand: go by what is measured
        self._rearm = threading.Event()
        self._error = ""

    @property
    def state(self) -> State:
        """Of the hand."""
        return self._supervisor.state

    @property
    def history(self) -> list[tuple[float, State, str]]:
        """(time [s] on the robot's clock, state, reason) of every change of state."""
        return self._supervisor.history

    def loop(
        self,
        seconds: float,
        on_fault: Literal["end", "wait"] = "end",
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run for so long. Cycle k begins at k periods after the first, so that nothing drifts.

        Args:
            seconds: duration, rounded to control periods.
            on_fault: "end", or "wait" with the motors off for `rearm`.
            stopped: asked before each cycle; True ends the loop.
        """
        total = max(1, round(seconds / self._period))
        period, timings = self._period, self._timings
        timings.begin(total)
        self._policy.reset()
        # what was loaded so far need not be looked at in every collection, which takes milliseconds
        gc.collect()
        gc.freeze()
        try:
            k, told = 0, False
            while k < total and not stopped():
                timings.wait(k, period)
                self.cycle()
                # after an overrun go on at once with the period that is now running
                ended = timings.end_cycle(k, period, total)
                self._deadlines.note(ended)
                k += max(1, ended)
                if self.state is State.FAULT and on_fault == "end":
                    return
                if timings.elapsed > TELL_AFTER and self.state is State.DISARMED and not told:
                    told = True
                    print(f"motors passive, waiting: {self._supervisor.reason}", file=sys.stderr)
            if not stopped():
                timings.wait(total, period)
        finally:
            gc.unfreeze()
            timings.finish()

    def stop(self) -> None:
        """Stop the robot; if it raises, the report says so."""
        try:
            self._robot.stop()
        except Exception as error:  # whatever a user's robot raises
            self._broken(error)

    def rearm(self) -> None:
        """Leave FAULT with the next cycle: the hand goes home from where it then is.

        The emergency stop is released. If a reason is still there, it faults again. May be called
        from any thread.
        """
        self._rearm.set()

    def cycle(self) -> None:
        """One control period."""
        if self._rearm.is_set():
            self._leave_fault()
        measured, now = self._read(), self._robot.clock.now()
        self._look_for_drops()
        problems = self._problems(measured, now)
        names = [p.name for p in problems]
        if not problems:
            self._take(measured)
            names += self._watch_object()
        before = self.state
        at_home = self._way.done(self._limiter.position)
        go_home = self._object.lost or not self._way.begun
        state = self._supervisor.step(problems, now, at_home=at_home, go_home=go_home)
        asked = sent = None
        if state is State.FAULT:
            self._fault(before)
        elif state is State.HOLD:
            self._held += 1
            if before is State.HOMING:
                self._way.restart()
            sent = self._limiter.rest()
        elif state is State.HOMING:
            sent = self._go_home()
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

    def _leave_fault(self) -> None:
        self._rearm.clear()
        if self.state is not State.FAULT:
            return
        self._estop.reset()
        self._guard.restart()
        self._error, self._bad_outputs, self._deadlines = "", 0, DeadlineWatch()
        self._begin_anew()
        self._supervisor.rearm(self._robot.clock.now())

    def _read(self) -> dict[str, Measurement]:
        try:
            measured = self._robot.read()
        except Exception as error:  # whatever a user's robot raises: motors off, and a report
            self._broken(error)
            return {}
        return checked(measured)

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
        self._way.restart()
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
        found += self._deadlines.check()
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
        if self._object.look(self._inputs) and self.state is not State.DISARMED:
            self._fallen += 1
            self._begin_anew()
        return [OUT_OF_REACH] if self._object.lost else []

    def _go_home(self) -> np.ndarray:
        """The next pose (nu,) [rad] on the slow way home."""
        arming = not (self._dry_run or getattr(self._robot, "armed", True))
        if self._passive or arming:
            self._limiter.start(self._pose)
            self._way.restart()
        self._passive = False
        if arming:  # the way begins when the motors can go it
            return self._limiter.position.copy()
        if not self._way.begun:
            self._policy.overrule(self._way.begin(self._limiter.position)[None])
        self._held = 0
        return self._limiter.step(self._way.next())[0]

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
        self._passive = True
        if before is State.FAULT or self._dry_run:
            return
        try:
            getattr(self._robot, "disarm", self._robot.stop)()
        except Exception as error:
            self._broken(error)

"""widen run: a policy in closed loop on a robot."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from widen.deploy.control_log import ControlLog
    from widen.deploy.robot import Robot
    from widen.deploy.runtime import OnnxPolicy


@dataclass(frozen=True)
class RunOptions:
    """What a user may say about a run, named as on the command line."""

    robot: str
    seconds: float
    dry_run: bool = False
    port: str | None = None
    baud: int | None = None
    calibration: Path | None = None
    current_limit: float | None = None
    pose: str | None = None
    pose_frame: Path | None = None
    pose_latency: float = 0.0
    max_speed: float | None = None
    max_acceleration: float | None = None
    stop_file: Path | None = None
    log: Path | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a number out of range or an option that would do nothing."""
        if not 0 < self.seconds <= 86_400:
            raise ValueError(f"--seconds {self.seconds:g}: expected more than 0 and at most 86400")
        for name in ("max_speed", "max_acceleration", "current_limit"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{_option(name)} {value:g}: expected more than 0")
        if not 0 <= self.pose_latency <= 1:
            raise ValueError(f"--pose-latency {self.pose_latency:g}: expected 0 to 1 second")
        if self.robot == "leap" and self.port is None:
            raise ValueError(
                "--robot leap: expected --port, for example /dev/ttyUSB0,"
                " or what widen leap emulate prints"
            )
        for name in ("port", "baud", "calibration", "current_limit"):
            if self.robot != "leap" and getattr(self, name) is not None:
                raise ValueError(f"{_option(name)}: only with --robot leap")
        if self.pose is None and self.robot != "leap":
            if self.pose_frame is not None:
                raise ValueError("--pose-frame: only with --pose")
            if self.pose_latency:
                raise ValueError("--pose-latency: only with --pose")
        if self.log is not None and self.log.is_file():
            raise ValueError(f"--log {self.log}: exists, expected a new name")


def run_policy(subject: str, options: RunOptions) -> dict[str, Any]:
    """Run a policy and say what came of it.

    Raises:
        ValueError: whatever a user got wrong, in one line.
    """
    from widen.deploy.controller import run
    from widen.deploy.estop import EmergencyStop
    from widen.deploy.runtime import OnnxPolicy

    from .cli_subject import find_policy

    found = find_policy(subject)
    policy = OnnxPolicy(found.path)
    estop = EmergencyStop(file=options.stop_file)
    robot = tracked(make_robot(options, policy), options, policy)
    with contextlib.ExitStack() as stack:
        # stdout is the result's: a user's robot may print
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(estop.listen())
        log = None
        if options.log is not None:
            log = stack.enter_context(
                contextlib.closing(_open_log(options, found.name, policy, robot))
            )
        _tell(options, estop)
        report = run(
            policy,
            robot,
            options.seconds,
            dry_run=options.dry_run,
            max_speed=options.max_speed,
            max_acceleration=options.max_acceleration,
            estop=estop,
            log=log,
        )
    result = {"policy": found.name, "robot": options.robot, **report.as_dict()}
    if log is not None:
        result["log"] = {"path": str(log.path), "cycles": log.written, "lost": log.lost}
        if log.problem:
            print(f"log: {log.problem}", file=sys.stderr)
    return result


def make_robot(options: RunOptions, policy: OnnxPolicy) -> Robot:
    """The robot of `widen run`.

    Raises:
        ValueError: no such robot, or one that cannot be had.
    """
    from widen.deploy.robot import load_robot

    if options.robot == "leap":
        from widen.deploy.leap import LeapRobot
        from widen.deploy.leap_bus import BAUD

        return LeapRobot(
            options.port or "",
            policy.contract,
            baud=options.baud or BAUD,
            calibration=options.calibration,
            current_limit=options.current_limit,
        )
    if options.robot == "sim":
        from .cli_policy import make_sim_robot

        return make_sim_robot(policy.contract)
    return load_robot(options.robot)


def tracked(robot: Robot, options: RunOptions, policy: OnnxPolicy) -> Robot:
    """The robot with a tracker of the object, where one is asked for or needed.

    The LEAP hand does not see what it holds: with a policy that has to, udp is the default.
    """
    pose = options.pose
    sees = any(reading.source == "object" for reading in policy.contract.readings)
    if pose is None and options.robot == "leap" and sees:
        pose = "udp"
    if pose is None:
        return robot
    from widen.deploy.pose import TrackedRobot, make_pose_source

    source = make_pose_source(
        pose, calibration=options.pose_frame, latency=options.pose_latency, clock=robot.clock
    )
    return TrackedRobot(robot, source)


def _open_log(options: RunOptions, name: str, policy: OnnxPolicy, robot: Robot) -> ControlLog:
    from widen.deploy.control_log import ControlLog
    from widen.deploy.safety import State, intervention_names

    assert options.log is not None
    measured = [r for r in policy.contract.readings if r.source != "goal"]
    more: dict[str, Any] = {"robot": options.robot, "dry_run": options.dry_run}
    if (timestep := getattr(robot, "timestep", None)) is not None:
        more["timestep"] = timestep
    return ControlLog.of_policy(
        options.log,
        name,
        policy.contract,
        states=[state.value for state in State],
        interventions=intervention_names(measured, robot.joint_names),
        robot_joints=robot.joint_names,
        clock=robot.clock,
        more=more,
    )


def _tell(options: RunOptions, estop: Any) -> None:
    """How to stop, for who sits before a terminal."""
    if options.robot == "sim" or not sys.stderr.isatty():
        return
    file = f", create {options.stop_file}" if options.stop_file is not None else ""
    print(
        f"emergency stop (motors off): press Enter, kill -USR1 {os.getpid()}{file}", file=sys.stderr
    )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")

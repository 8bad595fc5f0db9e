"""How long a control cycle takes, over an emulated LEAP bus.

    python benchmarks/latency.py                     at 20, 50 and 100 Hz, ten minutes together
    python benchmarks/latency.py --rates 20 --seconds 60

The emulated motors, in a process of their own, answer the real dynamixel-sdk over a pseudo-terminal.
A cycle lasts from its beginning to the command: newest readings, checks, policy, limits. With a
log being written. The policy is the shipped fingertip_reach, made for 20 Hz; at other rates its
targets are not meaningful, but take as long.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from report import Arguments, Line, Report, Table, parser_of, run, widen

from widen.deploy.contract import MaxAge
from widen.deploy.control_log import ControlLog
from widen.deploy.controller import run as control
from widen.deploy.leap import LeapRobot
from widen.deploy.runtime import OnnxPolicy
from widen.deploy.safety import State, intervention_names
from widen.train.cli_subject import policies_folder

POLICY = "fingertip_reach"
RATES = (20.0, 50.0, 100.0)


def one(rate: float, seconds: float) -> dict[str, Any]:
    """A run at `rate` [Hz] on a hand that is emulated for it; the report of `widen run`."""
    policy = OnnxPolicy(policies_folder() / f"{POLICY}.onnx")
    period = 1.0 / rate
    policy.contract = replace(
        policy.contract,
        control_period=period,
        max_age={name: MaxAge(0.1, 0.25) for name in policy.contract.max_age},
    )
    emulate = [*widen(), "leap", "emulate", POLICY, "--hand", "motors"]
    emulator = subprocess.Popen(emulate, stdout=subprocess.PIPE, text=True)
    try:
        assert emulator.stdout is not None
        robot = LeapRobot(emulator.stdout.readline().strip(), policy.contract)
        measured = [r for r in policy.contract.readings if r.source != "goal"]
        with (
            tempfile.TemporaryDirectory() as folder,
            ControlLog.of_policy(
                Path(folder) / "run.log",
                POLICY,
                policy.contract,
                states=[state.value for state in State],
                interventions=intervention_names(measured, robot.joint_names),
                robot_joints=robot.joint_names,
                clock=robot.clock,
            ) as log,
        ):
            return control(policy, robot, seconds, log=log).as_dict()
    finally:
        emulator.terminate()
        emulator.wait(10.0)


def measure(args: Arguments) -> Report:
    """One rate after the other, each in a process of its own."""
    seconds = 5.0 if args.smoke else args.seconds
    command = [sys.executable, __file__, "--worker", "--seconds", str(seconds), "--rates"]
    figures = {}
    for rate in args.rates:
        done = subprocess.run([*command, str(rate)], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise ValueError(f"at {rate:g} Hz: the run failed")
        figures[f"{rate:g}"] = json.loads(done.stdout)

    def three(found: dict[str, Any], name: str) -> str:
        return " / ".join(f"{found[f'{name}_ms_{q}']:.2f}" for q in ("p50", "p99", "max"))

    rows = [
        [
            rate,
            three(found, "policy"),
            three(found, "cycle"),
            f"{found['deadline_misses']} of {found['cycles'] + found['deadline_misses']}",
            str(found["interventions"]),
        ]
        for rate, found in figures.items()
    ]
    headings = ("rate [Hz]", "policy p50 / p99 / max [ms]", "cycle p50 / p99 / max [ms]")
    table = Table(
        f"Latency, {seconds:g} s each",
        (*headings, "deadlines missed", "interventions"),
        rows,
    )
    first = figures[f"{args.rates[0]:g}"]
    line = Line("control cycle p50 / p99 / max [ms]", three(first, "cycle"))
    return Report({"seconds": seconds, "rates": figures}, table, [line])


def main() -> int:
    parser = parser_of((__doc__ or "").splitlines()[0])
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, metavar="HZ")
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--worker", action="store_true", help="one rate, its report on stdout")
    args, _ = parser.parse_known_args()
    if args.worker:
        print(json.dumps(one(args.rates[0], args.seconds)))
        return 0
    return run("latency", parser, measure)


if __name__ == "__main__":
    sys.exit(main())

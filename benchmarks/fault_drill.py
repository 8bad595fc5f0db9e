"""What a controlled LEAP hand does when things around it fail, fault by fault.

    python benchmarks/fault_drill.py                  every fault 20 times, twelve minutes
    python benchmarks/fault_drill.py --only unplug --repeats 3
    python benchmarks/fault_drill.py --docs           also writes the table into docs/safety.md

The controller, the driver and the policy are those of `widen run`; the bus is the emulator's
pseudo-terminal, with the real dynamixel-sdk on the driver's side. The moment of every fault is
random within the control period. What the motors did is read from the emulator, not from the
controller: a motor counts as passive when its torque is off or its bus watchdog has tripped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from drill_rig import AT_ONCE, FAULTS, HOLDS, POLICY, Fault, passive, rig
from report import (
    RESULTS,
    Arguments,
    Line,
    Report,
    Table,
    about,
    machine_name,
    markdown,
    parser_of,
    run,
    widen,
)

from widen.deploy.contract import Contract
from widen.deploy.leap_emulator import LeapEmulator
from widen.deploy.leap_motor import MotorHand
from widen.deploy.leap_registers import MOTOR_JOINTS, RAD_PER_TICK
from widen.deploy.runtime import OnnxPolicy
from widen.deploy.safety import State
from widen.train.cli_subject import policies_folder

WITHOUT_OBJECT = "fingertip_reach"
CALM = 0.15, 0.25  # after the policy took over the fault comes [s]
SETTLE = 1.0  # motors that are still active so long after the end stay so [s]
DOCS = RESULTS.parents[1] / "docs" / "safety.md"
BEGIN, END = "<!-- fault drill: begin -->", "<!-- fault drill: end -->"


SIGNALS = {  # to a process of its own
    "kill": ("kill -9 of the controller", signal.SIGKILL, 7.0),
    "freeze": ("SIGSTOP of the controller", signal.SIGSTOP, 7.0),
    "terminate": ("SIGTERM to the controller", signal.SIGTERM, AT_ONCE),
}


@dataclass(frozen=True)
class Outcome:
    """Of one repetition; times from the fault [s], nan where it did not happen."""

    state: str
    reason: str
    hold: float
    passive: float
    torque: bool
    """whether motors had torque in the end, stopped by their watchdogs"""
    outside: int


def watch(emulator: LeapEmulator, found: list[float], end: threading.Event) -> None:
    """Note when the motors become passive after they were active."""
    while passive(emulator) and not end.is_set():
        time.sleep(0.002)
    while not end.is_set():
        if passive(emulator):
            found.append(time.monotonic())
            return
        time.sleep(0.002)


def repeat(fault: Fault, seed: int) -> Outcome:
    """Once, in this process."""
    contract = OnnxPolicy(policies_folder() / f"{POLICY}.onnx").contract
    rng, moments = np.random.default_rng(seed), list[float]()
    with rig(seed, contract) as r:

        def strike() -> None:
            while (
                r.controller.state is not State.ACTIVE or passive(r.emulator)
            ) and not end.is_set():
                time.sleep(0.001)
            time.sleep(rng.uniform(*CALM))
            moments.append(time.monotonic())
            fault.cause(r)

        found, end = list[float](), threading.Event()
        threads = [
            threading.Thread(target=watch, args=(r.emulator, found, end), daemon=True),
            threading.Thread(target=strike, daemon=True),
        ]
        for thread in threads:
            thread.start()
        r.controller.loop(fault.seconds)
        if State.FAULT in fault.ends:
            threads[0].join(SETTLE)
        end.set()
        began = moments[0] if moments else np.nan
        after = [(t, s) for t, s, _ in r.controller.history if t >= began]
        hold = next((t - began for t, s in after if s is State.HOLD), np.nan)
        outside = len(violations(r.wire.commands, contract)) + goals_outside(r.emulator, contract)
        reason = r.controller.report().reason
        torque = any(motor.torque_enabled for motor in r.emulator.motors)
        off = (found or [np.nan])[0] - began
        return Outcome(r.controller.state.value, reason, hold, off, torque, outside)


def violations(commands: Sequence[np.ndarray], contract: Contract) -> list[int]:
    """Commands, in the motors' order, that leave the limits of position, speed or acceleration."""
    order = [contract.joints.index(joint) for joint in MOTOR_JOINTS]
    lower, upper = np.array(contract.lower)[order], np.array(contract.upper)[order]
    sent = np.array(commands).reshape(-1, len(order))
    bad = ~(np.isfinite(sent) & (sent >= lower) & (sent <= upper)).all(1)
    move = contract.max_target_speed * contract.control_period * (1 + 1e-9)
    moves = np.diff(sent, axis=0, prepend=sent[:1])
    changes = np.diff(moves, axis=0, prepend=np.zeros((1, len(order))))
    bad |= (np.abs(moves) > move).any(1) | (np.abs(changes) > 2 * move).any(1)
    return np.flatnonzero(bad).tolist()


def goals_outside(emulator: LeapEmulator, contract: Contract) -> int:
    """Goal positions that a motor received beyond its joint's limits, a tick of rounding aside."""
    count = 0
    for motor in emulator.motors:
        i = contract.joints.index(motor.joint)
        _, goals = motor.goal_history()
        low, high = contract.lower[i] - RAD_PER_TICK, contract.upper[i] + RAD_PER_TICK
        count += int(((goals < low) | (goals > high)).sum())
    return count


def repeat_process(number: int, seed: int) -> Outcome:
    """Once, with `widen run` in a process of its own that gets a signal."""
    contract = OnnxPolicy(policies_folder() / f"{WITHOUT_OBJECT}.onnx").contract
    order = [contract.joints.index(joint) for joint in MOTOR_JOINTS]
    with LeapEmulator(MotorHand(np.array(contract.home)[order]), seed=seed) as emulator:
        command = [*widen(), "run", WITHOUT_OBJECT, "--robot", "leap"]
        process = subprocess.Popen(
            [*command, "--port", emulator.port, "--seconds", "60"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until = time.monotonic() + 30.0
            while len(emulator.motors[0].goals) < 12:
                if process.poll() is not None or time.monotonic() > until:
                    raise ValueError(f"widen run {WITHOUT_OBJECT} does not move the emulated hand")
                time.sleep(0.005)
            time.sleep(np.random.default_rng(seed).uniform(0.0, 0.1))
            began = time.monotonic()
            os.kill(process.pid, number)
            while not passive(emulator) and time.monotonic() < began + SETTLE:
                time.sleep(0.001)
            moment = time.monotonic() if passive(emulator) else np.nan
            torque = any(motor.torque_enabled for motor in emulator.motors)
            outside = goals_outside(emulator, contract)
        finally:
            process.kill()
            process.wait()
    return Outcome("gone", "", np.nan, moment - began, torque, outside)


def measure(args: Arguments) -> Report:
    """Every fault, `args.repeats` times."""
    period = OnnxPolicy(policies_folder() / f"{POLICY}.onnx").contract.control_period
    figures: dict[str, Any] = {}
    rows: list[list[str]] = []
    repeats = 1 if args.smoke else args.repeats
    names = args.only or [*FAULTS, *SIGNALS]
    for name in names:
        if name in FAULTS:
            fault = FAULTS[name]
            outcomes = [repeat(fault, seed) for seed in range(repeats)]
            ends, what = {state.value for state in fault.ends}, fault.what
            within, hold_only, reasons = fault.within, fault.ends == HOLDS, fault.reasons
        else:
            what, number, within = SIGNALS[name]
            outcomes = [repeat_process(number, seed) for seed in range(repeats)]
            ends, hold_only, reasons = {"gone"}, False, ()
        figures[name] = summarize(outcomes, ends, reasons, within, hold_only, period)
        figures[name]["what"] = what
        rows.append(row(name, figures[name]))
        print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    good = sum(f["ok"] for f in figures.values())
    outside = sum(f["outside"] for f in figures.values())
    headings = (
        "fault",
        "what",
        "ended in",
        "hold [ms]",
        "stopped [ms]",
        "allowed",
        "outside limits",
    )
    table = Table(
        f"{len(names)} faults, {repeats} times each; median and maximum from the fault on",
        headings,
        rows,
    )
    lines = [
        Line("faults that end as they should", f"{good} of {len(names)}", "all"),
        Line("commands outside limits", str(outside), "0"),
    ]
    return Report({"repeats": repeats, "faults": figures}, table, lines)


def summarize(
    outcomes: Sequence[Outcome],
    ends: set[str],
    reasons: tuple[str, ...],
    within: float | None,
    hold_only: bool,
    period: float,
) -> dict[str, Any]:
    """Counts and times [ms] of a fault's repetitions, and whether all are as they should be."""
    states: dict[str, int] = {}
    for outcome in outcomes:
        states[outcome.state] = states.get(outcome.state, 0) + 1
    hold = np.array([o.hold for o in outcomes])
    off = np.array([o.passive for o in outcomes])
    judged = hold if hold_only else off
    limit = within * period if within is not None else None
    # before the fault would be for another reason
    soon = limit is None or bool(((judged >= 0.0) & (judged <= limit)).all())
    meant = not reasons or all(o.reason.startswith(reasons) for o in outcomes)
    held = sum(o.torque for o in outcomes)
    outside = sum(o.outside for o in outcomes)
    return {
        "states": states,
        "reasons": sorted({o.reason for o in outcomes}),
        "hold_ms": _spread(hold),
        "passive_ms": _spread(off),
        "allowed_ms": None if limit is None else round(1e3 * limit),
        "outside": outside,
        "watchdog": held if np.isfinite(off).any() else 0,
        "ok": set(states) <= ends and soon and meant and outside == 0,
    }


def row(name: str, figures: dict[str, Any]) -> list[str]:
    """A line of the table."""

    def times(pair: list[float] | None) -> str:
        return "–" if pair is None else f"{pair[0]:.0f}, {pair[1]:.0f}"

    states = ", ".join(f"{s} {n}" for s, n in figures["states"].items())
    allowed = "–" if figures["allowed_ms"] is None else str(figures["allowed_ms"])
    return [
        name,
        figures["what"],
        states,
        times(figures["hold_ms"]),
        times(figures["passive_ms"]) + (" (watchdog)" if figures["watchdog"] else ""),
        allowed + ("" if figures["ok"] else " !"),
        str(figures["outside"]),
    ]


def _spread(times: np.ndarray) -> list[float] | None:
    times = times[np.isfinite(times)]
    return (
        [round(1e3 * float(np.median(times)), 1), round(1e3 * float(times.max()), 1)]
        if len(times)
        else None
    )


def document(text: str) -> None:
    """Put the table where docs/safety.md shows it."""
    before, rest = DOCS.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    where = about()
    said = f"{where['date']}, {machine_name(where['machine'])}: {text}"
    DOCS.write_text(f"{before}{BEGIN}\n\n{said}\n\n{END}{after}", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """0: every fault ended as it should; 1: one did not; 2: a mistake of the user."""
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=[*FAULTS, *SIGNALS], metavar="FAULT")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/safety.md")
    kept: list[Report] = []

    def kept_measure(args: Arguments) -> Report:
        kept.append(measure(args))
        if args.docs:
            document(markdown(kept[0].table))
        return kept[0]

    code = run("fault-drill", parser, kept_measure, argv)
    return code or int(not all(f["ok"] for f in kept[0].figures["faults"].values()))


if __name__ == "__main__":
    sys.exit(main())

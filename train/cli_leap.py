"""widen leap: look at a LEAP hand, measure its zero offsets, or emulate one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from widen.deploy.contract import Contract
    from widen.deploy.leap_emulator import LeapEmulator
    from widen.deploy.leap_motor import Hand
    from widen.deploy.leap_sim_hand import PoseSender, SimHand

leap = typer.Typer(
    help="The LEAP hand: check it, calibrate it, or emulate one.", no_args_is_help=True
)

POLICY = "cube_rotate"
TIMESTEP = 0.002  # of the emulated hand's physics [s]

Port = Annotated[str, typer.Option(metavar="PORT", help="For example /dev/ttyUSB0.")]
Baud = Annotated[int, typer.Option(metavar="N", help="Of the bus.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
CalibrationFile = Annotated[
    Path | None, typer.Option("--calibration", metavar="FILE", help="Of widen leap calibrate.")
]


@leap.command()
def check(
    port: Port, baud: Baud = 4_000_000, calibration: CalibrationFile = None, as_json: Json = False
) -> None:
    """List the motors and what is wrong with them; writes nothing to them."""
    from widen.deploy.leap_inspect import check_hand

    from . import cli_show as show

    report = check_hand(port, baud, calibration)
    show.emit(report, as_json, _print_check)
    if not report["ok"]:
        raise typer.Exit(1)


@leap.command()
def calibrate(
    port: Port,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="To write.")],
    pose: Annotated[
        str, typer.Option(metavar="zero|home", help="In which the hand is held.")
    ] = "zero",
    policy: Annotated[
        str, typer.Option(metavar="POLICY.onnx|NAME", help="Whose home it is, for --pose home.")
    ] = POLICY,
    baud: Baud = 4_000_000,
) -> None:
    """Measure the joints' zero offsets while somebody holds the hand in a known pose."""
    from widen.deploy.leap_calibration import check_output, save_calibration
    from widen.deploy.leap_inspect import measure_offsets

    if pose not in ("zero", "home"):
        raise ValueError(f"--pose {pose}: expected zero or home")
    check_output(output)
    angles = None if pose == "zero" else _home(_contract(policy))

    def ready() -> None:
        shape = "flat, all joints at zero" if pose == "zero" else f"in the home pose of {policy}"
        typer.echo(f"The motors are passive. Hold the hand {shape}, then press Enter.", err=True)
        if not typer.get_text_stream("stdin").readline():
            raise ValueError("calibrate: nobody pressed Enter")

    offsets = measure_offsets(port, baud, angles, ready)
    save_calibration(output, offsets, pose)
    for joint, offset in offsets.items():
        typer.echo(f"{joint:8} {offset:+.4f} rad")
    typer.echo(f"wrote {output}")


@leap.command()
def emulate(
    policy: Annotated[
        str, typer.Argument(metavar="[POLICY.onnx|NAME]", help="For which hand and object.")
    ] = POLICY,
    hand: Annotated[
        str, typer.Option(metavar="mujoco|motors", help="A simulated hand, or motors alone.")
    ] = "mujoco",
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:TARGET][@S[+S]]",
            help="What goes wrong, when and for how long; once for each. See docs/leap.md.",
        ),
    ] = None,
    pose: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where datagrams with the object's pose go.")
    ] = "127.0.0.1:9870",
    link: Annotated[
        Path | None, typer.Option(metavar="PATH", help="A symbolic link to make to the port.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(metavar="S", help="How long; default until Ctrl-C.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of faults that come by chance.")] = 0,
) -> None:
    """Emulate a LEAP hand's bus; the first line printed is its port."""
    from widen.deploy.leap_faults import parse_fault

    if seconds is not None and not 0 < seconds <= 86_400:
        raise ValueError(f"--seconds {seconds:g}: expected more than 0 and at most 86400")
    faults = [parse_fault(text) for text in fault or ()]
    contract = _contract(policy)
    sender = _pose_sender(pose) if hand == "mujoco" else None
    emulator = make_emulator(contract, hand, sender, link=link, faults=faults, seed=seed)
    took = _serve(emulator, seconds)
    drops = getattr(emulator.hand, "drops", None)
    fell = "" if drops is None else f", object dropped {drops} times"
    typer.echo(
        f"{took:.1f} s, {emulator.packets} packets ({emulator.bad_packets} damaged),"
        f" {emulator.trips} watchdog trips{fell}"
    )


def make_emulator(
    contract: Contract, hand: str, pose: PoseSender | None = None, **options: Any
) -> LeapEmulator:
    """An emulated LEAP hand as a policy's contract needs it, not plugged in yet.

    Args:
        contract: of the policy.
        hand: "mujoco" or "motors".
        pose: where the object's pose goes, with "mujoco".
        options: of `LeapEmulator`.

    Raises:
        ValueError: no such hand, or the contract is for another one.
    """
    import numpy as np

    from widen.deploy.leap_emulator import LeapEmulator
    from widen.deploy.leap_motor import MotorHand
    from widen.deploy.leap_registers import MOTOR_JOINTS

    if hand not in ("mujoco", "motors"):
        raise ValueError(f"--hand {hand}: expected mujoco or motors")
    if sorted(contract.joints) != sorted(MOTOR_JOINTS):
        raise ValueError(f"the policy is for hand {contract.hand!r}; expected 'leap'")
    moved: Hand
    if hand == "mujoco":
        moved = make_sim_hand(contract, pose)
    else:
        home = _home(contract)
        moved = MotorHand(np.array([home[joint] for joint in MOTOR_JOINTS]))
    return LeapEmulator(moved, **options)


def make_sim_hand(contract: Contract, pose: PoseSender | None = None) -> SimHand:
    """The MuJoCo hand and object of a contract, in steps of 2 ms."""
    from widen.deploy.leap_sim_hand import SimHand
    from widen.deploy.sim_robot import DROPPED

    from .cli_policy import contract_scene

    reach = DROPPED if contract.reach is None else contract.reach.radius
    return SimHand(contract_scene(contract, TIMESTEP), pose, dropped=reach)


def _serve(emulator: LeapEmulator, seconds: float | None) -> float:
    """Run until the time is over or somebody asks to end. Returns how long it was [s]."""
    import signal
    import threading
    import time

    ended = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM) if main else ():
        before[number] = signal.signal(number, lambda *_: ended.set())
    begun = time.monotonic()
    try:
        with emulator:
            typer.echo(emulator.port)  # flushes
            ended.wait(seconds)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return time.monotonic() - begun


def _contract(policy: str) -> Contract:
    from widen.deploy.runtime import OnnxPolicy

    from .cli_subject import find_policy

    return OnnxPolicy(find_policy(policy).path).contract


def _home(contract: Contract) -> dict[str, float]:
    return dict(zip(contract.joints, contract.home, strict=True))


def _pose_sender(text: str) -> PoseSender:
    from widen.deploy.leap_sim_hand import PoseSender

    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"--pose {text}: expected HOST:PORT, for example 127.0.0.1:9870")
    return PoseSender(host.strip("[]"), int(port))


def _print_check(report: dict[str, Any]) -> None:
    head = ("joint", "id", "rad", "mA", "degC", "V", "offset", "state")
    typer.echo("{:8} {:>3} {:>7} {:>5} {:>5} {:>5} {:>8}  {}".format(*head))
    for motor in report["motors"]:
        state = ", ".join(motor["problems"]) or ("torque on" if motor["torque"] else "ok")
        typer.echo(
            f"{motor['joint']:8} {motor['id']:3} "
            + "{:>7} {:>5} {:>5} {:>5}".format(
                *(
                    "-" if motor[key] is None else f"{motor[key]:{form}}"
                    for key, form in (
                        ("position", "+.3f"),
                        ("current_ma", "d"),
                        ("temperature", "d"),
                        ("voltage", ".1f"),
                    )
                )
            )
            + f" {motor['offset']:+8.4f}  {state}"
        )
    for hint in report["hints"]:
        typer.echo(hint)
    typer.echo("ok" if report["ok"] else "not ok")

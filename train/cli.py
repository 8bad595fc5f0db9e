"""The command line. Every command imports what it needs when it runs, so that help is quick and
`widen verify` works where neither torch nor mujoco is installed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from . import cli_show as show
from . import cli_show_exam as show_exam
from .cli_errors import Told, near, one_line
from .cli_leap import leap

app = typer.Typer(
    name="widen",
    help="Sim-to-real training for robot hands: train, watch, export, run.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(leap, name="leap")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
_SHIPPED = "the name of a shipped one: widen list policies."
Subject = Annotated[
    str,
    typer.Argument(
        metavar="RUN|POLICY.onnx|NAME", help=f"A run folder, an exported policy, or {_SHIPPED}"
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(metavar="auto|cpu|warp", help="What simulates; default as the run was."),
]
Policy = Annotated[
    str, typer.Argument(metavar="POLICY.onnx|NAME", help=f"An exported policy, or {_SHIPPED}")
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    A user's mistake is one line on stderr and 2; an interrupted command is 130. Anything else
    that goes wrong is a bug of widen and keeps its traceback.

    Args:
        argv: arguments without the program's name; None for those of the process.
    """
    # torch's OpenMP threads spin while they wait. With another program on one of two cores an
    # update then takes up to ten times as long; waiting less makes it 8 % slower on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    code = _invoke(list(sys.argv[1:] if argv is None else argv) or ["--help"])
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        # It has not taken leave of those it trains with. Not the usual end: gloo's threads may still
        # let go of tensors, and for that want Python, which by then is being taken down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _invoke(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        with command.make_context("widen", arguments) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as stop:
        return stop.exit_code
    except Told as told:
        return told.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if (line := one_line(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    return 0


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        print(f"widen {version_of('widen')}")
        raise typer.Exit


@app.command()
def train(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped config.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="For example ppo.iterations=100."),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run folder; default runs/<task>-<time>."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in DIR.")] = False,
    as_json: Json = False,
) -> None:
    """Train a policy, evaluate it and export it.

    On several GPUs or machines: torchrun --nproc-per-node=K -m widen.train CONFIG ...
    """
    from .cli_train import train

    train(config, overrides or (), run_dir, resume, as_json)


@app.command()
def monitor(
    run: Run,
    once: Annotated[bool, typer.Option("--once", help="Print the present state and end.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with all ranges over time.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Watch a run that trains, or look at one that has ended."""
    from .monitor import follow, render, snapshot
    from .monitor_html import write_html
    from .run_folder import RunFolder

    folder = RunFolder.open(run)
    if html is not None:
        write_html(folder, html)
        print(f"wrote {html}", file=sys.stderr if as_json else sys.stdout)
    if as_json or once:
        show.emit(snapshot(folder), as_json, lambda state: show.console().print(render(state)))
    elif html is None:
        follow(folder)


@app.command("eval")
def evaluate_policy(
    subject: Subject,
    episodes: Annotated[int, typer.Option(metavar="N", help="Whole episodes to count.")] = 128,
    randomization: Annotated[
        str,
        typer.Option(
            metavar="none|current|exam",
            help="The nominal world, the run's ranges, or the held-out world of widen exam.",
        ),
    ] = "none",
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Count the goals of a policy over whole episodes."""
    if episodes < 1:
        raise ValueError(f"--episodes {episodes}: expected 1 or more")
    if randomization not in ("none", "current", "exam"):
        raise ValueError(f"--randomization {randomization}: expected none, current or exam")
    from .cli_policy import open_trial
    from .cli_subject import find_subject

    tried = find_subject(subject)  # before the seconds that torch takes to be imported
    from .evaluate import evaluate

    env, step = open_trial(tried.path, episodes, randomization, backend)
    result = evaluate(env, step, episodes)
    about = {"policy": tried.name, "randomization": randomization}
    show.emit({**about, **result}, as_json, show.evaluation)


@app.command()
def exam(
    subject: Subject,
    episodes: Annotated[
        int | None, typer.Option(metavar="N", help="Per condition, at least; default 512.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="Length of the episodes of all conditions but nominal and held_out; default 3.",
        ),
    ] = None,
    conditions: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Only these; names, or the groups nominal, held_out, suite, bounds, fine.",
        ),
    ] = None,
    backend: Backend = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where results are kept."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Examine a policy: held-out world, bounds, events, finer simulation. Goes on where it stopped.

    Results are in RUN/exam.json, or beside the policy in POLICY.exam.json; those of a shipped
    policy in NAME.exam.json in the present folder.
    """
    from .cli_exam import exam
    from .cli_subject import find_subject

    result = exam(find_subject(subject), episodes, seconds, conditions, backend, output)
    show.emit(result, as_json, show_exam.table)


@app.command()
def play(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="RUN|POLICY.onnx|NAME|LOG",
            help=f"A run folder, an exported policy, a log of widen run, or {_SHIPPED}",
        ),
    ],
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a film: .mp4, or .gif.")
    ] = None,
    viewer: Annotated[bool, typer.Option("--viewer", help="Show it in MuJoCo's viewer.")] = False,
    seconds: Annotated[
        float | None, typer.Option(metavar="S", help="Play for so long; default one episode.")
    ] = None,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Play a policy in the nominal world, or do a recorded run again in simulation."""
    from .cli_play import play

    play(subject, video, viewer, seconds, backend, as_json)


@app.command()
def export(
    run: Run,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Default RUN/policy.onnx."),
    ] = None,
) -> None:
    """Write the newest checkpoint's policy as one ONNX file."""
    from widen.deploy.export import export_runner

    from .candidate import digest_of
    from .cli_policy import check_output
    from .exam_file import contract_summary, exam_path
    from .run_folder import RunFolder
    from .trained import Trained

    folder = RunFolder.open(run)
    if output is not None:
        check_output(output)
    trained = Trained.restore(folder)
    examined = contract_summary(exam_path(folder.path), digest_of(trained))
    report = export_runner(trained, output or folder.policy, examined)
    show.exported(report.path, report.size_bytes, report.max_error)


@app.command()
def verify(policy: Policy, as_json: Json = False) -> None:
    """Replay a policy's golden vectors on this computer and print its contract."""
    from widen.deploy.contract import TOLERANCE
    from widen.deploy.runtime import OnnxPolicy

    from .cli_subject import find_policy

    loaded = OnnxPolicy(find_policy(policy).path)
    error = loaded.verify()
    ok = error <= TOLERANCE
    finite = error if error < float("inf") else None
    result = {"ok": ok, "max_error": finite, "contract": loaded.contract.as_dict()}
    show.emit(result, as_json, show.verification)
    if not ok:
        raise typer.Exit(1)


@app.command()
def run(
    policy: Policy,
    robot: Annotated[
        str,
        typer.Option(
            metavar="sim|leap|MODULE:CLASS",
            help="sim is a simulated hand, MODULE:CLASS your own: see widen.deploy.robot.Robot.",
        ),
    ],
    seconds: Annotated[float, typer.Option(metavar="S", help="How long.")] = 30.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide, but send nothing.")] = False,
    port: Annotated[str | None, typer.Option(metavar="PORT", help="leap: the serial port.")] = None,
    baud: Annotated[int | None, typer.Option(metavar="BAUD", help="leap: of the bus.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="leap: from widen leap calibrate.")
    ] = None,
    current_limit: Annotated[
        float | None, typer.Option(metavar="A", help="leap: the most that a motor may draw.")
    ] = None,
    pose: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Who sees the object: udp[[:HOST]:PORT], ros:HOST:PORT/TOPIC, ros2:...",
        ),
    ] = None,
    pose_frame: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the camera is: docs/object-pose.md.")
    ] = None,
    pose_latency: Annotated[
        float, typer.Option(metavar="S", help="From the picture to the sender's time stamp.")
    ] = 0.0,
    max_speed: Annotated[
        float | None, typer.Option(metavar="RAD/S", help="Of joint targets; less than trained.")
    ] = None,
    max_acceleration: Annotated[
        float | None, typer.Option(metavar="RAD/S2", help="Of joint targets.")
    ] = None,
    stop_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Emergency stop when this file appears.")
    ] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every cycle, for widen play FILE.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a policy in closed loop on a robot, at its own rate. A fault ends it with exit code 1."""
    from .cli_run import RunOptions, run_policy

    options = RunOptions(
        robot=robot,
        seconds=seconds,
        dry_run=dry_run,
        port=port,
        baud=baud,
        calibration=calibration,
        current_limit=current_limit,
        pose=pose,
        pose_frame=pose_frame,
        pose_latency=pose_latency,
        max_speed=max_speed,
        max_acceleration=max_acceleration,
        stop_file=stop_file,
        log=log,
    )
    result = run_policy(policy, options)
    show.emit(result, as_json, show.run)
    if result["state"] == "fault":
        raise typer.Exit(1)


@app.command("list")
def list_names(
    kind: Annotated[str, typer.Argument(metavar="tasks|objects|hands|parameters|configs|policies")],
    as_json: Json = False,
) -> None:
    """List the names that a config may use, and the policies that are shipped."""
    from .cli_lists import LISTS

    if kind not in LISTS:
        raise ValueError(f"list {kind}: unknown; expected {near(kind, LISTS)}")
    show.emit(LISTS[kind](), as_json, show.policies if kind == "policies" else show.names)


@app.command()
def bench(
    parameters: Annotated[
        bool, typer.Option("--parameters", help="Also what each parameter costs: 3 minutes more.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure the throughput of this machine, layer by layer."""
    from .bench import bench as measure
    from .bench import render
    from .bench_cost import parameter_costs

    result = measure()
    if parameters:
        result["parameters"] = parameter_costs()
    show.emit(result, as_json, lambda result: show.console().print(render(result)))


if __name__ == "__main__":
    sys.exit(main())

"""An exported policy over a LEAP hand's bus, against itself in training.

    python benchmarks/sim_to_sim.py RUN [--seconds 120]

The emulated hand is MuJoCo's with a time step of 2 ms, behind a pseudo-terminal that speaks the
motors' protocol; the object's pose comes as datagrams. `widen run` controls it in real time from a
process of its own. Two figures come of it: goals per minute, as a share of what the same policy
reaches in its training environment, and how far the targets of the first 500 cycles are from those
that the torch pipeline of training gives for the very readings that were logged.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import Arguments, Line, Report, Table, last_line, parser_of, run, widen

from widen.deploy.compare import initial_state
from widen.deploy.contract import JOINT_TARGET
from widen.deploy.export import PolicyGraph
from widen.deploy.log_file import Log, read_log
from widen.envs.task import task_class
from widen.train.run_folder import RunFolder
from widen.train.trained import Trained

CYCLES = 500  # of the trace
FORGOTTEN = 2  # cycles of HOLD in a row after which the controller resets the policy
SHARE, ERROR = 0.8, 1e-5  # aims: of the goals per minute; [rad]


def trace_error(trained: Trained, log: Log, cycles: int = CYCLES) -> float:
    """The largest difference of joint targets [rad] over the first cycles that the policy decided.

    Through the modules of training in float32. The state goes from step to step, but for the joint
    target, which is what was really sent; it begins anew where the controller resets the policy:
    after a drop, a long hold or an answer that is not finite.

    Raises:
        ValueError: the policy decided in fewer cycles.
    """
    contract, env = log.contract(), trained.env
    layout = task_class(trained.config.task).layout(env.scene)
    graph = PolicyGraph(layout, env.encoder, env.actions, trained.policy)
    names = [tensor.name for tensor in contract.state]
    asked, sent = log.arrays["asked"], log.arrays["sent"]
    states = [log.header["states"][code] for code in log.arrays["state"]]
    decided = np.flatnonzero(np.isfinite(asked).all(1))
    if len(decided) < cycles:
        raise ValueError(f"{log.path}: the policy decided in {len(decided)} cycles of {cycles}")
    worst, before = 0.0, -1
    state: list[torch.Tensor] = []
    for t in map(int, decided[:cycles]):
        between = states[before + 1 : t]
        if before < 0 or len(between) > FORGOTTEN or set(between) - {"hold"}:
            state = [torch.from_numpy(a) for a in initial_state(contract, 1)]
        if t:
            target = torch.from_numpy(sent[t - 1].astype(np.float32))[None]
            state[names.index(JOINT_TARGET)] = target
        readings = [torch.from_numpy(log.arrays[r.name][t][None]) for r in contract.readings]
        with torch.no_grad():
            state = graph(readings, state)
        worst = max(worst, float(np.abs(state[0].numpy()[0] - asked[t]).max()))
        before = t
    return worst


@contextlib.contextmanager
def emulated(policy: Path, pose: str, seconds: float) -> Iterator[str]:
    """The port of an emulated hand in a process of its own."""
    command = [*widen(), "leap", "emulate", str(policy), "--pose", pose]
    process = subprocess.Popen(
        [*command, "--seconds", str(seconds)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(10.0)


def told(command: list[str]) -> dict[str, Any]:
    """What a command of widen prints with --json.

    Raises:
        ValueError: it fails.
    """
    done = subprocess.run([*widen(), *command, "--json"], capture_output=True, text=True)
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError:
        raise ValueError(last_line(done.stderr, f"widen {command[0]} failed")) from None


def free_port() -> int:
    """Of UDP, on this computer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def measure(args: Arguments) -> Report:
    """Train's environment first, then the bus, then the trace."""
    seconds = 12.0 if args.smoke else args.seconds
    trained = Trained.restore(RunFolder.open(args.run))
    policy = args.run / "policy.onnx"
    episodes = 8 if args.smoke else 128
    judged = told(["eval", str(policy), "--episodes", str(episodes), "--randomization", "none"])
    config = trained.config
    lasts = config.trial_env.episode_seconds or task_class(config.task).episode_seconds
    in_training = judged["goals_mean"] * 60.0 / lasts
    pose = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as folder, emulated(policy, pose, seconds + 60.0) as port:
        file = str(Path(folder) / "run.log")
        where = ["--robot", "leap", "--port", port, "--pose", f"udp:{pose}"]
        ran = told(["run", str(policy), *where, "--seconds", str(seconds), "--log", file])
        compared = 100 if args.smoke else CYCLES
        error = trace_error(trained, read_log(file), compared)
    on_bus = ran["goals"] * 60.0 / ran["seconds"]
    share = on_bus / in_training if in_training else float("nan")
    figures = {
        "goals_per_minute_training": in_training,
        "goals_per_minute_bus": on_bus,
        "share": share,
        "trace_cycles": compared,
        "trace_error": error,
        "run": ran,
        "eval": judged,
    }
    rows = [
        ["goals per minute in the training environment", f"{in_training:.1f}"],
        [f"over the emulated bus, {seconds:.0f} s, drops {ran['drops']}", f"{on_bus:.1f}"],
        ["share", f"{share:.2f}"],
        [f"largest difference to torch over {compared} cycles [rad]", f"{error:.1e}"],
        ["deadlines missed / cycles", f"{ran['deadline_misses']} / {ran['cycles']}"],
        ["interventions", str(ran["interventions"])],
    ]
    lines = [
        Line("goals over the emulated bus / in training", f"{share:.2f}", f"at least {SHARE}"),
        Line("trace against torch [rad]", f"{error:.1e}", f"at most {ERROR:g}"),
    ]
    return Report(figures, Table("Sim to sim", ["", ""], rows), lines)


def main() -> int:
    parser = parser_of((__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder with its policy.onnx")
    parser.add_argument("--seconds", type=_seconds, default=120.0)
    return run("sim-to-sim", parser, measure)


def _seconds(text: str) -> float:
    if not 5 <= (seconds := float(text)) <= 3600:
        raise argparse.ArgumentTypeError("expected 5 to 3600")
    return seconds


if __name__ == "__main__":
    sys.exit(main())

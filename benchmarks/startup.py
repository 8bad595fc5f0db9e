"""How long commands take to start, up to the first iteration of a training.

    python benchmarks/startup.py

Every command runs once before it counts, so files come from the system's memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from report import Arguments, Line, Report, Table, last_line, parser_of, run, widen

LIMIT = 120.0  # [s] for one command


class Start(NamedTuple):
    """Seconds from starting `widen train`."""

    begins: float
    """until it begins to train"""
    iterated: float
    """until the first iteration is complete: a rollout and its update"""


def seconds_of(command: Sequence[str]) -> float:
    """How long a command takes.

    Raises:
        ValueError: it fails.
    """
    began = time.perf_counter()
    ran = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    seconds = time.perf_counter() - began
    if ran.returncode:
        said = last_line(ran.stderr, f"exit code {ran.returncode}")
        raise ValueError(f"{' '.join(command)}: {said}")
    return seconds


def first_iteration(command: Sequence[str]) -> Start:
    """Start a training in a folder of its own, and end it after its first iteration.

    Args:
        command: of a training; --run-dir is added.

    Raises:
        ValueError: it ends by itself or takes more than LIMIT.
    """
    with tempfile.TemporaryDirectory() as folder:
        log, run_dir = Path(folder) / "log", Path(folder) / "run"
        with log.open("w", encoding="utf-8") as output:
            began = time.perf_counter()
            process = subprocess.Popen(
                [*command, "--run-dir", str(run_dir)], stdout=output, stderr=subprocess.STDOUT
            )
            try:
                while (line := _first_line(run_dir / "adr.jsonl")) is None:
                    late = time.perf_counter() - began > LIMIT
                    if late or process.poll() is not None:
                        said = last_line(log.read_text(encoding="utf-8"), "ended")
                        raise ValueError(f"widen train: no iteration in {LIMIT:g} s: {said}")
                    time.sleep(0.002)
                iterated = time.perf_counter() - began
            finally:
                process.kill()
                process.wait()
    return Start(iterated - json.loads(line)["seconds"], iterated)


def _first_line(path: Path) -> str | None:
    """The first line of the run's log that tells of an iteration."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError:
        return None
    whole = (line for line in lines if line.endswith("\n"))
    return next((line for line in whole if json.loads(line)["kind"] == "interval"), None)


def measure(args: Arguments) -> Report:
    repeats = 1 if args.smoke else args.repeats
    tiny = ["env.num_envs=8", "ppo.steps=4", "ppo.threads=1"] if args.smoke else []
    commands = {
        "python, doing nothing": [sys.executable, "-c", "pass"],
        "python, importing torch": [sys.executable, "-c", "import torch"],
        "widen --help": [*widen(), "--help"],
        "widen list tasks": [*widen(), "list", "tasks"],
    }
    seconds = {name: _repeated(command, repeats) for name, command in commands.items()}
    starts = [first_iteration([*widen(), "train", "quickstart", *tiny]) for _ in range(repeats)]
    begins, iterated = "widen train quickstart, until it trains", "and until its first iteration"
    seconds[begins] = [start.begins for start in starts]
    seconds[iterated] = [start.iterated for start in starts]
    rows = [(name, f"{median(x):.2f}", f"{min(x):.2f}") for name, x in seconds.items()]
    figures = {name: {"median": round(median(x), 4), "all": x} for name, x in seconds.items()}
    title = f"Start-up, median of {repeats} [s]"
    summary = [
        Line(f"`{name}`", f"{median(seconds[name]):.2f} s")
        for name in ("widen --help", "widen list tasks")
    ]
    summary.append(
        Line("`widen train` to its first iteration", f"{median(seconds[iterated]):.1f} s")
    )
    return Report(figures, Table(title, ("", "median", "least"), rows), summary)


def _repeated(command: Sequence[str], repeats: int) -> list[float]:
    seconds_of(command)
    return [seconds_of(command) for _ in range(repeats)]


def options() -> argparse.ArgumentParser:
    parser = parser_of("Start-up times.")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default 5")
    return parser


if __name__ == "__main__":
    sys.exit(run("startup", options(), measure))

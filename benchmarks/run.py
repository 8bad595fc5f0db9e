"""All benchmarks of a processor, one after the other, and the table that the README shows.

    python benchmarks/run.py                              under ten minutes on two cores
    python benchmarks/run.py --only layers,score
    python benchmarks/run.py --with-gymnasium-robotics    installs what hand_block needs, if missing

Each is a script of its own that can also be run alone. Here each gets a time limit; one that fails
or hangs costs one line and none of the others. Writes <date>-<machine>.md and .json into
benchmarks/results and prints the former.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from report import (
    RESULTS,
    Line,
    Table,
    about,
    last_line,
    machine_name,
    markdown,
    stated,
    write_json,
)

HERE = Path(__file__).resolve().parent
LIMITS = {  # [s], in order
    "layers": 200,
    "sb3": 120,
    "hand_block": 150,
    "score": 300,
    "scaling": 150,
    "startup": 120,
}
SET_UP = 1200  # [s] more for hand_block where it installs
SHORT = {"startup": ["--repeats", "3"]}


def main(argv: Sequence[str] | None = None, scripts: Path = HERE) -> int:
    """0: all went well, 1: one failed, 2: a mistake of the user.

    Args:
        argv: arguments without the program's name; None for those of the process.
        scripts: the folder with one script for each name in LIMITS.
    """
    args = _options().parse_args(argv)
    if unknown := [name for name in args.only if name not in LIMITS]:
        print(f"error: --only {unknown[0]}: expected of {', '.join(LIMITS)}", file=sys.stderr)
        return 2
    if args.smoke:
        args.seconds = min(args.seconds, 20.0)
    began, result = time.monotonic(), {**about(), "smoke": args.smoke, "benchmarks": {}}
    stem = f"{result['date']}-{machine_name(result['machine'])}"
    for name in (name for name in LIMITS if name in args.only):
        print(f"{name} ...", file=sys.stderr, flush=True)
        found = _left_out(name, args) or start(name, args, scripts)
        if "error" in found:
            print(f"{name}: {found['error']}", file=sys.stderr, flush=True)
        result["benchmarks"][name] = found
        result["seconds"] = round(time.monotonic() - began, 1)
        # after each: whatever happens next, this is kept
        write_json(args.out / f"{stem}.json", result)
        (args.out / f"{stem}.md").write_text(text(result), encoding="utf-8")
    print(f"{text(result)}\nwrote {args.out / stem}.md and .json")
    return 1 if any("error" in found for found in result["benchmarks"].values()) else 0


def _left_out(name: str, args: argparse.Namespace) -> dict[str, Any] | None:
    """Why a benchmark is not run; None: it is."""
    if name != "hand_block" or args.with_gymnasium_robotics:
        return None
    from hand_block import is_ready

    if is_ready(args.env):
        return None
    return {"left_out": "needs an environment of its own: --with-gymnasium-robotics installs it"}


def start(name: str, args: argparse.Namespace, scripts: Path) -> dict[str, Any]:
    """Run one script; its JSON, or "error" in one line. "seconds" in any case."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "found.json", Path(folder) / "log"
        command = [sys.executable, str(scripts / f"{name}.py"), "--out", str(out)]
        command += ["--smoke"] * args.smoke + SHORT.get(name, [])
        if name == "hand_block":
            command += ["--env", str(args.env)]
        if name == "score":
            command += ["--seeds", *map(str, args.seeds), "--seconds", f"{args.seconds:g}"]
            command += ["--episodes", "8"] * args.smoke
        began, limit = time.monotonic(), _limit(name, args)
        with log.open("w", encoding="utf-8") as output:
            error = _wait(command, output, limit)
        seconds = round(time.monotonic() - began, 1)
        if error is None and out.exists():
            return json.loads(out.read_text(encoding="utf-8"))
        said = last_line(log.read_text(encoding="utf-8", errors="replace"), "it wrote nothing")
        return {"error": error if error and "limit" in error else said, "seconds": seconds}


def _limit(name: str, args: argparse.Namespace) -> float:
    if args.limit is not None:
        return args.limit
    if name == "score":  # each seed is trained, then judged
        return len(args.seeds) * (args.seconds + LIMITS[name] - 120.0)
    return LIMITS[name] + SET_UP * (name == "hand_block" and args.with_gymnasium_robotics)


def _wait(command: Sequence[str], output: Any, limit: float) -> str | None:
    """Run to the end or to the limit; what went wrong."""
    process = subprocess.Popen(
        command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        code = process.wait(limit)
        return f"exit code {code}" if code else None
    except subprocess.TimeoutExpired:
        return f"ended at its time limit of {limit:g} s"
    finally:
        with suppress(ProcessLookupError):  # with all that it started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def text(result: dict[str, Any]) -> str:
    """Markdown: the summary, then every benchmark's own table."""
    found = result["benchmarks"]
    summary = [Line(**line) for one in found.values() for line in one.get("summary", ())]
    for name, one in found.items():
        for why in ("left_out", "error"):
            if why in one:
                summary.append(Line(f"{name}: {why.replace('_', ' ')}: {one[why]}", ""))
    lines = [
        f"# Benchmarks, {result['machine']['cpu']}, {result['machine']['processors']} cores",
        "",
    ]
    if result["smoke"]:
        lines += ["Tiny sizes, to see whether everything works: the figures mean nothing.", ""]
    lines += [markdown(Table("", ("", "measured", "aim"), summary)), "", stated(result), ""]
    for name, one in found.items():
        if "table" in one:
            table = Table(**one["table"])
            lines += [f"## {name} ({one['seconds']:g} s)", "", markdown(table), ""]
    return "\n".join([*lines, f"{result['seconds']:g} s in all.", ""])


def _options() -> argparse.ArgumentParser:
    from hand_block import DEFAULT

    parser = argparse.ArgumentParser(description="All benchmarks of a processor.")
    names = ",".join(LIMITS)
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=list(LIMITS), metavar="A,B", help=names
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help="default benchmarks/results"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of score; default 0")
    parser.add_argument("--seconds", type=float, default=120.0, help="of score; default 120")
    parser.add_argument(
        "--with-gymnasium-robotics", action="store_true", help="install it, if it is missing"
    )
    parser.add_argument("--env", type=Path, default=DEFAULT, help="where; see hand_block.py")
    parser.add_argument("--limit", type=float, metavar="S", help="for each, in place of its own")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything work?")
    return parser


if __name__ == "__main__":
    sys.exit(main())

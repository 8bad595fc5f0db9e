"""What the benchmarks have in common: their tables, their JSON, and what machine they ran on."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
Arguments = argparse.Namespace


class Table(NamedTuple):
    """Text in rows; the first column is aligned left, figures right."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


class Line(NamedTuple):
    """One line of the summary of all benchmarks."""

    what: str
    figure: str
    aim: str = ""


class Report(NamedTuple):
    """What one benchmark found."""

    figures: dict[str, Any]
    """for machines"""
    table: Table
    """for people"""
    summary: Sequence[Line]
    """the lines that the README shows"""


def markdown(table: Table) -> str:
    """A table with its title, columns padded so that it also reads well as it is."""
    rows = [list(table.headings), *(list(row) for row in table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.headings))]
    rule = [
        "-" * (width + 2) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(widths)
    ]
    body = [
        "| " + " | ".join(_padded(cell, widths[i], i) for i, cell in enumerate(row)) + " |"
        for row in rows
    ]
    lines = [body[0], "|" + "|".join(rule) + "|", *body[1:]]
    return "\n".join([f"**{table.title}**", "", *lines] if table.title else lines)


def _padded(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


def about() -> dict[str, Any]:
    """date (UTC), commit ("+" where files differ from it), machine, versions."""
    from widen.train.bench import machine, versions

    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _commit(),
        "machine": machine() | {"memory_gb": _memory_gb()},
        "versions": versions(),
    }


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError):  # not on every system
        return None


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + "+" * bool(git("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return None


def machine_name(machine: dict[str, Any]) -> str:
    """For file names, as in "intel-xeon-2-cores"; of letters, digits and hyphens."""
    name = re.sub(r"\((R|TM)\)|@.*|\b(CPU|Processor|\d+-Core)\b", " ", machine["cpu"], flags=re.I)
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "-".join([*words, str(machine["processors"]), "cores"])


def stated(result: dict[str, Any]) -> str:
    """Date, machine and versions in one paragraph."""
    machine, versions = result["machine"], result["versions"]
    memory = f", {machine['memory_gb']} GB" if machine.get("memory_gb") else ""
    commit = f", commit {result['commit']}" if result.get("commit") else ""
    return (
        f"{result['date']}{commit}: {machine['cpu']}, {machine['processors']} processors{memory},"
        f" {machine['system']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
    )


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Complete or not at all: whoever waits for it must not read half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def parser_of(description: str) -> argparse.ArgumentParser:
    """With the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the JSON; default benchmarks/results/<date>-<machine>-<benchmark>.json",
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything work?")
    return parser


def run(
    name: str,
    parser: argparse.ArgumentParser,
    measure: Callable[[Arguments], Report],
    argv: Sequence[str] | None = None,
) -> int:
    """Measure, print the table, write the JSON; the exit code.

    Mistakes of the user are one line and 2.
    """
    args = parser.parse_args(argv)
    began = time.monotonic()
    try:
        found = measure(args)
    except (ValueError, OSError) as error:
        print(f"error: {name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    seconds = round(time.monotonic() - began, 1)
    result = {"benchmark": name, **about(), "smoke": args.smoke, "seconds": seconds}
    result |= {
        "figures": found.figures,
        "table": found.table._asdict(),
        "summary": [line._asdict() for line in found.summary],
    }
    stem = f"{result['date']}-{machine_name(result['machine'])}-{name}"
    path = args.out or RESULTS / f"{stem}.json"
    write_json(path, result)
    print(f"{markdown(found.table)}\n\n{stated(result)}\n{seconds} s; wrote {path}")
    return 0


def thousands(rate: float) -> str:
    return f"{round(rate):,}"


def widen() -> list[str]:
    """The command that users type, of the installation that runs this."""
    script = Path(sys.executable).with_name("widen")
    return [str(script)] if script.exists() else [sys.executable, "-m", "widen.train.cli"]


def last_line(text: str, default: str) -> str:
    """The last line that says something, as an error message's does."""
    lines: Iterable[str] = (line.strip() for line in reversed(text.splitlines()))
    return next((line for line in lines if line), default)

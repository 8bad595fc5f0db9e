"""Results on stdout: as JSON, or for people."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Standard output by rich."""
    from rich.console import Console

    return Console()


def emit(result: Any, as_json: bool, render: Callable[[Any], None]) -> None:
    """Print a command's result as one JSON value, or the way people like it."""
    if as_json:
        print(json.dumps(result, allow_nan=False))
    else:
        render(result)


def interrupted(again: Sequence[str]) -> None:
    """Say on stderr how an interrupted training goes on: by the command `again`, if it has begun."""
    how = f"; go on with: {shlex.join(again)}" if again else ""
    print(f"interrupted{how}", file=sys.stderr)


def lost(reason: str, checkpoint: Path | None, again: Sequence[str], restarts: bool) -> None:
    """Say on stderr that another process of a training is gone.

    Args:
        reason: how this one noticed.
        checkpoint: the last one, if there is any.
        again: the command that goes on from it.
        restarts: torchrun does so by itself.
    """
    words = [f"error: another process of this training died or hangs ({reason})"]
    words.append("there is no checkpoint yet" if checkpoint is None else f"last is {checkpoint}")
    if restarts:
        words.append("torchrun starts the processes again")
    elif checkpoint is not None:
        words.append(f"go on with: {shlex.join(again)}")
    print("; ".join(words), file=sys.stderr, flush=True)


def train(result: dict[str, Any]) -> None:
    run = result["run"]
    print(f"{_trained(result)}, {result['bounds_moved']} bounds moved, npd {result['npd']:.2f}")
    if result["policy"] is None:
        return
    print(
        f"{result['goals_mean']:.1f} goals per episode in the nominal world"
        f" (median {result['goals_median']:g}, {100 * result['drop_rate']:.0f} % dropped)"
    )
    print(f"watch  {shlex.join(('widen', 'monitor', run))}")
    _say_run(result["policy"])


def _say_run(policy: str) -> None:
    print(f"run    {shlex.join(('widen', 'run', policy, '--robot', 'sim'))}")


def _trained(result: dict[str, Any]) -> str:
    from .progress import format_count, format_duration

    steps, seconds = format_count(result["steps"]), format_duration(result["seconds"])
    return f"{result['run']}: {steps} steps in {seconds}"


def evaluation(result: dict[str, Any]) -> None:
    worlds = {"none": "nominal world", "current": "run's ranges", "exam": "held-out world"}
    world = f"the {worlds[result['randomization']]}"
    print(
        f"{result['policy']}: {result['goals_mean']:.2f} goals per episode in {world}"
        f" (median {result['goals_median']:g}, {100 * result['drop_rate']:.1f} % dropped,"
        f" {result['episodes']} episodes)"
    )


def played(result: dict[str, Any]) -> None:
    where = f"; wrote {result['video']}" if result["video"] else ""
    print(f"{result['goals']} goals in {result['seconds']:.1f} s, {result['drops']} drops{where}")


def replayed(result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("joint", "simulated - measured, rms [rad]", box=None)
    for name, rms in result["joint_rms"].items():
        table.add_row(name, f"{rms:.5f}")
    table.add_row("mean", f"{result['joint_rms_mean']:.5f}")
    console().print(table)
    where = f"; wrote {result['video']}" if result["video"] else ""
    compared = f"{result['compared']} of {result['cycles']} cycles compared"
    print(f"{result['seconds']:.1f} s of {result['policy']}, {compared}{where}")


def exported(path: Path, size_bytes: int, max_error: float) -> None:
    print(f"wrote {path} ({size_bytes / 1e3:.0f} kB, within {max_error:.1g} rad of training)")
    _say_run(str(path))


def verification(result: dict[str, Any]) -> None:
    from .cli_show_exam import in_brief

    contract, error = result["contract"], result["max_error"]
    verdict = "as at export" if result["ok"] else "NOT as at export"
    print(f"{verdict}: largest difference {'infinite' if error is None else f'{error:.1g}'} rad")
    rows = [
        {"what": "task", "value": contract["task"]},
        {"what": "hand", "value": contract["hand"]},
        {"what": "object", "value": _objects(contract["object"])},
        {"what": "rate", "value": f"{1 / contract['control_period']:g} Hz"},
        {"what": "reads", "value": ", ".join(map(_reading, contract["readings"]))},
        {"what": "commands", "value": ", ".join(contract["joints"])},
        {"what": "trained", "value": f"{contract['training'].get('steps')} steps"},
        {"what": "randomized", "value": f"{len(contract['randomization'])} parameters"},
        {"what": "examined", "value": in_brief(contract["exam"])},
    ]
    table(rows)


def _objects(choice: Any) -> str:
    """A name, name (size 0.05, mass 0.1), or several of these."""
    if isinstance(choice, list):
        return ", ".join(map(_objects, choice))
    if isinstance(choice, dict):
        rest = ", ".join(f"{key} {value}" for key, value in choice.items() if key != "name")
        return f"{choice.get('name')} ({rest})" if rest else str(choice.get("name"))
    return choice or "none"


def _reading(reading: dict[str, Any]) -> str:
    size = " x ".join(map(str, reading["shape"]))
    about = f"{size}; {reading['unit']}; frame {reading['frame']}; from the {reading['source']}"
    return f"{reading['name']} ({about})"


def run(result: dict[str, Any]) -> None:
    print(f"{result['goals']} goals in {result['seconds']:.1f} s, {result['drops']} drops")
    print(
        f"{result['cycles']} cycles, {result['deadline_misses']} deadlines missed,"
        f" {result['cycle_ms_p50']:.2f} ms (median), {result['cycle_ms_p99']:.2f} ms (99 %)"
    )
    by_name = result["interventions_by_name"]
    held = ", ".join(f"{name} {count}" for name, count in by_name.items())
    print(f"{result['interventions']} interventions{': ' if held else ''}{held}")
    if result["state"] != "active":
        reason = f": {result['reason']}" if result["reason"] else ""
        print(f"ended in {result['state'].upper()}{reason}")


def names(rows: list[dict[str, Any]]) -> None:
    """A table of what a person chooses by, one for each kind; --json tells the rest."""
    wanted = ("name", "unit", "nominal", "limits", "size", "mass", "summary")
    columns = [key for key in wanted if key in rows[0]]
    for kind in dict.fromkeys(row.get("kind") for row in rows):
        of_kind = [row for row in rows if row.get("kind") == kind]
        if kind is not None:
            print(f"{kind} ({len(of_kind)})")
        table([{key: _short(row[key]) for key in columns} for row in of_kind])


def policies(rows: list[dict[str, Any]]) -> None:
    """A table of the shipped policies; goals are those per episode."""
    from .progress import format_duration

    if not rows:
        print("none is shipped")
        return
    table(
        [
            {
                "name": row["name"],
                "task": row["task"],
                "training": format_duration(row["training_seconds"]),
                "nominal": _goals(row["nominal"]),
                "held-out": _goals(row["held_out"]),
                "summary": row["summary"],
            }
            for row in rows
        ]
    )


def _goals(figures: dict[str, Any]) -> str:
    return f"{figures['goals_mean']:.1f} in {figures['episode_seconds']:g} s"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_short, value))
    return "" if value is None else str(value)


def table(rows: list[dict[str, str]]) -> None:
    """Equal keys are a column's head."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for i, key in enumerate(rows[0]):
        table.add_column(key, no_wrap=i == 0)
    for row in rows:
        table.add_row(*(Text(value) for value in row.values()))
    console().print(table)

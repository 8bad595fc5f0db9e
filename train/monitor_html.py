"""A run as one HTML file: every range over the training, without a server or a network.

The page is `monitor_page.html` with the run's figures put in as JSON; it draws itself.
"""

from __future__ import annotations

import html
import json
import os
from pathlib import Path
from typing import Any

from .monitor import evenly, summarise
from .run_folder import Log, RunFolder, read_log

MOST_POINTS = 600
_LAST_MOVES = 20
_TEMPLATE = Path(__file__).with_name("monitor_page.html")
_OURS = '<meta name="generator" content="widen monitor">'
_DIGITS = 6  # significant; a page of 600 points and 40 parameters stays under 1 MB
_OVER_TIME = ("low", "high", "score_low", "score_high")
_FIXED = ("name", "unit", "nominal", "limit_low", "limit_high")


def write_html(run: RunFolder, path: Path | str) -> None:
    """Writes the page of `run`.

    A page that this function wrote before is replaced. Raises ValueError when `path` is any other
    file, a folder, in a folder that does not exist, or cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"{target} is a folder: expected the name of an HTML file to write")
    if not target.parent.is_dir():
        raise ValueError(f"{target}: expected an existing folder, got {target.parent}")
    if target.exists() and not _is_ours(target):
        raise ValueError(f"{target} exists and is no page of widen monitor: expected a new name")
    page = _page(run, read_log(run.adr_log))
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(page, encoding="utf-8")
        beside.replace(target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ValueError(f"{target}: cannot be written: {error.strerror or error}") from None


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return _OURS.encode() in file.read(1024)


def _page(run: RunFolder, log: Log) -> str:
    # "<" would let a name end the script element that holds the data.
    data = json.dumps(_data(run, log), separators=(",", ":")).replace("<", "\\u003c")
    title, body = _TEMPLATE.read_text(encoding="utf-8").split("@TITLE@")
    head, rest = body.split("@DATA@")
    return "".join((title, html.escape(f"{_name(run)} · widen"), head, data, rest))


def _data(run: RunFolder, log: Log) -> dict[str, Any]:
    """What the page draws; a list over time has one entry per shown interval."""
    summary = summarise(run, log)
    shown = [log.intervals[i] for i in evenly(len(log.intervals), MOST_POINTS)]
    adr = _section(_section(run.read_config(), "randomization"), "adr")
    return {
        **{key: summary[key] for key in ("finished", "iteration", "total_iterations", "fps")},
        "name": _name(run),
        "about": _about(run.read_config()),
        "made": _made(run.read_environment()),
        "widen_at": adr.get("widen_at"),
        "narrow_at": adr.get("narrow_at"),
        "bounds_moved": len(log.moves),
        "last_moves": log.moves[: -_LAST_MOVES - 1 : -1],
        "steps": [interval["steps"] for interval in shown],
        "iterations": [interval["iteration"] for interval in shown],
        **{
            key: [_short(interval[key]) for interval in shown]
            for key in ("seconds", "goals_mean", "drop_rate", "npd")
        },
        "parameters": _parameters(summary["parameters"], shown),
    }


def _parameters(now: list[dict[str, Any]], shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_name = [{p["name"]: p for p in interval["parameters"]} for interval in shown]
    return [
        {
            **{key: parameter[key] for key in (*_FIXED, "moves")},
            **{
                key: [_short(row.get(parameter["name"], {}).get(key)) for row in by_name]
                for key in _OVER_TIME
            },
        }
        for parameter in now
    ]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _name(run: RunFolder) -> str:
    return run.path.resolve().name


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def _about(config: dict[str, Any]) -> str:
    parts = [str(config[key]) for key in ("task", "hand", "object") if config.get(key)]
    curriculum = _section(config, "randomization").get("curriculum")
    environments = _section(config, "env").get("num_envs")
    if curriculum:
        parts.append(f"curriculum {curriculum}")
    if environments:
        parts.append(f"{environments} environments")
    if config.get("seed") is not None:
        parts.append(f"seed {config['seed']}")
    return " · ".join(parts)


def _made(environment: dict[str, Any]) -> str:
    versions = _section(environment, "versions")
    parts = [f"{name} {version}" for name, version in versions.items() if version]
    for key in ("cpu_model", "platform"):
        if environment.get(key):
            parts.append(str(environment[key]))
    if environment.get("started"):
        parts.append(f"started {environment['started']}")
    return " · ".join(parts)

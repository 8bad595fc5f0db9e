"""A run in the terminal: read from its folder, while it trains or after."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from .monitor_diagnosis import diagnosis_lines
from .progress import (
    format_count,
    format_duration,
    format_move,
    format_share,
    format_value,
    seconds_left,
)
from .run_folder import Log, LogReader, RunFolder, read_log

_POLL_EVERY = 1.0  # [s]
_HISTORY = 60  # points of the sparkline
_LEAST_BAR, _WIDEST_BAR = 6, 40  # cells
_LAST_MOVES = 5
_RATE_WINDOW = 20  # intervals that the time left is judged from
_SILENCE = 120.0  # [s] without a line after which a run is said to have stopped, perhaps
_SPARKS = "▁▂▃▄▅▆▇█"


def snapshot(run: RunFolder) -> dict[str, Any]:
    """The present state of a run, read from its folder; for its keys see `summarise`."""
    return summarise(run, read_log(run.adr_log))


def summarise(run: RunFolder, log: Log) -> dict[str, Any]:
    """The present state of a run as plain values, ready for JSON.

    Keys: run, task, steps, npd, goals_mean, drop_rate, return_mean, iteration, total_iterations,
    fps [1/s], seconds and seconds_left [s], finished, silent_seconds (since the last line, None
    before the first) [s], diverged (times that an environment was begun anew because the
    simulation lost it), bounds_moved, last_moves (newest first), goals_history, diagnosis (the last
    one, with the keys of `Diagnosis.report` and iteration and steps), and parameters: a list of
    name, unit, nominal, low, high, limit_low, limit_high, score_low, score_high, moves.
    What the run has not measured yet is None.
    """
    now = log.intervals[-1] if log.intervals else {}
    iteration, total = now.get("iteration", 0), now.get("total_iterations")
    moves = Counter(move["name"] for move in log.moves)
    written = run.adr_log.stat().st_mtime if log.intervals else None
    return {
        "run": str(run.path),
        "task": run.read_config().get("task"),
        "steps": now.get("steps", 0),
        "iteration": iteration,
        "total_iterations": total,
        "finished": total is not None and iteration >= total,
        "seconds": now.get("seconds", 0.0),
        "seconds_left": seconds_left(log.intervals[-_RATE_WINDOW:], total or 0) if now else None,
        "silent_seconds": None if written is None else max(0.0, time.time() - written),
        "fps": now.get("fps"),
        "npd": now.get("npd"),
        "goals_mean": now.get("goals_mean"),
        "drop_rate": now.get("drop_rate"),
        "return_mean": now.get("return_mean"),
        "diverged": now.get("diverged", 0),
        "bounds_moved": len(log.moves),
        "last_moves": log.moves[: -_LAST_MOVES - 1 : -1],
        "goals_history": [
            log.intervals[i]["goals_mean"] for i in evenly(len(log.intervals), _HISTORY)
        ],
        "diagnosis": _diagnosis(log),
        "parameters": [
            {**parameter, "moves": moves[parameter["name"]]}
            for parameter in now.get("parameters", [])
        ],
    }


def _diagnosis(log: Log) -> dict[str, Any] | None:
    if not log.diagnoses:
        return None
    return {key: value for key, value in log.diagnoses[-1].items() if key != "kind"}


def render(state: dict[str, Any], rows: int | None = None) -> Group:
    """A `snapshot` for the terminal; at most `rows` parameters, those that moved most."""
    lines: list[RenderableType] = [_headline(state), _figures(state), Text()]
    if any(goals is not None for goals in state["goals_history"]):
        lines.insert(2, _goals_line(state["goals_history"]))
    parameters = state["parameters"]
    shown = parameters
    if rows is not None and rows < len(parameters):
        most_moved = sorted(parameters, key=lambda p: p["moves"], reverse=True)[:rows]
        shown = [p for p in parameters if p in most_moved]
    if shown:
        lines.append(_table(shown))
    elif state["iteration"]:
        lines.append(Text("nothing is randomised in this run", style="dim"))
    if len(shown) < len(parameters):
        hidden = len(parameters) - len(shown)
        lines.append(Text(f"and {hidden} more that moved less: see --once", style="dim"))
    if state["last_moves"]:
        lines.append(Text("moved last", style="dim"))
    for move in state["last_moves"]:
        line = Text(f"  {format_move(move)}", style="cyan")
        mean, count = format_value(move["mean"]), move["count"]
        line.append(
            f"   score {mean} over {count} episodes at {format_count(move['steps'])} steps",
            style="dim",
        )
        lines.append(line)
    return Group(*lines, *diagnosis_lines(state["diagnosis"]))


def follow(run: RunFolder, console: Console | None = None) -> None:
    """Shows a run until it is finished or the user presses Ctrl-C.

    A finished run is shown once, and so is any run where the output is not a terminal.
    """
    console = console or Console()
    reader = LogReader(run.adr_log)
    reader.poll()
    state = summarise(run, reader.log)
    try:
        if console.is_terminal:
            with Live(console=console, auto_refresh=False, transient=True) as live:
                while not state["finished"]:
                    live.update(render(state, _rows_that_fit(console, state)), refresh=True)
                    time.sleep(_POLL_EVERY)
                    reader.poll()
                    state = summarise(run, reader.log)
    except KeyboardInterrupt:
        pass
    console.print(render(state))


def _rows_that_fit(console: Console, state: dict[str, Any]) -> int:
    around_the_rows = 9 + len(state["last_moves"]) + len(diagnosis_lines(state["diagnosis"]))
    return max(3, console.height - around_the_rows)


def _headline(state: dict[str, Any]) -> Text:
    line = Text(state["run"], style="bold")
    if not state["iteration"]:
        return line.append("  no interval is complete yet", style="yellow")
    line.append(f"  iteration {state['iteration']} of {state['total_iterations']}", style="default")
    if state["finished"]:
        line.append(f"  finished after {format_duration(state['seconds'])}", style="green")
    elif state["silent_seconds"] > _SILENCE:
        silence = format_duration(state["silent_seconds"])
        line.append(f"  nothing new for {silence}: it may have stopped", style="yellow")
    else:
        trained, left = format_duration(state["seconds"]), format_duration(state["seconds_left"])
        line.append(f"  {trained} trained, {left} left", style="default")
    return line


def _figures(state: dict[str, Any]) -> Text:
    line = Text()
    for label, value in (
        ("steps", format_count(state["steps"])),
        ("steps/s", format_count(state["fps"])),
        ("goals per episode", format_value(state["goals_mean"])),
        ("drop rate", format_share(state["drop_rate"])),
        ("npd", format_value(state["npd"])),
        ("bounds moved", str(state["bounds_moved"])),
    ):
        line.append(f"{label} ", style="dim").append(value, style="bold").append("   ")
    if state["diverged"]:
        line.append(f"diverged {state['diverged']} times", style="yellow")
    return line


def _goals_line(history: Sequence[float | None]) -> Text:
    highest = max(goals for goals in history if goals is not None)
    line = Text("goals ", style="dim").append(sparkline(history), style="green")
    return line.append(f"  0 to {format_value(highest)}", style="dim")


def _table(parameters: Iterable[dict[str, Any]]) -> Table:
    # narrow: with the longest units all of it and a small bar must fit 80 columns
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("parameter", no_wrap=True)
    table.add_column("range", min_width=_LEAST_BAR)
    table.add_column("low … high", no_wrap=True)
    table.add_column("limits", style="dim", no_wrap=True)
    table.add_column("unit", style="dim", no_wrap=True)
    table.add_column("scores", justify="right", no_wrap=True)
    table.add_column("moves", justify="right", no_wrap=True)
    for parameter in parameters:
        table.add_row(
            Text(parameter["name"]),
            _Bar(parameter),
            f"{format_value(parameter['low'])} … {format_value(parameter['high'])}",
            f"{format_value(parameter['limit_low'])} … {format_value(parameter['limit_high'])}",
            Text(parameter["unit"]),
            f"{format_value(parameter['score_low'])} | {format_value(parameter['score_high'])}",
            str(parameter["moves"]),
        )
    return table


class _Bar:
    """`range_bar` in the width that the table has left for it."""

    def __init__(self, parameter: dict[str, Any]) -> None:
        self._parameter = parameter

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(_LEAST_BAR, options.max_width), min(_WIDEST_BAR, options.max_width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = Text(range_bar(self._parameter, min(_WIDEST_BAR, options.max_width)))
        text.highlight_regex(r"─+", "bright_black")
        text.highlight_regex(r"[█▌▐]+", "cyan")
        text.highlight_regex(r"[│┃]", "bold yellow")
        yield text


def range_bar(parameter: dict[str, Any], cells: int) -> str:
    """The range between its limits, to half a cell, with the nominal value marked.

    `│` is the nominal outside the range (or a range of zero width), `┃` inside it. Where a limit
    is None the range and the nominal take its place.
    """
    low, high, nominal = parameter["low"], parameter["high"], parameter["nominal"]
    left, right = parameter["limit_low"], parameter["limit_high"]
    left = min(low, nominal) if left is None else left
    right = max(high, nominal) if right is None else right
    span = right - left or 1.0
    halves = 2 * cells

    def half(value: float) -> int:
        return min(halves, max(0, round((value - left) / span * halves)))

    first, past = half(low), half(high)
    if high > low and first == past:  # too narrow for half a cell, but not zero
        first, past = (first, past + 1) if past < halves else (first - 1, past)
    bar = []
    for cell in range(cells):
        filled = (first <= 2 * cell < past, first <= 2 * cell + 1 < past)
        bar.append({(True, True): "█", (True, False): "▌", (False, True): "▐"}.get(filled, "─"))
    mark = min(cells - 1, int((nominal - left) / span * cells))
    bar[mark] = "┃" if low < high and low <= nominal <= high else "│"
    return "".join(bar)


def sparkline(values: Sequence[float | None]) -> str:
    """One character per value, from 0 to the largest; a blank for None."""
    top = max((value for value in values if value is not None), default=0.0)
    if top <= 0:
        return "".join(" " if value is None else _SPARKS[0] for value in values)
    last = len(_SPARKS) - 1
    return "".join(
        " " if value is None else _SPARKS[min(last, max(0, round(value / top * last)))]
        for value in values
    )


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0 … count − 1, evenly spaced, with the first and the last."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]

"""What a person sees on stderr while a run trains, and how its figures are written."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_LINE_EVERY = 10.0  # [s], where stderr is not a terminal
_RATE_WINDOW = 20  # intervals that the time left is judged from
_MOVES_SHOWN = 3


class ProgressDisplay:
    """A live display on a terminal; a plain line now and then in a file or a pipe.

    Standard output stays untouched: it may carry the command's JSON.
    """

    def __init__(self, total_iterations: int, console: Console | None = None) -> None:
        self._total = total_iterations
        self._console = console or Console(stderr=True)
        self._recent: deque[dict[str, Any]] = deque(maxlen=_RATE_WINDOW)
        self._moves: deque[dict[str, Any]] = deque(maxlen=_MOVES_SHOWN)
        self._moves_count = 0
        self._printed_at = float("-inf")
        self._printed: dict[str, Any] | None = None
        self._live = (
            Live(
                console=self._console,
                auto_refresh=False,
                redirect_stdout=False,
                get_renderable=self._panel,
            )
            if self._console.is_terminal
            else None
        )

    def __enter__(self) -> ProgressDisplay:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()
        elif self._recent and self._recent[-1] is not self._printed:
            self._print_line()

    def update(self, interval: dict[str, Any], moves: Sequence[dict[str, Any]]) -> None:
        """Shows an `interval` record of the log and the `move` records since the last one.

        `interval` may also hold learning_rate and diverged, which are shown where they are given
        and, in the case of diverged, not 0.
        """
        self._recent.append(interval)
        self._moves.extend(moves)
        self._moves_count += len(moves)
        if self._live:
            self._live.refresh()
        elif time.monotonic() - self._printed_at >= PLAIN_LINE_EVERY:
            self._print_line()

    def _figures(self) -> list[tuple[str, str]]:
        now = self._recent[-1]
        figures = [
            ("steps", format_count(now["steps"])),
            ("steps/s", format_count(now["fps"])),
            ("goals per episode", format_value(now["goals_mean"])),
            ("drop rate", format_share(now["drop_rate"])),
            ("npd", format_value(now["npd"])),
        ]
        if now.get("diverged"):
            figures.append(("diverged", format_count(now["diverged"])))
        if "learning_rate" in now:
            figures.append(("learning rate", f"{now['learning_rate']:.1e}"))
        figures.append(("time left", format_duration(seconds_left(self._recent, self._total))))
        return figures

    def _print_line(self) -> None:
        self._printed_at = time.monotonic()
        self._printed = self._recent[-1]
        parts = [f"iteration {self._printed['iteration']}/{self._total}"]
        parts += [f"{label} {value}" for label, value in self._figures()]
        if self._moves:
            parts.append(f"{self._moves_count} bounds moved, last {format_move(self._moves[-1])}")
        self._console.print(", ".join(parts), highlight=False, soft_wrap=True, markup=False)

    def _panel(self) -> Group | Text:
        if not self._recent:
            return Text("the first iteration is on its way", style="dim")
        iteration = self._recent[-1]["iteration"]
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            f"iteration {iteration}/{self._total}",
            ProgressBar(total=self._total, completed=iteration, width=40),
        )
        figures = Text(no_wrap=False)
        for label, value in self._figures():
            figures.append(f"{label} ", style="dim").append(value, style="bold").append("   ")
        if not self._moves:
            return Group(bar, figures)
        moved = Text(f"{self._moves_count} bounds moved: ", style="dim")
        moved.append(", ".join(format_move(move) for move in reversed(self._moves)), style="cyan")
        return Group(bar, figures, moved)


def seconds_left(intervals: Sequence[dict[str, Any]], total_iterations: int) -> float | None:
    """Time to the last iteration at the pace of `intervals` [s]; None while there is no pace."""
    if not intervals:
        return None
    first, last = intervals[0], intervals[-1]
    done, spent = last["iteration"] - first["iteration"], last["seconds"] - first["seconds"]
    if done <= 0 or spent < 0:  # one interval, or the seconds of another run
        done, spent = last["iteration"], last["seconds"]
    if done <= 0:
        return None
    return max(0, total_iterations - last["iteration"]) * spent / done


def format_duration(seconds: float | None) -> str:
    """`42 s`, `3 min 20 s`, `5 h 02 min`."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_count(number: float | None) -> str:
    """Three or four digits and a unit: `950`, `13.4 k`, `2.05 M`."""
    if number is None:
        return "–"
    for size, unit, below in ((1, "", 999.5), (1e3, " k", 999_500), (1e6, " M", 999.5e6)):
        if number < below:
            return format_value(number / size) + unit
    return format_value(number / 1e9) + " G"


def format_value(value: float | None) -> str:
    """Three significant digits, without an exponent where that stays short."""
    if value is None or math.isnan(value):
        return "–"
    if 999.5 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.3g}"


def format_share(share: float | None) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.0f} %"


def format_move(move: dict[str, Any]) -> str:
    """`object_mass high 1.02 → 1.04`."""
    old, new = format_value(move["old"]), format_value(move["new"])
    return f"{move['name']} {move['side']} {old} → {new}"

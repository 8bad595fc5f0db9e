"""What `widen monitor` says of a run's diagnosis."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from .progress import format_value

_MOST = 3  # bounds and pairs that are shown
_CLEAR = 2.0  # standard errors of a fall that is worth a word


def diagnosis_lines(diagnosis: dict[str, Any] | None) -> list[Text]:
    """A few lines on a `diagnosis` of the log; none where it has nothing to tell."""
    if diagnosis is None:
        return []
    found = (
        ("limited by", [_limit(one) for one in diagnosis["limiting"] if one["limiting"]]),
        (
            "success falls towards",
            [_drop(one) for one in diagnosis["drops"] if one["drop"] > _CLEAR * one["error"]],
        ),
        ("worse together than apart", [_pair(one) for one in diagnosis["pairs"]]),
    )
    return [_line(label, texts) for label, texts in found if texts]


def _line(label: str, texts: list[str]) -> Text:
    more = f", and {len(texts) - _MOST} more" if len(texts) > _MOST else ""
    return Text(f"{label}  ", style="dim").append(", ".join(texts[:_MOST]) + more, style="yellow")


def _limit(one: dict[str, Any]) -> str:
    failed, decisions = one["recent_failed"], one["recent_decisions"]
    return f"{one['name']} {one['side']} ({failed} of {decisions} evaluations failed)"


def _drop(one: dict[str, Any]) -> str:
    inner, outer = format_value(one["inner"]), format_value(one["outer"])
    return f"{one['name']} {one['side']} ({inner} → {outer})"


def _pair(one: dict[str, Any]) -> str:
    both = " and ".join(f"{n} {s}" for n, s in zip(one["names"], one["sides"], strict=True))
    mean, expected = format_value(one["mean"]), format_value(one["expected"])
    verdict = ", fails" if one["fails"] else ""
    return f"{both} ({mean} where {expected} is expected{verdict})"

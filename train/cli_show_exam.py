"""An examination as a table for people."""

from __future__ import annotations

from typing import Any

from . import cli_show as show


def table(result: dict[str, Any]) -> None:
    """Every condition with its intervals, and how it compares with the nominal one."""
    nominal = {
        (row["name"], row["episode_seconds"]): row["goals_mean"] for row in result["conditions"]
    }
    # what a condition is stands in the file: with it a row would not fit a terminal of 80 columns
    rows = [
        {
            "condition": row["name"],
            "length": f"{row['episode_seconds']:g} s",
            "goals": f"{row['goals_mean']:.2f} {_interval(row['goals_ci'], 2)}",
            "nominal": _relative(row, nominal),
            "dropped %": _percent(row["drop_rate"], row["drop_ci"]),
        }
        for row in result["conditions"]
    ]
    show.table(rows)
    print("goals per episode; nominal: as a share of those in the nominal world; [95 % intervals]")
    if lost := sum(row["diverged"] for row in result["conditions"]):
        print(f"{lost} episodes diverged and are not counted")
    if result["unmoved"]:
        print(f"at the nominal value and left out: {', '.join(result['unmoved'])}")
    episodes = sum(row["episodes"] for row in result["conditions"])
    seconds = result["seconds"]
    print(f"{len(rows)} conditions, {episodes} episodes, {seconds:.0f} s on {result['backend']}")


def in_brief(examined: dict[str, Any] | None) -> str:
    """What a policy's contract says of its examination, in a line."""
    if not examined or not examined.get("conditions"):
        return "no"
    means = {row["name"]: row["goals_mean"] for row in examined["conditions"]}
    told = [
        f"{name.replace('_', ' ')} {means[name]:.1f}"
        for name in ("nominal", "held_out")
        if name in means
    ]
    count = f"{len(means)} conditions"
    return f"{', '.join(told)} goals per episode; {count}" if told else count


def _interval(ends: list[float], digits: int) -> str:
    return f"[{', '.join(f'{end:.{digits}f}' for end in ends)}]"


def _percent(rate: float, ends: list[float]) -> str:
    return f"{100 * rate:.0f} {_interval([100 * end for end in ends], 0)}"


def _relative(row: dict[str, Any], means: dict[tuple[str, float], float]) -> str:
    """Goals as a share of those in the nominal condition of equal length and simulation."""
    nominal = means.get((row["reference"], row["episode_seconds"]))
    if row["name"] == row["reference"] or not nominal:
        return ""
    return f"{100 * row['goals_mean'] / nominal:.0f} %"

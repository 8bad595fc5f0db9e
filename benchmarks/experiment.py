"""The experiment of docs/experiment.md: is a policy more robust for having met uncertainty?

    python benchmarks/experiment.py                       six trainings, one exam each: 80 minutes
    python benchmarks/experiment.py --only table          the table and the plot of finished runs

Trains cube_rotate_wide under each curriculum with each seed for equal iterations, examines the
policies with `widen exam`, and writes the table into DOCS/experiment.md, between its two marks, and
the plot beside it. What is finished is kept: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

CURRICULA = ("none", "uniform", "adr")
CONDITIONS = ("nominal", "held_out")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
COLOURS = {"none": "#9aa0a6", "uniform": "#4e79a7", "adr": "#f28e2b"}
_Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
_WIDEN = "import sys; from widen.train.cli import main; sys.exit(main(sys.argv[1:]))"


class Score(NamedTuple):
    """Goals per episode in one condition."""

    mean: float
    low: float
    high: float
    """95 % interval"""
    drop_rate: float
    episodes: int


class Result(NamedTuple):
    """One policy, trained and examined."""

    curriculum: str
    seed: int
    steps: int
    seconds: float
    scores: dict[str, Score]
    """by condition"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="cube_rotate_wide", help="default %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default 0 1")
    parser.add_argument("--iterations", type=int, default=440, help="default %(default)s")
    parser.add_argument("--episodes", type=int, default=512, help="of an exam's condition")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/experiment"),
        help="folder of the runs CURRICULUM-SEED, of which finished ones are kept",
    )
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="default %(default)s")
    parser.add_argument("--only", choices=["table"], help="train and examine nothing")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="as widen train")
    args = parser.parse_args()
    pairs = [(curriculum, seed) for seed in args.seeds for curriculum in CURRICULA]
    for curriculum, seed in pairs if args.only is None else ():
        run = args.runs / f"{curriculum}-{seed}"
        # a finished run is only tried again, and one of other settings is refused
        train(args.config, curriculum, seed, run, (f"ppo.iterations={args.iterations}", *args.set))
        examine(run, args.episodes)
    results = [read(args.runs / f"{c}-{seed}", c, seed) for c, seed in pairs]
    write(results, args.docs)
    print(table(results), end="")
    return 0


def train(config: str, curriculum: str, seed: int, run: Path, overrides: Sequence[str]) -> None:
    """Begin a run, or go on with it."""
    settings = (f"randomization.curriculum={curriculum}", f"seed={seed}", *overrides)
    again = ("--resume",) if (run / "config.yaml").is_file() else ()
    _widen("train", config, *settings, "--run-dir", str(run), *again)


def examine(run: Path, episodes: int) -> None:
    """`widen exam` keeps the conditions that it has finished."""
    chosen = ("--conditions", ",".join(CONDITIONS), "--episodes", str(episodes))
    _widen("exam", str(run), *chosen, "--json")


def _widen(*arguments: str) -> None:
    # its JSON is in the run's folder too; on the screen it would hide the progress
    command = [sys.executable, "-c", _WIDEN, *arguments]
    code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    if code:
        raise SystemExit(code)


def read(run: Path, curriculum: str, seed: int) -> Result:
    """What a finished run says of itself and of its exam; SystemExit where it is not finished."""
    try:
        lines = (run / "adr.jsonl").read_text(encoding="utf-8").splitlines()
        content = json.loads((run / "exam.json").read_text(encoding="utf-8"))
        rows = {row["name"]: row for row in content["conditions"]}
        scores = {name: _score(rows[name]) for name in CONDITIONS}
    except (OSError, KeyError, ValueError) as error:
        raise SystemExit(f"{run}: expected a finished and examined run: {error}") from None
    last = next(x for x in map(json.loads, reversed(lines)) if x["kind"] == "interval")
    return Result(curriculum, seed, last["steps"], last["seconds"], scores)


def _score(row: dict[str, Any]) -> Score:
    return Score(row["goals_mean"], *row["goals_ci"], row["drop_rate"], row["episodes"])


def pooled(scores: Sequence[Score]) -> Score:
    """All seeds together, each with the same weight.

    The interval is that of the mean of independent means, with the standard errors that their own
    intervals imply: it covers the draw of the episodes, not that of the seeds, for which two or
    three are too few to estimate a spread.
    """
    mean = fmean(score.mean for score in scores)
    errors = [(score.high - score.low) / (2.0 * _Z95) for score in scores]
    half = _Z95 * math.hypot(*errors) / len(scores)
    drops = fmean(score.drop_rate for score in scores)
    return Score(mean, mean - half, mean + half, drops, sum(score.episodes for score in scores))


def table(results: Sequence[Result]) -> str:
    """Markdown: every policy, and after those of a curriculum all of them together."""
    head = ["curriculum", "seed", "steps", "seconds"]
    for name in CONDITIONS:
        words = name.replace("_", "-")
        head += [f"goals per episode, {words}", f"dropped, {words}"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for curriculum in dict.fromkeys(result.curriculum for result in results):
        own = [result for result in results if result.curriculum == curriculum]
        for one in own:
            cells = [curriculum, str(one.seed), f"{one.steps / 1e6:.2f} M", f"{one.seconds:.0f}"]
            lines.append(_line(cells, [one.scores[name] for name in CONDITIONS], ""))
        if len(own) > 1:
            means = (
                f"{fmean(x.steps for x in own) / 1e6:.2f} M",
                f"{fmean(x.seconds for x in own):.0f}",
            )
            together = [pooled([x.scores[name] for x in own]) for name in CONDITIONS]
            lines.append(_line([f"**{curriculum}**", "all", *means], together, "**"))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str], scores: Sequence[Score], mark: str) -> str:
    figures = []
    for score in scores:
        figures.append(f"{mark}{score.mean:.2f}{mark} ({score.low:.2f} to {score.high:.2f})")
        figures.append(f"{100 * score.drop_rate:.1f} %")
    return "| " + " | ".join((*cells, *figures)) + " |"


def plot(results: Sequence[Result]) -> str:
    """SVG: a bar for each curriculum and condition, with its interval, and a dot for each seed."""
    width, height, left, top, bottom = 560, 300, 48, 40, 250
    bars = [
        (name, curriculum, [r.scores[name] for r in results if r.curriculum == curriculum])
        for name in CONDITIONS
        for curriculum in dict.fromkeys(result.curriculum for result in results)
    ]
    highest = max(max(pooled(s).high, *(x.mean for x in s)) for _, _, s in bars)
    step = _tick(highest)
    most = step * math.ceil(highest / step) or 1.0

    def y(goals: float) -> float:
        return round(bottom - (bottom - top) * goals / most, 2)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="20" font-size="13">goals per episode, 95 % intervals; '
        "a dot for each seed</text>",
    ]
    for i in range(round(most / step) + 1):
        goals = i * step
        parts.append(
            f'<line x1="{left}" x2="{width - 10}" y1="{y(goals)}" y2="{y(goals)}" stroke="#ddd"/>'
            f'<text x="{left - 6}" y="{y(goals) + 4}" text-anchor="end">{goals:g}</text>'
        )
    each = len(bars) // len(CONDITIONS)
    group = (width - left - 10) / len(CONDITIONS)
    bar = min(56.0, 0.8 * group / each)
    for i, (name, curriculum, scores) in enumerate(bars):
        condition, place = divmod(i, each)
        middle = left + group * (condition + 0.5)
        x = middle + (place - each / 2) * bar
        parts.append(_bar(x, bar, curriculum, scores, y, bottom))
        if place == 0:
            label = name.replace("_", "-")
            parts.append(f'<text x="{middle:.1f}" y="288" text-anchor="middle">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(
    x: float, width: float, curriculum: str, scores: Sequence[Score], y: Any, bottom: int
) -> str:
    score, centre = pooled(scores), x + width / 2
    dots = "".join(
        f'<circle cx="{centre + 8:.1f}" cy="{y(one.mean)}" r="3" fill="#333"/>' for one in scores
    )
    return (
        f'<rect x="{x + 3:.1f}" y="{y(score.mean)}" width="{width - 6:.1f}" '
        f'height="{bottom - y(score.mean):.2f}" fill="{COLOURS.get(curriculum, "#888")}"/>'
        f'<line x1="{centre:.1f}" x2="{centre:.1f}" y1="{y(score.low)}" y2="{y(score.high)}" '
        f'stroke="#000" stroke-width="1.5"/>{dots}'
        f'<text x="{centre:.1f}" y="{bottom + 16}" text-anchor="middle">{curriculum}</text>'
    )


def _tick(highest: float) -> float:
    """A round step that makes about five ticks."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest / 5))
    return next(power * k for k in (1, 2, 5, 10) if highest / (power * k) <= 6)


def write(results: Sequence[Result], docs: Path) -> None:
    """The table into experiment.md, between its marks, and experiment.svg beside it."""
    docs.mkdir(parents=True, exist_ok=True)
    page = docs / "experiment.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else f"{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(
            f"{page}: expected the lines {BEGIN} and {END}, between which the table goes"
        )
    page.write_text(f"{before}{BEGIN}\n{table(results)}{END}{after}", encoding="utf-8")
    (docs / "experiment.svg").write_text(plot(results), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

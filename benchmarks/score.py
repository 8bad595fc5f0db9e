"""Time to a score: seconds from starting `widen train cube_rotate` until it turns a cube.

    python benchmarks/score.py                      one seed, 120 s
    python benchmarks/score.py --seeds 0 1 2 3 4    a row for each
    python benchmarks/score.py --config quickstart  with its curriculum

The training runs as users start it, but saves every few iterations, which is all that disturbs it.
At the end of its time it is killed; only then are its checkpoints judged, each by the goals of the
deterministic policy in whole episodes of the nominal world. A checkpoint's time is when its file
was written less when the process was started, so imports and saving count and judging does not.
The training curve would be late by an episode's length, and shows a policy that also explores.

The score at a mark is that of the newest checkpoint then. The time to a score is found by halving
between the two marks around it, down to neighbouring checkpoints: of two in a row the first is
below the score and the second at it or above.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from report import Arguments, Line, Report, Table, last_line, parser_of, run, widen

MARKS = (30.0, 60.0, 90.0, 120.0)  # [s]
AIMS = {10.0: 60.0, 25.0: 120.0}
"""goals per episode, and the seconds after which they are wanted"""
EVERY = 5  # iterations between two checkpoints


class Saved(NamedTuple):
    """A checkpoint."""

    seconds: float
    """from starting the process until it was written"""
    path: Path


@dataclass(frozen=True)
class Trial:
    """One seed."""

    seed: int
    goals: dict[float, float | None]
    """by mark [s]; None where nothing was saved yet"""
    reached: dict[float, float | None]
    """seconds by goals; None: not in this time"""
    steps: int
    """control steps of the last checkpoint"""


def train(run_dir: Path, seconds: float, config: str, overrides: Sequence[str]) -> list[Saved]:
    """Train for so long from the start of the process; the checkpoints, oldest first.

    A training that ends by itself may do so.

    Raises:
        ValueError: it fails.
    """
    often = (f"checkpoint.every={EVERY}", "checkpoint.keep=1000000")
    command = [*widen(), "train", config, *often, *overrides, "--run-dir", str(run_dir)]
    log = run_dir.with_name("log")
    with log.open("w", encoding="utf-8") as output:
        began = time.time()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = 0
        finally:
            process.kill()
            process.wait()
    if code:
        said = last_line(log.read_text(encoding="utf-8"), f"exit code {code}")
        raise ValueError(f"widen train {config}: {said}")
    return saved_since(began, run_dir, seconds)


def saved_since(began: float, run_dir: Path, seconds: float) -> list[Saved]:
    """The checkpoints written within so many seconds of `began` (as time.time has it)."""
    found = sorted((run_dir / "checkpoints").glob("*.pt"), key=lambda path: int(path.stem))
    saved = [Saved(path.stat().st_mtime - began, path) for path in found]
    return [one for one in saved if one.seconds <= seconds]


def newest(saved: Sequence[Saved], seconds: float) -> int | None:
    """Index of the last checkpoint written by then."""
    early = [i for i, one in enumerate(saved) if one.seconds <= seconds]
    return early[-1] if early else None


def first_reaching(
    goals_of: Callable[[int], float], marks: Sequence[int], aim: float
) -> int | None:
    """The checkpoint at which `aim` is crossed.

    Args:
        goals_of: the score of a checkpoint by its index.
        marks: indices, ascending, between which a crossing is searched.
        aim: goals per episode.

    Returns:
        The index of a checkpoint with the score, whose predecessor is below it; None where no
        mark has it.
    """
    low = -1
    for high in marks:
        if goals_of(high) >= aim:
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if goals_of(middle) >= aim else (middle, high)
            return high
        low = high
    return None


def judge(run_dir: Path, path: Path, episodes: int) -> dict[str, Any]:
    """Goals of a checkpoint's deterministic policy in the nominal world; see `evaluate`."""
    import torch

    from widen.train.evaluate import evaluate, policy_trial, ranges_config
    from widen.train.run_folder import RunFolder
    from widen.train.trained import Trained

    torch.set_num_threads(1)
    trained = Trained.restore(RunFolder.open(run_dir), path)
    config = trained.config
    trial = policy_trial(config, trained.policy, episodes, ranges_config(()), config.sim)
    return evaluate(*trial, episodes)


def trial(seed: int, args: Arguments) -> Trial:
    """Train one seed and judge it."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        overrides = [f"seed={seed}", *_tiny(args)]
        saved = train(run_dir, args.seconds, args.config, overrides)
        if not saved:
            raise ValueError(f"--seconds {args.seconds:g}: no checkpoint was saved in that time")

        @cache
        def goals_of(i: int) -> float:
            return judge(run_dir, saved[i].path, args.episodes)["goals_mean"]

        at = {mark: newest(saved, mark) for mark in marks_of(args.seconds)}
        goals = {mark: None if i is None else goals_of(i) for mark, i in at.items()}
        known = sorted({i for i in at.values() if i is not None})
        reached: dict[float, float | None] = {}
        for aim in AIMS:
            i = first_reaching(goals_of, known, aim)
            reached[aim] = None if i is None else round(saved[i].seconds, 1)
        return Trial(seed, goals, reached, int(saved[-1].path.stem))


def _tiny(args: Arguments) -> list[str]:
    # one episode's length of the evaluation is shortened, too
    tiny = ["env.num_envs=8", "ppo.steps=4", "ppo.threads=1", "env.episode_seconds=1"]
    return tiny if args.smoke else []


def marks_of(seconds: float) -> list[float]:
    """The marks within that time, and its end."""
    return sorted({*(mark for mark in MARKS if mark < seconds), seconds})


def measure(args: Arguments) -> Report:
    if not 0 < args.seconds <= 3600 or args.episodes < 1:
        raise ValueError("expected --seconds above 0 and at most 3600, --episodes 1 or more")
    trials = [trial(seed, args) for seed in args.seeds]
    marks = marks_of(args.seconds)
    rows = [
        (
            str(one.seed),
            *(_goals(one.goals[mark]) for mark in marks),
            *(_seconds(one.reached[aim], args.seconds) for aim in AIMS),
            f"{one.steps / 1e6:.1f} M",
        )
        for one in trials
    ]
    headings = (
        "seed",
        *(f"goals at {mark:g} s" for mark in marks),
        *(f"s to {aim:g} goals" for aim in AIMS),
        "steps",
    )
    figures = {
        "trials": [one.__dict__ for one in trials],
        "config": args.config,
        "seconds": args.seconds,
        "episodes": args.episodes,
    }
    title = f"Time to a score, widen train {args.config}, {args.episodes} episodes of 20 s judged"
    return Report(
        figures, Table(title, headings, rows), _summary(trials, args.seconds, args.config)
    )


def _summary(trials: Sequence[Trial], seconds: float, config: str = "cube_rotate") -> list[Line]:
    lines, seeds = [], f"{len(trials)} seed{'s' if len(trials) > 1 else ''}"
    for aim, mark in AIMS.items():
        scores = [one.goals[mark] for one in trials if one.goals.get(mark) is not None]
        if scores:
            what = f"{config}, goals per episode after {mark:g} s ({seeds}, mean)"
            lines.append(Line(what, f"{mean(scores):.1f}", f"at least {aim:g}"))
        times = sorted(one.reached[aim] or float("inf") for one in trials)
        what = f"{config}, seconds to {aim:g} goals ({seeds}, median)"
        middle = median(times)
        lines.append(Line(what, _seconds(None if middle == float("inf") else middle, seconds)))
    return lines


def _goals(goals: float | None) -> str:
    return "" if goals is None else f"{goals:.1f}"


def _seconds(seconds: float | None, limit: float) -> str:
    return f"more than {limit:g}" if seconds is None else f"{seconds:.0f}"


def options() -> argparse.ArgumentParser:
    parser = parser_of("Time to a score.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="default 0")
    parser.add_argument(
        "--config", default="cube_rotate", help="default cube_rotate: no curriculum"
    )
    parser.add_argument("--seconds", type=float, default=120.0, metavar="S", help="default 120")
    parser.add_argument("--episodes", type=int, default=128, metavar="N", help="default 128")
    return parser


if __name__ == "__main__":
    sys.exit(run("score", options(), measure))

"""Environment steps/s and memory over the number of environments, and steps/s over threads.

    python benchmarks/scaling.py          64, 256, 1024 and 4096 environments
    python benchmarks/scaling.py --full   every power of two between

cube_rotate with all parameters. Every row is a process of its own, because memory that was used
once is not given back; memory per environment is what the process's peak grows by from the
smallest number. One more pair of processes also trains for an iteration.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch
from report import Arguments, Line, Report, Table, parser_of, run, thousands

from widen.envs.sim_cpu import processors
from widen.train.bench_cost import PARAMETERS, bench_env, random_actions
from widen.train.bench_memory import in_fresh_process, memory_mb_per_env, own_peak_mb


@dataclass(frozen=True)
class Size:
    """What is measured."""

    numbers: tuple[int, ...] = (64, 256, 1024, 4096)
    """of environments, ascending"""
    threaded: int = 1024
    """environments whose steps/s over threads are measured; one of `numbers`"""
    block: int = 8
    """control steps in a block, of which one warms up"""
    blocks: int = 3
    """timed; the median counts"""
    most_seconds: float = 8.0
    """no block begins after so many seconds of timed ones"""


FULL = Size(numbers=(64, 128, 256, 512, 1024, 2048, 4096), blocks=5, most_seconds=30.0)
SMOKE = Size(numbers=(4, 8), threaded=8, block=2, blocks=1)


class Row(NamedTuple):
    """One process."""

    num_envs: int
    threads: int
    steps_per_s: float
    peak_mb: float


def row(num_envs: int, threads: int, size: Size) -> Row:
    """Measure in this process, which must be a fresh one for the memory to mean anything."""
    torch.set_num_threads(1)
    env = bench_env(num_envs, PARAMETERS, threads)
    env.reset()
    generator, rates, timed = torch.Generator().manual_seed(0), [], 0.0
    for block in range(-1, size.blocks):
        actions = random_actions(env, size.block, generator)
        began = time.perf_counter()
        for action in actions:
            env.step(action)
        seconds = time.perf_counter() - began
        if block < 0:
            continue
        rates.append(num_envs * size.block / seconds)
        timed += seconds
        if timed > size.most_seconds:
            break
    return Row(num_envs, threads, median(rates), own_peak_mb())


def thread_counts(most: int) -> list[int]:
    """1, 2, 4 and so on, and the most."""
    return sorted({most, *(1 << i for i in range(most.bit_length()) if 1 << i <= most)})


def measure(args: Arguments) -> Report:
    size = SMOKE if args.smoke else FULL if args.full else Size()
    most = processors()
    cases = [(number, most) for number in size.numbers]
    cases += [(size.threaded, threads) for threads in thread_counts(most)[:-1]]
    rows = [in_fresh_process(row, number, threads, size) for number, threads in cases]
    first = rows[0]
    grown = {
        one.num_envs: (one.peak_mb - first.peak_mb) / (one.num_envs - first.num_envs)
        for one in rows
        if one.threads == most and one.num_envs > first.num_envs
    }
    trains = memory_mb_per_env(first.num_envs, size.threaded, True)
    cells = []
    for one in rows:
        memory = f"{grown[one.num_envs]:.3f}" if one.threads == most and one is not first else ""
        cells.append((str(one.num_envs), str(one.threads), thousands(one.steps_per_s), memory))
    cells.append((f"{size.threaded}, with PPO", str(most), "", f"{trains:.3f}"))
    figures = {
        "rows": [one._asdict() for one in rows],
        "memory_mb_per_env": grown,
        "memory_mb_per_env_training": trains,
    }
    title = f"cube_rotate with {len(PARAMETERS)} parameters"
    headings = ("environments", "threads", "steps/s", f"MB for each beyond {first.num_envs}")
    summary = [
        Line(
            f"memory per environment at {size.threaded}, and with PPO",
            f"{grown[size.threaded]:.2f} and {trains:.2f} MB",
            "at most 2 MB",
        ),
        Line(
            f"steps/s with all parameters, {size.numbers[0]} to {size.numbers[-1]} environments",
            " / ".join(thousands(one.steps_per_s) for one in rows[: len(size.numbers)]),
        ),
    ]
    return Report(figures, Table(title, headings, cells), summary)


def options() -> argparse.ArgumentParser:
    parser = parser_of("Steps per second and memory over environments and threads.")
    parser.add_argument("--full", action="store_true", help="every power of two, longer blocks")
    return parser


if __name__ == "__main__":
    sys.exit(run("scaling", options(), measure))

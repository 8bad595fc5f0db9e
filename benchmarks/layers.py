"""Layer by layer: bare mujoco.batch, then with the task, the randomization, the policy and PPO.

python benchmarks/layers.py
"""

from __future__ import annotations

import sys

from report import Arguments, Line, Report, Table, parser_of, run, thousands

from widen.train.bench import Size, layers

SMOKE = Size(overrides=("env.num_envs=8", "ppo.steps=4", "ppo.threads=1"), blocks=1, rounds=1)


def measure(args: Arguments) -> Report:
    size = SMOKE if args.smoke else Size()
    found = layers(size)
    rows = [
        (
            row["layer"],
            thousands(row["steps_per_s"]),
            f"{row['ms_per_batch_step']:.2f}",
            f"{row['over_bare']:.2f}",
        )
        for row in found["layers"]
    ]
    config = size.config()
    number = sum(row["parameters"] for row in found["groups"])
    title = f"Layers, {config.env.num_envs} environments of cube_rotate, {number} parameters"
    headings = ("layer", "steps/s", "ms per step of the batch", "of bare")
    aims = {"+ randomization": "at least 0.85 of bare"}
    summary = [
        Line(name, f"{rate} steps/s, {share} of bare", aims.get(name, ""))
        for name, rate, _, share in rows
    ]
    return Report(found, Table(title, headings, rows), summary)


if __name__ == "__main__":
    sys.exit(run("layers", parser_of("Layer by layer, from bare MuJoCo to PPO."), measure))

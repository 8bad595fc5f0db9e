"""Training against stable-baselines3's PPO on DummyVecEnv and on SubprocVecEnv.

    python benchmarks/sb3.py

The same task, networks and update on both sides; one line more has stable-baselines3 as it comes,
with its own networks and settings. benchmarks/README.md says how the comparison is kept fair.
"""

from __future__ import annotations

import sys

from report import Arguments, Line, Report, Table, parser_of, run, thousands

from widen.train.bench import Size, training

SMOKE = Size(
    overrides=("env.num_envs=8", "ppo.steps=4", "ppo.threads=1"), rounds=1, default_samples=64
)


def measure(args: Arguments) -> Report:
    found = training(SMOKE if args.smoke else Size())
    ours = found["train_steps_per_s"]
    theirs = {f"stable-baselines3, {name}": rate for name, rate in found["sb3"].items()}
    own = "stable-baselines3 as it comes, its own networks and settings"
    rates = {"widen": ours, **theirs, own: found["sb3_defaults_steps_per_s"]}
    rows = [
        (name, thousands(rate), "" if name == "widen" else f"{ours / rate:.1f}")
        for name, rate in rates.items()
    ]
    title = (
        "Training cube_rotate, rollouts and updates; the same networks and update but in the last"
    )
    summary = [
        Line("training, cube_rotate", f"{thousands(ours)} steps/s"),
        Line(
            "against stable-baselines3, the better of its vectors",
            f"{found['train_over_sb3']:.1f} times",
            "at least 8 times",
        ),
        Line(f"against {own}", f"{found['train_over_sb3_defaults']:.1f} times"),
    ]
    headings = ("", "steps/s", "widen is faster by")
    return Report(found, Table(title, headings, rows), summary)


if __name__ == "__main__":
    sys.exit(run("sb3", parser_of("Training against stable-baselines3."), measure))

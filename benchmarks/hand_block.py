"""Against gymnasium-robotics' HandManipulateBlock in a SubprocVecEnv.

    python benchmarks/hand_block.py [--env FOLDER]

gymnasium-robotics 1.4 does not run on the MuJoCo of widen, so it gets a virtual environment of its
own with MuJoCo 3.11. Where FOLDER (default build/gymnasium-robotics) has none, this installs one
with pip, which takes minutes and more than 1 GB.

It is another hand with other physics: 20 substeps of 2 ms in a control step, against 3 of 16.7 ms.
Seconds of the hand's time per second say what a user waits for, `of bare` what the toolkit costs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

from report import ROOT, Arguments, Line, Report, Table, last_line, parser_of, run, thousands

DEFAULT = ROOT / "build" / "gymnasium-robotics"
WORKER = Path(__file__).with_name("hand_block_worker.py")
REQUIRED = ("gymnasium-robotics==1.4.2", "mujoco==3.11.0", "stable-baselines3", "torch")
PINNED = ("torch", "stable-baselines3", "gymnasium", "numpy")
"""taken from constraints.txt, so that both sides have the same ones"""


def python_of(folder: Path) -> Path:
    """Its interpreter, whether there is one or not."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def is_ready(folder: Path) -> bool:
    """Whether a set-up of this very list of packages was completed there."""
    ready = folder / ".ready"
    return python_of(folder).exists() and ready.exists() and ready.read_text() == _asked()


def pins(constraints: str) -> list[str]:
    """The lines of constraints.txt that hold for the other environment, too."""
    lines = (line.strip() for line in constraints.splitlines())
    return [line for line in lines if line.partition("==")[0] in PINNED]


def _asked() -> str:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return "\n".join([*REQUIRED, *pins(constraints)]) + "\n"


def set_up(folder: Path) -> None:
    """Make the environment.

    Raises:
        ValueError: pip or venv fails, or the folder holds something else.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise ValueError(f"--env {folder}: expected a new folder or a virtual environment")
    print(f"installing {', '.join(REQUIRED)} into {folder}: minutes", file=sys.stderr, flush=True)
    _call([sys.executable, "-m", "venv", str(folder)])
    asked = folder / "asked.txt"
    asked.write_text("\n".join(pins((ROOT / "constraints.txt").read_text())) + "\n")
    pip = [str(python_of(folder)), "-m", "pip", "install", "-q"]
    _call([*pip, "-c", str(asked), *REQUIRED])
    (folder / ".ready").write_text(_asked())


def _call(command: list[str]) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise ValueError(f"{' '.join(command[:4])}: {last_line(ran.stderr, 'failed')}")


class Worker:
    """The process in the other environment."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    def ask(self, what: str) -> dict[str, Any]:
        """One measurement.

        Raises:
            ValueError: the worker has died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # its last words follow
            print(what, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("{"):  # the library, too, may have something to say
                return json.loads(line)
        said = last_line(self._log.read_text(encoding="utf-8", errors="replace"), "it ended")
        raise ValueError(f"{WORKER.name}: {said}")


@contextmanager
def worker(python: Path, settings: dict[str, Any]) -> Iterator[Worker]:
    """Started, and ended afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w", encoding="utf-8") as errors:
            process = subprocess.Popen(
                [str(python), str(WORKER), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            try:
                yield Worker(process, log)
                assert process.stdin is not None
                process.stdin.close()  # it ends by itself, with its own subprocesses
                with suppress(subprocess.TimeoutExpired):  # what it measured is here already
                    process.wait(30)
            finally:
                process.kill()
                process.wait()


def measure(args: Arguments) -> Report:
    if not is_ready(args.env):
        set_up(args.env)
    import torch

    from widen.envs.sim_cpu import processors
    from widen.train.accelerate import torch_threads
    from widen.train.bench import Size
    from widen.train.bench_cost import bench_env, random_actions
    from widen.train.bench_training import learn, make_ppo

    tiny = ("env.num_envs=8", "ppo.steps=4", "ppo.threads=1")
    config = Size(overrides=tiny if args.smoke else ()).config()
    samples, rounds = config.env.num_envs * config.ppo.steps, 1 if args.smoke else 3
    processes = max(2, processors())
    settings = {
        "processes": processes,
        "samples": samples,
        "steps": 10 if args.smoke else 200,
        "policy": {"hidden": list(config.policy.hidden), "activation": config.policy.activation},
        "ppo": {
            "learning_rate": config.ppo.learning_rate,
            "batch_size": samples // config.ppo.minibatches,
            "n_epochs": config.ppo.epochs,
            "gamma": config.ppo.gamma,
            "gae_lambda": config.ppo.gae_lambda,
            "max_grad_norm": config.ppo.max_grad_norm,
        },
    }
    env, generator = bench_env(config.env.num_envs, ()), torch.Generator().manual_seed(0)
    env.reset()
    ours: list[float] = []
    theirs: list[dict[str, Any]] = []
    vectors: list[float] = []
    with worker(python_of(args.env), settings) as other, torch_threads(1):
        for _ in range(rounds):
            ours.append(_rate(env, random_actions(env, config.ppo.steps, generator)))
            theirs.append(other.ask("alone"))
            vectors.append(other.ask("vector")["steps_per_s"])
        ppo = make_ppo(env, config)
        ours_trained = median(learn(ppo, 2 * samples) for _ in range(rounds))
        trained = other.ask("train")["steps_per_s"]
    single = {key: median(one[key] for one in theirs) for key in ("steps_per_s", "over_bare")}
    return reported(
        {
            "env_steps_per_s": median(ours),
            "train_steps_per_s": ours_trained,
            "control_hz": env.config.control_hz,
            "substeps": env.substeps,
            "theirs": {**theirs[0], **single},
            "their_vector_steps_per_s": median(vectors),
            "their_train_steps_per_s": trained,
            "processes": processes,
        }
    )


def reported(found: dict[str, Any]) -> Report:
    """The table and the summary of the figures."""
    theirs, name, vector = found["theirs"], "HandManipulateBlock", found["processes"]
    our_rates = found["control_hz"], found["substeps"]
    their_rates = theirs["control_hz"], theirs["substeps"]
    share = f"{theirs['over_bare']:.2f}"
    table = [
        ("widen cube_rotate, environment", found["env_steps_per_s"], our_rates, ""),
        ("widen cube_rotate, training", found["train_steps_per_s"], our_rates, ""),
        (f"{name}, one", theirs["steps_per_s"], their_rates, share),
        (f"{name}, SubprocVecEnv({vector})", found["their_vector_steps_per_s"], their_rates, ""),
        (f"{name}, the same, training", found["their_train_steps_per_s"], their_rates, ""),
    ]
    rows = [
        (what, thousands(rate), f"{rate / hz:.1f}", thousands(rate * substeps), part)
        for what, rate, (hz, substeps), part in table
    ]
    versions = ", ".join(f"{what} {version}" for what, version in theirs["versions"].items())
    title = f"Against gymnasium-robotics ({versions})"
    headings = ("", "steps/s", "hand's time / s", "mj_steps/s", "of bare mj_step")
    times = (found["train_steps_per_s"] / found["control_hz"]) / (
        found["their_train_steps_per_s"] / theirs["control_hz"]
    )
    summary = [
        Line(
            f"training, gymnasium-robotics {name}, SubprocVecEnv({vector})",
            f"{thousands(found['their_train_steps_per_s'])} steps/s",
        ),
        Line(
            "widen's training against it, in the hand's time (another hand, other physics)",
            f"{times:.0f} times",
        ),
    ]
    return Report(found, Table(title, headings, rows), summary)


def _rate(env: Any, actions: Any) -> float:
    """Control steps per second of the batched environment."""
    import time

    began = time.perf_counter()
    for action in actions:
        env.step(action)
    return len(actions) * env.num_envs / (time.perf_counter() - began)


def options() -> argparse.ArgumentParser:
    parser = parser_of("Against gymnasium-robotics' HandManipulateBlock.")
    parser.add_argument(
        "--env",
        type=Path,
        default=DEFAULT,
        metavar="FOLDER",
        help="its virtual environment, made where there is none; default build/gymnasium-robotics",
    )
    return parser


if __name__ == "__main__":
    sys.exit(run("hand_block", options(), measure))

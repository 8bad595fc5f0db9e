"""The beginning of a run, or of its continuation."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from .checkpoint import (
    check_same_backend,
    check_same_config,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    reading,
)
from .config import RunConfig, dump_config, parse_config
from .init_from import begin_with
from .ranks import Ranks
from .run_folder import RunFolder, default_path, read_log
from .runner import Runner


def start(
    config: RunConfig, run_dir: Path | None, resume: bool, ranks: Ranks | None = None
) -> Runner:
    """A runner for a new run, or for the continuation of one.

    A run that has no checkpoint yet continues from its beginning.

    When torchrun starts its processes again, the run that they had begun goes on from its last
    checkpoint, or from its beginning while there is none.

    Args:
        config: what the user asked for.
        run_dir: the folder; None for one named after task and time.
        resume: continue the run in run_dir.
        ranks: the processes that train together; None for this one alone.

    Raises:
        ValueError: the folder exists, or holds a run of another config.
        OSError: it cannot be written.
    """
    ranks = ranks or Ranks()
    runner = ranks.agree(lambda: _prepare(config, run_dir, resume, ranks))
    path = ranks.broadcast(run_dir or default_path(config.task))
    ranks.agree(lambda: _settle_in(runner, path))
    return runner


def _prepare(config: RunConfig, run_dir: Path | None, resume: bool, ranks: Ranks) -> Runner:
    """The runner in memory: mistakes in the config surface before a folder is made."""
    if run_dir is None:
        if resume:
            raise ValueError("--resume: expected --run-dir with the folder of the run to continue")
        if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
            raise ValueError(
                "torchrun --max-restarts: expected --run-dir too, where a restart finds the run"
            )
    elif not resume and _restarted(run := RunFolder(run_dir)):
        resume = bool(list_checkpoints(run))
    if not resume or run_dir is None:
        return _begin(config, None, ranks)
    run = RunFolder.open(run_dir)
    if not list_checkpoints(run) and _before_first_checkpoint(run):
        # with its own seed it begins as it did
        check_same_config(run.read_config(), dump_config(config), run.config)
        return _begin(config, run, ranks)
    path = latest_checkpoint(run)
    state = load_checkpoint(path)
    check_same_config(state["config"], dump_config(config), path)
    with reading(path):
        backend, iteration, parts = state["backend"], int(state["iteration"]), len(state["ranks"])
    runner = Runner(config, run, ranks, begun=0 if ranks.rank < parts else iteration)
    check_same_backend(backend, runner.backend, path)
    runner.restore_from(state, path)
    if ranks.first and parts != ranks.world:
        print(_changed(parts, ranks.world), file=sys.stderr)
    return runner


def _begin(config: RunConfig, run: RunFolder | None, ranks: Ranks) -> Runner:
    runner = Runner(config, run, ranks)
    if config.init_from is not None:
        runner.began_with = begin_with(
            runner.policy, config.init_from, explore_anew=config.policy.explore_anew
        )
    return runner


def _before_first_checkpoint(run: RunFolder) -> bool:
    """Whether a run without a checkpoint never had one; else somebody removed them."""
    config = parse_config(run.read_config(), str(run.config))
    intervals = read_log(run.adr_log).intervals
    done = intervals[-1]["iteration"] if intervals else 0
    # an iteration is logged before it is saved
    return done <= min(config.checkpoint.every, config.ppo.iterations) and not run.policy.is_file()


def _settle_in(runner: Runner, path: Path) -> None:
    """Give the runner its folder, which rank 0 makes, or cuts back to the checkpoint."""
    if not runner.ranks.first:
        runner.run = RunFolder(path)
    elif runner.run is not None or _restarted(RunFolder(path)):
        runner.run = RunFolder.open(path)
        runner.run.rewind(runner.steps)
        # what may change on a resume, as the iterations, is what the next one goes on from
        runner.run.write_config(dump_config(runner.config))
    else:
        runner.run = RunFolder.create(
            path,
            dump_config(runner.config),
            backend=runner.backend,
            processes=runner.ranks.world,
            torchrun=_torchrun(),
            init_from=runner.began_with,
        )


def _torchrun() -> str | None:
    """Names the torchrun that started this process: its own name for the job, or which it is."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    name = os.environ["TORCHELASTIC_RUN_ID"]
    return f"{socket.gethostname()}:{os.getppid()}" if name in ("", "none") else name


def _restarted(run: RunFolder) -> bool:
    """Whether torchrun has started its processes again and they had begun this run.

    After a mistake torchrun starts them again too. What was refused the first time, as an
    existing folder, must be refused again.
    """
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == 0 or not run.config.is_file():
        return False
    return run.read_environment().get("torchrun") == _torchrun()


def _changed(before: int, now: int) -> str:
    """What another number of processes means for the episodes under way."""
    if now > before:
        what = f"fresh episodes begin in {_processes(now - before)}"
    else:
        what = f"the episodes of {_processes(before - now)} are dropped"
    return f"checkpoint of {_processes(before)}, resumed with {now}: {what}"


def _processes(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"

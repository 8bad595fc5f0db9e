"""`widen train`, alone or as one of the processes that torchrun starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from . import cli_show as show
from .cli_errors import Told, one_line

if TYPE_CHECKING:
    from .ranks import Ranks
    from .runner import Runner


def train(
    config: str, overrides: Sequence[str], run_dir: Path | None, resume: bool, as_json: bool
) -> None:
    """Train, evaluate and export; rank 0 alone speaks.

    Raises:
        Told: on a rank that ends because of what another one says.
    """
    from .ranks import RankLost, join

    ranks, runner = join(), None
    try:
        runner = _start(ranks, config, overrides, run_dir, resume)
        _train(runner, as_json)
    except RankLost as lost:
        _end_without(ranks, runner, str(lost))
    except (typer.Exit, Told):
        raise
    except Exception as error:
        # this rank's own trouble; the others will only miss it
        if ranks.claim():
            raise
        raise Told(2 if one_line(error) else 1) from None


def _start(
    ranks: Ranks, config: str, overrides: Sequence[str], run_dir: Path | None, resume: bool
) -> Runner:
    from .config import load_config
    from .start import start

    return start(ranks.agree(lambda: load_config(config, overrides)), run_dir, resume, ranks)


def _train(runner: Runner, as_json: bool) -> None:
    from widen.deploy.export import export_runner

    assert runner.run is not None
    first, path = runner.ranks.first, runner.run.path
    again = resume_command(path, runner.ranks)
    try:
        result = runner.train(export_runner)
    except KeyboardInterrupt:
        if runner.ranks.claim():
            show.interrupted(again, saved=_last_checkpoint(runner) is not None)
        raise typer.Exit(130) from None
    if first:
        show.emit(result, as_json, show.train)
    if "stopped" in result:
        if first:
            show.interrupted(again, saved=True)
        raise typer.Exit(128 + result["stopped"])


def resume_command(run: Path, ranks: Ranks) -> tuple[str, ...]:
    """How a run goes on with as many processes."""
    arguments = (str(run / "config.yaml"), "--run-dir", str(run), "--resume")
    if ranks.world == 1:
        return ("widen", "train", *arguments)
    nodes = ranks.world // ranks.local_world
    options = (f"--nnodes={nodes}",) if nodes > 1 else ()
    each = f"--nproc-per-node={ranks.local_world}"
    return ("torchrun", *options, each, "-m", "widen.train", *arguments)


def _end_without(ranks: Ranks, runner: Runner | None, reason: str) -> None:
    """Say once that a process is gone, and end this one."""
    if ranks.claim():
        saved = None if runner is None else _last_checkpoint(runner)
        again = () if saved is None else resume_command(saved.parent.parent, ranks)
        show.lost(reason, saved, again, restarts=_restarts_left() > 0)
    sys.stdout.flush()
    # Not the usual end: on a GPU it would wait for NCCL's kernels, and they for the dead.
    os._exit(1)


def _last_checkpoint(runner: Runner) -> Path | None:
    from .checkpoint import list_checkpoints

    return None if runner.run is None else max(list_checkpoints(runner.run), default=None)


def _restarts_left() -> int:
    """How often torchrun may start its processes again."""
    most, done = "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_RESTART_COUNT"
    return int(os.environ.get(most, "0")) - int(os.environ.get(done, "0"))

"""`widen train`, alone or as one of the processes that torchrun starts."""

from __future__ import annotations

import os
import shlex
import signal
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
    from .signals import stop_at_once

    with stop_at_once():  # before the seconds that torch takes to be imported
        from .ranks import RankLost, join

        ranks, runner = join(), None
        try:
            runner = _start(ranks, config, overrides, run_dir, resume)
            _train(runner, as_json)
        except RankLost as lost:
            _end_without(ranks, runner, str(lost))
        except KeyboardInterrupt as stop:
            if ranks.claim():
                show.interrupted(() if runner is None else _again(runner))
            raise typer.Exit(128 + getattr(stop, "number", signal.SIGINT)) from None
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

    first = runner.ranks.first
    try:
        result = runner.train(export_runner)
    except OSError as error:
        raise ValueError(_unwritten(error, runner)) from error
    if first:
        show.emit(result, as_json, show.train)
    if "stopped" in result:
        if first:
            show.interrupted(_again(runner))
        raise typer.Exit(128 + result["stopped"])


def _unwritten(error: OSError, runner: Runner) -> str:
    """What the user is told when the run folder cannot be written: what is kept, how it goes on."""
    saved, again = _last_checkpoint(runner), shlex.join(_again(runner))
    kept = "there is no checkpoint yet" if saved is None else f"the last checkpoint is {saved}"
    return f"{one_line(error)}; {kept}; when that is mended go on with: {again}"


def _again(runner: Runner) -> tuple[str, ...]:
    assert runner.run is not None
    return resume_command(runner.run.path, runner.ranks)


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

"""Checkpoints: tensors and plain values in one file, written whole or not at all."""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .files import write_whole
from .run_folder import RunFolder

SCHEMA = "widen.checkpoint/3"
# What may differ between a run and its continuation: it changes neither physics nor learning
# (but for ppo.iterations where a gamma_final is to be reached by the last of them).
# Of sim.backend only what it means on a machine counts, which `check_same_backend` compares.
FREE_KEYS = {
    *("checkpoint", "evaluation", "ppo.iterations"),
    # a run that ended because they were too small goes on with larger ones
    *("sim.threads", "sim.backend", "sim.nconmax", "sim.njmax"),
}


def save_checkpoint(run: RunFolder, state: dict[str, Any], keep: int) -> Path:
    """Write checkpoints/<steps>.pt of `state` and drop the oldest.

    See `Runner.state_dict` for what it holds; `torch.load(weights_only=True)` must read it.

    The file appears under its name only when it is complete and on disk, so that a kill at any
    moment leaves the last good one.

    Raises:
        OSError: it cannot be written, as on a full disk; nothing has changed then.
    """
    path = run.checkpoints / f"{state['steps']:012d}.pt"
    content = io.BytesIO()  # torch does not tell of a full disk, but of its own confusion
    torch.save({"schema": SCHEMA, **state}, content)
    write_whole(path, content.getvalue())
    for old in list_checkpoints(run)[:-keep]:
        old.unlink()
    return path


def list_checkpoints(run: RunFolder) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = run.checkpoints.glob("*.pt") if run.checkpoints.is_dir() else ()
    return sorted(path for path in found if re.fullmatch(r"\d+\.pt", path.name))


def latest_checkpoint(run: RunFolder) -> Path:
    """The newest checkpoint.

    Raises:
        ValueError: the run has none.
    """
    found = list_checkpoints(run)
    if not found:
        raise ValueError(
            f"{run.checkpoints}: no checkpoint yet; expected one every checkpoint.every iterations"
        )
    return found[-1]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        ValueError: the file is missing, truncated, or not a checkpoint of this version.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about the file is an error below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch raises whatever its zip reader or unpickler ran into
        reason = str(error).split(".")[0] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds more than tensors and plain values, or no tensors at all"
        raise ValueError(
            f"{path}: expected a whole checkpoint, but it is damaged or not one: {reason}"
        ) from None
    schema = state.get("schema") if isinstance(state, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path}: expected a checkpoint of schema {SCHEMA}, got {schema!r}")
    return state


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around the use of a checkpoint's content.

    Raises:
        ValueError: something in it is missing or does not fit, as from another version.
    """
    try:
        yield
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{path}: expected a checkpoint of this version of widen: {reason}"
        ) from error


def check_same_config(saved: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """Refuse to continue a run under another config; `path` is the file that holds the saved one.

    Raises:
        ValueError: names the first key that differs and both values.
    """
    if not isinstance(saved, dict):
        raise ValueError(f"{path}: expected a checkpoint with its config, got {saved!r}")
    from .config import dump_config, parse_config  # which need no checkpoints

    # a config of an older widen lacks the keys that have come since: they are at their defaults
    saved = dump_config(parse_config(saved, str(path)))
    for key, before, now in _differences(saved, wanted, ""):
        if key not in FREE_KEYS and key.split(".")[0] not in FREE_KEYS:
            raise ValueError(
                f"{path}: of another config: {key} is {before!r} there and {now!r} here"
            )


def check_same_backend(saved: Any, here: str, path: Path) -> None:
    """Refuse to continue a checkpoint on another backend, whose states are of another kind.

    Raises:
        ValueError: names both.
    """
    if saved != here:
        raise ValueError(
            f"{path}: sim.backend: simulated by {saved!r} there and by {here!r} here, and their"
            f" states differ; expected a machine and settings that give {saved!r}"
        )


def _differences(a: Any, b: Any, key: str) -> list[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        found = []
        for name in dict.fromkeys((*a, *b)):
            inner = f"{key}.{name}" if key else name
            found += _differences(a.get(name), b.get(name), inner)
        return found
    return [] if a == b else [(key, a, b)]

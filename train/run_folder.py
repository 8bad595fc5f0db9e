"""A run is a folder: its paths, its formats, and the log that the monitor reads.

```
runs/cube_rotate-20250301-101500/
    config.yaml        the resolved config
    environment.json   versions, machine, seed, start time, backend, processes
    adr.jsonl          one line per interval, per moved bound and per diagnosis
    checkpoints/  tensorboard/  policy.onnx
```

Three kinds of lines stand in `adr.jsonl`, in the order of their `steps`:

- `interval`: iteration (iterations completed), total_iterations, steps, seconds (training time,
  cumulative over resumes) [s], fps (control steps per second), goals_mean, drop_rate, npd,
  return_mean, diverged (times that an environment was begun anew because the simulation lost it,
  cumulative), and parameters, a list of name, unit, nominal, low, high, limit_low, limit_high,
  score_low, score_high. The state is the one at the interval's end.
- `move`: iteration, steps, name, side ("low" or "high"), old, new, mean (score), count (episodes).
- `diagnosis`, every ten iterations and at the end: iteration, steps, and the keys of
  `widen.randomization.diagnosis.Diagnosis.report`: episodes, limiting, drops, pairs.

What is not finite (the npd of a zero-width range) or not known yet (a boundary without a
result) is null.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from .files import append_whole, write_whole

RUNS = Path("runs")
_RECORDED_PACKAGES = {  # key in environment.json: name of the distribution
    "widen": "widen",
    "mujoco": "mujoco",
    "torch": "torch",
    "sb3": "stable-baselines3",
    "gymnasium": "gymnasium",
    "numpy": "numpy",
    "onnxruntime": "onnxruntime",
}


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run; make it with `create` or `open`."""

    path: Path

    @classmethod
    def create(cls, path: Path | str, config: dict[str, Any], **about: Any) -> RunFolder:
        """Makes the folder with config.yaml and environment.json.

        `config` is the resolved config in plain values (pydantic's `model_dump(mode="json")`),
        `about` whatever else environment.json shall say.

        Raises:
            ValueError: `path` is a file, or a folder with something in it.
            OSError: it cannot be written; what had been made is gone again.
        """
        run = cls(Path(path))
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"run folder {run.path}: a file is in its place") from error
        if any(run.path.iterdir()):
            raise ValueError(
                f"run folder {run.path} exists and is not empty: expected a new folder, "
                "or --resume to go on with that run"
            )
        environment = json.dumps(_environment(config.get("seed")) | about, indent=2) + "\n"
        try:
            write_whole(run.environment, environment.encode())
            run.checkpoints.mkdir()
            # Last, because it is what makes the folder a run.
            run.write_config(config)
        except BaseException:
            # what is no run would be in the way of the next attempt
            run.config.unlink(missing_ok=True)
            run.environment.unlink(missing_ok=True)
            if run.checkpoints.is_dir():
                run.checkpoints.rmdir()
            raise
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """Raises ValueError when there is no run at `path`."""
        run = cls(Path(path))
        if not run.config.is_file():
            raise ValueError(f"{run.path} is not a run folder: expected {run.config}{_hint(path)}")
        return run

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def adr_log(self) -> Path:
        return self.path / "adr.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def policy(self) -> Path:
        return self.path / "policy.onnx"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def read_config(self) -> dict[str, Any]:
        """Raises ValueError when config.yaml is not a YAML mapping."""
        try:
            config = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{self.config}: expected YAML, got: {reason}") from error
        if not isinstance(config, dict):
            raise ValueError(f"{self.config}: expected a mapping, got {type(config).__name__}")
        return config

    def write_config(self, config: dict[str, Any]) -> None:
        """Put a resolved config, as `create` takes it, in place of the one before.

        Raises:
            OSError: it cannot be written; the one before stays.
        """
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        write_whole(self.config, text.encode())

    def read_environment(self) -> dict[str, Any]:
        """Empty when the file is missing or unreadable: nothing but the display depends on it."""
        try:
            content = json.loads(self.environment.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def append(self, *records: dict[str, Any]) -> None:
        """Adds lines to adr.jsonl, all or none, and so that a reader never sees half of one.

        Write an interval's lines before the checkpoint of the same step: `rewind` keeps them.
        Raises OSError when they cannot be written, as on a full disk.
        """
        lines = (
            json.dumps(_plain(record), allow_nan=False, separators=(",", ":")) + "\n"
            for record in records
        )
        append_whole(self.adr_log, "".join(lines).encode())

    def rewind(self, steps: int) -> None:
        """Drops the lines after `steps`, a torn last line, and checkpoints that a kill left torn.

        Call it when a run is resumed.
        """
        for torn in self.checkpoints.glob("*.tmp"):
            torn.unlink()
        if not self.adr_log.exists():
            return
        content = self.adr_log.read_bytes()
        # The torn last line has no record, so zip leaves it out.
        pairs = zip(_lines(content), _records(content, self.adr_log), strict=False)
        kept = b"".join(line for line, record in pairs if record["steps"] <= steps)
        if kept != content:
            # A new file in its place tells a reader that follows the log to start over.
            write_whole(self.adr_log, kept)


def default_path(task: str) -> Path:
    """`runs/<task>-<local time>`."""
    return RUNS / f"{task}-{datetime.now():%Y%m%d-%H%M%S}"


@dataclass
class Log:
    """The lines of adr.jsonl by kind, oldest first."""

    intervals: list[dict[str, Any]] = field(default_factory=list)
    moves: list[dict[str, Any]] = field(default_factory=list)
    diagnoses: list[dict[str, Any]] = field(default_factory=list)

    def add(self, line: dict[str, Any]) -> None:
        """One more line."""
        of_kind = {"interval": self.intervals, "move": self.moves, "diagnosis": self.diagnoses}
        of_kind[line["kind"]].append(line)


class LogReader:
    """Reads a log that is still being written; each line is parsed once."""

    def __init__(self, path: Path) -> None:
        self.log = Log()
        self._path = path
        self._offset = 0
        self._inode: int | None = None

    def poll(self) -> bool:
        """Takes up the complete new lines and says whether there were any, or a rewind.

        Raises ValueError when a complete line is not one of a log.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return False
        with file:
            status = os.fstat(file.fileno())
            replaced = self._inode not in (None, status.st_ino) or status.st_size < self._offset
            if replaced:
                self.log, self._offset = Log(), 0
            self._inode = status.st_ino
            file.seek(self._offset)
            content = file.read()
        complete = content[: content.rfind(b"\n") + 1]
        for record in _records(complete, self._path):
            self.log.add(record)
        self._offset += len(complete)
        return replaced or bool(complete)


def read_log(path: Path) -> Log:
    """Reads a whole log. A missing file is an empty log; a torn last line is left out."""
    reader = LogReader(path)
    reader.poll()
    return reader.log


def _records(content: bytes, path: Path) -> Iterator[dict[str, Any]]:
    for line in _lines(content):
        if not line.endswith(b"\n"):
            return
        try:
            record = json.loads(line)
            known = record["kind"] in ("interval", "move", "diagnosis") and record["steps"] >= 0
        except (ValueError, TypeError, KeyError):
            known = False
        if not known:
            start = line.decode(errors="replace").strip()[:60]
            raise ValueError(
                f"{path}: expected an interval, a move or a diagnosis as JSON, got {start!r}"
            )
        yield record


def _lines(content: bytes) -> list[bytes]:
    return content.splitlines(keepends=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a numpy or torch scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _environment(seed: int | None) -> dict[str, Any]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for key, distribution in _RECORDED_PACKAGES.items():
        try:
            versions[key] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            versions[key] = None
    return {
        "versions": versions,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "cpu_model": _cpu_model(),
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _hint(path: Path | str) -> str:
    configs = sorted(RUNS.glob("*/config.yaml"), key=lambda c: c.stat().st_mtime, reverse=True)
    by_name = {config.parent.name: config.parent for config in configs}
    near = difflib.get_close_matches(Path(path).name, by_name, n=3, cutoff=0.6)
    names = near or list(by_name)[:3]
    if not names:
        return ""
    return "; did you mean " + " or ".join(str(by_name[name]) for name in names) + "?"

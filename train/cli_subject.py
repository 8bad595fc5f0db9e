"""What a command shall look at: a run, a policy's file, or a policy that the package brings."""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Subject:
    """What an argument names.

    Attributes:
        name: for people: the path, or the name of a shipped policy.
        path: a run folder, or a policy's file; need not exist.
        shipped: it lies in the package, where no command writes.
    """

    name: str
    path: Path
    shipped: bool = False


def find_subject(text: str) -> Subject:
    """The run, file or shipped policy that `text` names.

    What exists comes before a shipped policy of the same name, and so does what looks like a
    path.

    Raises:
        ValueError: a bare name, and nothing is called so.
    """
    return _find(text, "run folder, .onnx file or shipped policy", _runs())


def find_policy(text: str) -> Subject:
    """The file or shipped policy that `text` names, for commands that take no run.

    Raises:
        ValueError: a bare name, and nothing is called so; or a folder.
    """
    subject = _find(text, ".onnx file or shipped policy", {})
    if subject.path.is_dir():
        policy = subject.path / "policy.onnx"
        expected = f"its {policy}" if policy.is_file() else "a policy .onnx"
        known = text in shipped_policies()
        after = ", and comes before the shipped policy of that name" if known else ""
        raise ValueError(f"{text} is a folder{after}: expected {expected}")
    return subject


def shipped_policies() -> dict[str, dict[str, Any]]:
    """The policies in the package: name -> what its JSON file says, see docs/policies.md."""
    folder = policies_folder()
    return {
        path.stem: json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.onnx"))
    }


def policies_folder() -> Path:
    """Where the shipped policies lie."""
    try:
        return Path(str(resources.files("widen.policies")))
    except ModuleNotFoundError:  # an editable install that is older than the folder
        return Path(__file__).resolve().parents[1] / "policies"


def _find(text: str, kinds: str, others: dict[str, str]) -> Subject:
    """Arguments: as typed; what it may be; bare names that are not it, and what they stand for."""
    path, folder = Path(text), policies_folder()
    separators = [mark for mark in (os.sep, os.altsep) if mark]
    if path.exists() or any(mark in text for mark in separators):
        inside = path.suffix == ".onnx" and path.resolve().parent == folder.resolve()
        return Subject(path.stem if inside else str(path), path, inside)
    shipped = [file.stem for file in sorted(folder.glob("*.onnx"))]
    if text in shipped:
        return Subject(text, folder / f"{text}.onnx", shipped=True)
    bare = text.removesuffix(".onnx")
    close = difflib.get_close_matches(bare, [*shipped, *others], 3, 0.5)
    meant = " or ".join(others.get(name, name) for name in close)
    hint = f"did you mean {meant}?" if close else f"shipped are {', '.join(shipped)}"
    raise ValueError(f"{text}: no such {kinds}; {hint}")


def _runs() -> dict[str, str]:
    """Names of the runs in the default folder -> their paths from here."""
    from .run_folder import RUNS

    return {config.parent.name: str(config.parent) for config in RUNS.glob("*/config.yaml")}

"""The results of an examination, written as each condition ends."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .files import write_whole

SCHEMA = "widen.exam/1"
"""Changes when the same name of a condition comes to mean another world."""


def exam_path(subject: Path) -> Path:
    """Where the results of a run, or of a policy's file, stand."""
    if subject.is_dir():
        return subject / "exam.json"
    return subject.with_name(f"{subject.stem}.exam.json")


class ExamFile:
    """Rows by the key of what was done: the policy, the condition and the settings.

    Args:
        path: the file; need not exist.
        policy: digest of the policy. Rows of another one are forgotten.

    Raises:
        ValueError: the file is no exam, or the folder cannot be written to.
    """

    def __init__(self, path: Path, policy: str) -> None:
        self.path, self.policy = path, policy
        self.rows: dict[str, dict[str, Any]] = {}
        before = read_exam(path)
        if before is not None and before.get("policy_sha256") == policy:
            self.rows = {row["key"]: row for row in before["conditions"]}
        try:
            # before anything takes minutes
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise ValueError(f"{path}: cannot be written: {error.strerror or error}") from None

    def keep(self, names: Collection[str], wanted: Mapping[str, str], backend: str) -> None:
        """Forget rows of conditions that there are no more, or that will have another key.

        Args:
            names: of all conditions.
            wanted: name of a condition -> key.
            backend: rows of another one are forgotten: a file tells of one.
        """
        self.rows = {
            key: row
            for key, row in self.rows.items()
            if row["name"] in names
            and row.get("backend") == backend
            and wanted.get(row["name"], key) == key
        }

    def write(self, about: Mapping[str, Any], order: Mapping[str, int]) -> dict[str, Any]:
        """Put the whole file in its place and return what it holds.

        Args:
            about: what to tell beside the rows.
            order: name of a condition -> place in the table; unknown ones come last.

        Raises:
            OSError: the file cannot be written; the last one stays.
        """
        rows = sorted(self.rows.values(), key=lambda row: order.get(row["name"], len(order)))
        content = {
            "schema": SCHEMA,
            "policy_sha256": self.policy,
            **about,
            "conditions": rows,
            "seconds": round(sum(row["wall_seconds"] for row in rows), 3),
        }
        write_whole(self.path, f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode())
        return content


def read_exam(path: Path) -> dict[str, Any] | None:
    """The content of an exam's file; None if there is no file, or one of another version.

    Raises:
        ValueError: the file is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        content = None
    schema = content.get("schema") if isinstance(content, dict) else None
    rows = content.get("conditions") if isinstance(content, dict) else None
    whole = isinstance(rows, list) and all(isinstance(x, dict) and "key" in x for x in rows)
    ours = str(schema).startswith("widen.exam/") and (whole or schema != SCHEMA)
    if not isinstance(content, dict) or not ours:
        raise ValueError(f"{path} exists and is no exam of widen: expected to move it away")
    return content if schema == SCHEMA else None


def summary(content: Mapping[str, Any]) -> dict[str, Any]:
    """What of an exam goes into a policy's contract."""
    keys = (
        *("name", "episodes", "episode_seconds", "goals_mean", "goals_ci"),
        *("goals_per_minute", "drop_rate", "drop_ci"),
    )
    rows = [{key: row[key] for key in keys} for row in content["conditions"]]
    return {"schema": content["schema"], "backend": content["backend"], "conditions": rows}


def contract_summary(path: Path, policy: str) -> dict[str, Any] | None:
    """The summary of an exam of this policy, if its file exists and is of this policy.

    A file that is no exam is nobody's mistake here: it is passed by.
    """
    try:
        content = read_exam(path)
    except ValueError:
        return None
    if content is None or content.get("policy_sha256") != policy or not content["conditions"]:
        return None
    return summary(content)

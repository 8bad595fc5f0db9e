"""`widen exam`: from a subject to its examined policy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_errors import Told

if TYPE_CHECKING:
    from .candidate import Candidate
    from .cli_subject import Subject


def exam(
    subject: Subject,
    episodes: int | None,
    seconds: float | None,
    conditions: str | None,
    backend: str | None,
    output: Path | None = None,
) -> dict[str, Any]:
    """Examine a run or a policy; a run's policy.onnx is then written anew with the results.

    Args:
        subject: a run, or a policy.
        episodes: per condition; None for the default.
        seconds: of the short episodes; None for the default.
        conditions: names with commas between them; None for all.
        backend: what simulates.
        output: where the results are kept; the run's folder then stays as it is. None for a file
            beside the subject, or for a shipped policy in the present folder.

    Returns:
        The content of the exam's file.

    Raises:
        ValueError: an option, the subject, or the file at the results' place is wrong.
        Told: interrupted; what is finished stays.
    """
    _check(episodes, seconds)
    from .cli_policy import open_candidate
    from .exam import EPISODES, examine
    from .exam_conditions import SHORT_SECONDS, syllabus
    from .exam_file import ExamFile

    candidate = open_candidate(subject.path, backend, subject.name)
    plan = syllabus(
        candidate.ranges,
        1.0 / candidate.env.control_hz,
        candidate.episode_seconds,
        seconds or SHORT_SECONDS,
        candidate.has_object,
    )
    chosen = plan.conditions
    if conditions is not None:
        chosen = plan.select([name.strip() for name in conditions.split(",")])
    file = ExamFile(output or _place(subject, candidate.digest), candidate.digest)
    done = 0

    def told(count: int, total: int, row: dict[str, Any]) -> None:
        nonlocal done
        done = count
        _say(count, total, row)

    try:
        content = examine(candidate, plan, chosen, episodes or EPISODES, file, told)
        if subject.path.is_dir() and output is None:
            _write_into_policy(subject.path, candidate, content)
    except KeyboardInterrupt:
        kept = f"; {done} of {len(chosen)} conditions are in {file.path}, the same command goes on"
        print(f"interrupted{kept if done else ''}", file=sys.stderr)
        raise Told(130) from None
    return content


def _place(subject: Subject, digest: str) -> Path:
    """Where results go if the user does not say it.

    Raises:
        ValueError: a file of that name in the present folder is of another policy than the
            shipped one, say of one's own that is called alike.
    """
    from .exam_file import exam_path, read_exam

    if not subject.shipped:
        return exam_path(subject.path)
    place = Path(f"{subject.name}.exam.json")
    before = read_exam(place)
    if before is not None and before.get("policy_sha256") != digest:
        raise ValueError(f"{place} is the exam of another policy: expected -o with a new name")
    return place


def _check(episodes: int | None, seconds: float | None) -> None:
    if episodes is not None and not 1 <= episodes <= 1_000_000:
        raise ValueError(f"--episodes {episodes}: expected 1 or more, at most a million")
    if seconds is not None and not 0 < seconds <= 3600:
        raise ValueError(f"--seconds {seconds:g}: expected more than 0 and at most 3600")


def _say(done: int, total: int, row: dict[str, Any]) -> None:
    low, high = row["goals_ci"]
    print(
        f"[{done}/{total}] {row['name']}: {row['goals_mean']:.2f} goals ({low:.2f} to {high:.2f}),"
        f" {100 * row['drop_rate']:.0f} % dropped",
        file=sys.stderr,
        flush=True,
    )


def _write_into_policy(run: Path, candidate: Candidate, content: dict[str, Any]) -> None:
    """Put the summary into the run's policy.onnx, if the policy is still the one examined."""
    from widen.deploy.export import export_runner

    from .candidate import digest_of
    from .exam_file import summary
    from .run_folder import RunFolder
    from .trained import Trained

    folder = RunFolder.open(run)
    trained = Trained.restore(folder)
    if digest_of(trained) != candidate.digest:
        print(f"{run} has trained on meanwhile: its policy.onnx stays as it is", file=sys.stderr)
        return
    export_runner(trained, folder.policy, summary(content))

"""Make a shipped policy of a finished and examined run.

    widen train CONFIG --run-dir RUN && widen exam RUN
    python benchmarks/ship.py RUN NAME          policies/NAME.onnx and .json, and docs/policies.md
    python benchmarks/ship.py --only table      docs/policies.md from the JSON files that are there

The file is exported anew from the run's last checkpoint and evaluated as `widen eval NAME` would.
The script refuses a run that is not finished, or whose exam is of another policy or not complete,
so that no figure is of anything but the file beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import math
import re
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from widen.deploy.export import export_runner
from widen.deploy.source import source_sha256
from widen.envs.task import task_class
from widen.train.candidate import Candidate, digest_of
from widen.train.cli_policy import open_candidate, open_trial
from widen.train.cli_subject import shipped_policies
from widen.train.config import RunConfig, dump_config, load_config, shipped_configs
from widen.train.evaluate import evaluate
from widen.train.exam import EPISODES, row_key
from widen.train.exam_conditions import SHORT_SECONDS, syllabus
from widen.train.exam_file import read_exam, summary
from widen.train.files import write_whole
from widen.train.progress import format_count, format_duration
from widen.train.run_folder import RunFolder, read_log
from widen.train.statistics import bootstrap_mean, wilson
from widen.train.trained import Trained

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = "widen.shipped/1"
MOST_BYTES = 2_000_000
EVALUATED = 128  # episodes, as widen eval
BEGIN, END = "<!-- policies: begin -->", "<!-- policies: end -->"
SHOWN = ("nominal", "held_out", "suite")  # groups of conditions in the document


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="folder of the run")
    parser.add_argument("name", nargs="?", help="of the policy, as users will type it")
    parser.add_argument("--summary", help="in a line; default: as before, or the task's")
    parser.add_argument("--machine", help="what trained it; default: what the run has noted")
    parser.add_argument("--policies", type=Path, default=ROOT / "policies", help="folder")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "policies.md", help="page")
    parser.add_argument("--only", choices=["table"], help="write the page and nothing else")
    args = parser.parse_args()
    if (args.name is None) != (args.only == "table"):
        parser.error("expected RUN and NAME, or --only table")
    try:
        if args.only is None:
            ship(args.run, args.name, args.policies, args.summary, args.machine)
        write_page(args.policies, args.docs)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def ship(
    run: Path,
    name: str,
    policies: Path,
    about: str | None = None,
    machine: str | None = None,
    episodes: int = EPISODES,
    seconds: float = SHORT_SECONDS,
) -> dict[str, Any]:
    """Write `policies`/NAME.onnx and NAME.json.

    Args:
        run: folder of the run.
        name: of the policy.
        policies: folder.
        about: the policy in a line; None for that of an earlier NAME.json, or the task's.
        machine: what trained it; None for what the run has noted.
        episodes, seconds: what the exam must have, as the options of `widen exam`.

    Returns:
        What the JSON file says.

    Raises:
        ValueError: the run is not finished, or its exam is not complete or of another policy; the
            name or the size of the file will not do; no shipped config gives the run's.
        OSError: something cannot be written.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(f"{name}: expected a name of small letters, digits and underscores")
    folder = RunFolder.open(run)
    trained = Trained.restore(folder)
    last = finished(folder, trained)
    exam = examined(folder, trained, episodes, seconds)
    beside = policies / f"{name}.json"
    before = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / f"{name}.onnx"
        export_runner(trained, file, summary(exam))
        content = file.read_bytes()
        if len(content) >= MOST_BYTES:
            raise ValueError(f"{name}.onnx: {len(content)} bytes, expected under {MOST_BYTES}")
        figures = evaluated(file)
    told = {
        "schema": SCHEMA,
        "name": name,
        "summary": about or before.get("summary") or task_class(trained.config.task).summary,
        "task": trained.config.task,
        "file": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
        "training": training(folder, trained, last, machine),
        # the source that made file and figures; nothing in it depends on git
        "widen": {"version": importlib.metadata.version("widen"), "source_sha256": source_sha256()},
        "evaluation": figures,
        "exam": {
            "schema": exam["schema"],
            "backend": exam["backend"],
            "unmoved": exam["unmoved"],
            "conditions": list(exam_rows(exam)),
        },
    }
    write_whole(policies / f"{name}.onnx", content)
    write_whole(beside, f"{json.dumps(told, indent=1, allow_nan=False)}\n".encode())
    return told


def finished(folder: RunFolder, trained: Trained) -> dict[str, Any]:
    """The last interval of a run's log.

    Raises:
        ValueError: there are iterations to come, or the last checkpoint is older than the log.
    """
    intervals = read_log(folder.adr_log).intervals
    done, wanted = (intervals[-1]["iteration"] if intervals else 0), trained.config.ppo.iterations
    if done < wanted or intervals[-1]["steps"] != trained.steps:
        raise ValueError(
            f"{folder.path}: iteration {done} of {wanted}: expected a finished run; go on with"
            f" widen train {folder.config} --run-dir {folder.path} --resume"
        )
    return intervals[-1]


def examined(folder: RunFolder, trained: Trained, episodes: int, seconds: float) -> dict[str, Any]:
    """The run's exam.

    Raises:
        ValueError: there is none, it is of another policy, or it lacks a condition.
    """
    file, command = folder.path / "exam.json", f"widen exam {folder.path}"
    exam = read_exam(file)
    if exam is None or not exam["conditions"]:
        raise ValueError(f"{folder.path} is not examined: expected {file}; make it with {command}")
    if exam["policy_sha256"] != digest_of(trained):
        raise ValueError(f"{file} is of another policy than the last checkpoint: run {command}")
    candidate = open_candidate(folder.path, exam["backend"])
    had = {row["key"] for row in exam["conditions"]}
    wanted = row_keys(candidate, episodes, seconds)
    if lacking := [condition for condition, key in wanted.items() if key not in had]:
        raise ValueError(
            f"{file}: {len(lacking)} of {len(wanted)} conditions are missing or were examined with"
            f" other options, the first is {lacking[0]}: run {command}"
        )
    return exam


def row_keys(candidate: Candidate, episodes: int, seconds: float) -> dict[str, str]:
    """The keys that the rows of a complete exam have: name of the condition -> key."""
    plan = syllabus(
        candidate.ranges,
        1.0 / candidate.env.control_hz,
        candidate.episode_seconds,
        seconds,
        candidate.has_object,
    )
    return {c.name: row_key(candidate, c, episodes) for c in plan.conditions}


def exam_rows(exam: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of the policy's contract, each with its group and its reference."""
    for short, row in zip(summary(exam)["conditions"], exam["conditions"], strict=True):
        yield {"group": row["group"], "reference": row["reference"], **short}


def evaluated(file: Path) -> dict[str, Any]:
    """A policy's figures in the nominal world on the CPU, by the episodes of `widen eval`."""
    env, step = open_trial(file, EVALUATED, "none", "cpu")
    found = evaluate(env, step, EVALUATED)
    goals, count = found["goals"], found["episodes"]
    drops = round(found["drop_rate"] * count)
    return {
        "randomization": "none",
        "backend": "cpu",
        "episodes": count,
        "episode_seconds": env.max_steps * env.control_dt,
        "goals_mean": found["goals_mean"],
        "goals_ci": [round(end, 4) for end in bootstrap_mean(goals)],
        "goals_std": round(statistics.stdev(goals), 4),
        "goals_median": found["goals_median"],
        "drop_rate": found["drop_rate"],
        "drop_ci": [round(end, 4) for end in wilson(drops, count)],
        "diverged": found["diverged"],
    }


def training(
    folder: RunFolder, trained: Trained, last: Mapping[str, Any], machine: str | None
) -> dict[str, Any]:
    """How the policy came to be: command, config, seed, time, machine."""
    noted, config = folder.read_environment(), trained.config
    cores = noted.get("cpu_count")
    return {
        "command": command_for(config),
        "config": dump_config(config),
        "seed": config.seed,
        "steps": trained.steps,
        "seconds": round(last["seconds"], 1),
        "machine": machine or f"{cores} cores, {noted.get('cpu_model')}",
        "backend": noted.get("backend"),
        "processes": noted.get("processes"),
        "date": str(noted.get("started"))[:10],
        "versions": noted.get("versions"),
        **began_with(config, noted),
    }


def began_with(config: RunConfig, noted: Mapping[str, Any]) -> dict[str, Any]:
    """How the policy came to be whose networks the run began with, under "init_from".

    Raises:
        ValueError: it is neither a shipped one nor a run that is there, or has changed since.
    """
    name, was = config.init_from, noted.get("init_from") or {}
    if name is None:
        return {}
    if Path(name).is_absolute():
        raise ValueError(f"init_from: {name}: expected a path from the folder of the run")
    if (before := shipped_policies().get(name)) is not None:
        if was.get("sha256") != before["file"]["sha256"]:
            raise ValueError(f"init_from: {name}: the shipped policy was another one then")
        return {"init_from": {"name": name, "shipped": True, **before["training"]}}
    folder = RunFolder.open(Path(name))
    trained = Trained.restore(folder)
    last = finished(folder, trained)
    if was.get("steps") != trained.steps:
        raise ValueError(f"init_from: {name}: its last checkpoint was another one then")
    begun = training(folder, trained, last, None)
    return {"init_from": {"name": name, "shipped": False, **begun}}


def command_for(config: RunConfig) -> str:
    """The shortest command that trains with this config.

    Raises:
        ValueError: overrides make it of no shipped config.
    """
    wanted, best = dump_config(config), None
    for name in shipped_configs():
        pairs = tuple(differences(dump_config(load_config(name)), wanted))
        if best is not None and len(pairs) >= len(best):
            continue
        try:
            same = dump_config(load_config(name, pairs)) == wanted
        except ValueError:
            continue
        if same:
            best = (name, *pairs)
    if best is None:
        raise ValueError("no shipped config with overrides gives the run's: expected one that does")
    return shlex.join(("widen", "train", *best))


def differences(have: Mapping[str, Any], want: Mapping[str, Any], key: str = "") -> Iterator[str]:
    """Overrides key=value that make one config of another."""
    for name, value in want.items():
        old = have.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            yield from differences(old, value, f"{key}{name}.")
        elif name not in have or value != old:
            text = yaml.safe_dump(value, default_flow_style=True, width=math.inf)
            yield f"{key}{name}=" + text.removesuffix("\n").removesuffix("\n...")


def write_page(policies: Path, page: Path) -> None:
    """What there is, into the page between its marks.

    Raises:
        ValueError: the page lacks its marks.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page}: expected the lines {BEGIN} and {END}")
    new = f"{before}{BEGIN}\n{render(policies)}{END}{after}"
    if new != text:
        write_whole(page, new.encode())


def render(policies: Path) -> str:
    """The generated part of the page, from the JSON files in a folder."""
    all_of_them = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(policies.glob("*.json"))
    ]
    lines = [
        "| policy | | training | nominal | held-out | file |",
        "|---|---|---|---|---|---|",
    ]
    for told in all_of_them:
        rows = {row["name"]: row for row in told["exam"]["conditions"]}
        lines.append(
            f"| `{told['name']}` | {told['summary']} | {_length(told)} | {_goals(rows['nominal'])}"
            f" | {_goals(rows['held_out'])} | {told['file']['bytes'] / 1000:.0f} kB |"
        )
    for told in all_of_them:
        lines += ["", *_section(told)]
    return "\n".join(lines) + "\n"


def _section(told: Mapping[str, Any]) -> Iterator[str]:
    trained, counted = told["training"], told["evaluation"]
    yield f"### `{told['name']}`"
    yield ""
    commands = [trained["command"]]
    piece = trained
    while (before := piece.get("init_from")) is not None:
        if not before["shipped"]:
            commands.insert(0, f"{before['command']} --run-dir {before['name']}")
        elif before["name"] == told["name"]:  # which this one has taken the place of
            commands.insert(0, f"{before['command']}  # shipped as {before['name']} then")
        else:
            break
        piece = before
    yield "\n".join(("```", *commands, "```"))
    yield ""
    processes = trained["processes"] or 1
    yield (
        f"Seed {trained['seed']}, {_length(told)} in {processes} process{'es' * (processes > 1)} on"
        f" {trained['machine']} (backend {trained['backend']}), {trained['date']}. `widen eval`:"
        f" {_goals(counted)}, {counted['episodes']} episodes."
    )
    yield ""
    yield "| condition | episode | episodes | goals | dropped % |"
    yield "|---|---|---|---|---|"
    for row in told["exam"]["conditions"]:
        if row["group"] in SHOWN:
            dropped = f"{100 * row['drop_rate']:.1f} {_span(row['drop_ci'], 100.0, 1)}"
            goals = f"{row['goals_mean']:.2f} {_span(row['goals_ci'], 1.0, 2)}"
            length = f"{row['episode_seconds']:g} s"
            yield f"| {row['name']} | {length} | {row['episodes']} | {goals} | {dropped} |"


def _pieces(trained: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The runs that led to a policy, the first one first."""
    if (before := trained.get("init_from")) is not None:
        yield from _pieces(before)
    yield trained


def _length(told: Mapping[str, Any]) -> str:
    """Of all runs that led to the policy."""
    pieces = list(_pieces(told["training"]))
    steps, seconds = (sum(piece[key] for piece in pieces) for key in ("steps", "seconds"))
    return f"{format_count(steps)} steps, {format_duration(seconds)}"


def _goals(row: Mapping[str, Any]) -> str:
    goals = f"{row['goals_mean']:.2f} {_span(row['goals_ci'], 1.0, 2)}"
    dropped = f"{100 * row['drop_rate']:.0f} % dropped"
    return f"{goals} goals in {row['episode_seconds']:g} s, {dropped}"


def _span(ends: list[float], scale: float, digits: int) -> str:
    return f"[{', '.join(f'{scale * end:.{digits}f}' for end in ends)}]"


if __name__ == "__main__":
    sys.exit(main())

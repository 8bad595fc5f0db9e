"""Everything that a GPU has to show, in one call of less than nine minutes.

    python benchmarks/gpu.py --out results            on a machine with a GPU
    python benchmarks/gpu.py --out results --smoke    a few seconds of each section, on any machine

Every section runs in a process of its own with its own time limit, so that one that crashes or
hangs costs only itself. Writes gpu.json and gpu.md into the folder and prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

TOTAL = 530.0  # [s], of nine minutes
LIMITS = {  # [s], in order; what a section does not use is left to the last
    "correctness": 120,
    "simulation": 140,
    "score": 125,
    "training": 85,
    "profile": 40,
    "curriculum": 200,
    "reorient": 520,
}
SEPARATE = ("reorient",)  # take a call of their own
LEAST = {"curriculum": 120.0, "reorient": 480.0}  # [s] to begin with; others 20
PACKAGES = ("widen", "mujoco", "mujoco-warp", "warp-lang", "torch", "stable-baselines3", "numpy")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything work?")
    parser.add_argument("--only", nargs="+", choices=list(LIMITS), default=None)
    parser.add_argument("--section", choices=list(LIMITS), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=TOTAL, help="for everything together")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.section:
        run_section(args.section, args.smoke, args.out)
        return 0
    began = time.monotonic()
    result: dict[str, Any] = {"machine": machine(), "smoke": args.smoke, "sections": {}}
    for name in args.only or [name for name in LIMITS if name not in SEPARATE]:
        left = args.seconds - (time.monotonic() - began)
        limit = left if args.smoke else min(LIMITS[name], left)
        result["sections"][name] = start_section(name, args, limit)
        # after every section: whatever happens next, this is kept
        write(result, args.out)
    print((args.out / "gpu.md").read_text(encoding="utf-8"))
    return 0 if all(map(sound, result["sections"].values())) else 1


def sound(section: dict[str, Any]) -> bool:
    """Whether a section, its tests and its rows all came to their end."""
    bad = ("error", "overflow")
    rows = [section, *section.get("rows", ())]
    return section.get("passed", True) and not any(key in row for row in rows for key in bad)


def start_section(name: str, args: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Run a section in a process of its own; what it wrote, and an error in one line if any."""
    if limit < LEAST.get(name, 20.0) and not args.smoke:
        return {"error": f"not begun: {limit:.0f} s were left"}
    command = [sys.executable, __file__, "--out", str(args.out), "--section", name]
    env = {**os.environ, "GPU_BENCH_OUT": str(args.out)}
    log, part = args.out / f"{name}.log", args.out / f"{name}.json"
    part.unlink(missing_ok=True)
    began, error = time.monotonic(), None
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command + ["--smoke"] * args.smoke,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
        try:
            if code := process.wait(limit):
                error = f"exit code {code}"
        except subprocess.TimeoutExpired:
            error = f"took more than {limit:.0f} s"
            # with its children, which would go on holding the GPU
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = json.loads(part.read_text(encoding="utf-8")) if part.exists() else {}
    if error is not None:
        found |= {"error": error, "log": tail(log)}
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def run_section(name: str, smoke: bool, out: Path) -> None:
    import gpu_sections as sections

    def keep(found: dict[str, Any]) -> None:
        beside = out / f"{name}.part"
        beside.write_text(json.dumps(found), encoding="utf-8")
        beside.replace(out / f"{name}.json")

    keep(sections.SECTIONS[name](sections.SMOKE if smoke else sections.Size(), keep))


def tail(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]


def machine() -> dict[str, Any]:
    import torch

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    about: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "gpu": None,
        "processors": os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": versions,
    }
    if torch.cuda.is_available():
        what = torch.cuda.get_device_properties(0)
        about |= {"gpu": what.name, "gpu_memory_gb": round(what.total_memory / 1e9, 1)}
    return about


def write(result: dict[str, Any], out: Path) -> None:
    (out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "gpu.md").write_text(table(result), encoding="utf-8")


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    about, sections = result["machine"], result["sections"]
    lines = [f"# {about['gpu'] or 'CPU device'}, {about['date']}", ""]
    lines += [", ".join(f"{k} {v}" for k, v in about["versions"].items()), ""]
    for name, one in sections.items():
        lines += [f"## {name}" + (f" ({one['seconds']} s)" if "seconds" in one else ""), ""]
        if "error" in one:
            lines += [f"failed: {one['error']}", *one.get("log", ()), ""]
        if "error" not in one or "rows" in one:
            lines += [*RENDER.get(name, _plain)(one), ""]
    return "\n".join(lines)


def _grid(rows: list[dict[str, Any]]) -> list[str]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(key)) for key in keys] for row in rows]
    rule = ["---"] * len(keys)
    return ["| " + " | ".join(row) + " |" for row in (keys, rule, *cells)]


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return "" if value is None else str(value)


def _rows(one: dict[str, Any]) -> list[str]:
    return _grid(one["rows"])


def _plain(one: dict[str, Any]) -> list[str]:
    return [
        f"{key}: {_cell(value)}" for key, value in one.items() if key not in ("tail", "seconds")
    ]


def _scored(one: dict[str, Any]) -> list[str]:
    trained = one["train"]
    lines = [f"trained {trained['seconds']} s, {trained['steps']} steps, {one['wall_s']} s in all"]
    for name in ("warp_backend", "cpu_backend"):
        judged = one[name]
        goals = f"{judged['goals_mean']} ± {judged['standard_error']} goals"
        lines.append(f"{name}: {goals}, {judged['drop_rate']} dropped")
    lines.append(f"both backends agree: {one['agree']}")
    return [*lines, "", *_grid(one["curve"])]


def _profiled(one: dict[str, Any]) -> list[str]:
    return ["```", *one["table"].splitlines(), "```"]


RENDER = {
    "simulation": _rows,
    "training": _rows,
    "score": _scored,
    "curriculum": _scored,
    "reorient": _scored,
    "profile": _profiled,
}


if __name__ == "__main__":
    sys.exit(main())

"""The script of docs/experiment.md, with known numbers and, slowly, with real ones."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "experiment.py"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="tests an installed package")


@pytest.fixture(scope="module")
def script() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def finished(runs: Path, curriculum: str, seed: int, goals: float) -> None:
    """A run folder as training and examination leave it, with the same interval of +-1 goal."""
    run = runs / f"{curriculum}-{seed}"
    run.mkdir(parents=True)
    lines = [{"kind": "interval", "steps": 1000, "seconds": 1.0}]
    lines += [{"kind": "interval", "steps": 3_500_000, "seconds": 600.4}]
    lines += [{"kind": "move", "steps": 3_500_000}]
    (run / "adr.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [
        {"name": name, "goals_mean": goals * k, "goals_ci": [goals * k - 1, goals * k + 1]}
        | {"drop_rate": 0.25, "episodes": 512}
        for name, k in (("nominal", 2.0), ("held_out", 1.0))
    ]
    (run / "exam.json").write_text(json.dumps({"conditions": rows}))


def test_table_and_plot_of_known_numbers(script: SimpleNamespace, tmp_path: Path) -> None:
    runs, docs = tmp_path / "runs", tmp_path / "docs"
    for curriculum, goals in ("none", 1.0), ("uniform", 4.0), ("adr", 8.0):
        for seed in (1, 2):
            finished(runs, curriculum, seed, goals + (seed - 1))
    docs.mkdir()
    (docs / "experiment.md").write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    command = [sys.executable, str(SCRIPT), "--only", "table", "--seeds", "1", "2"]
    command += ["--runs", str(runs), "--docs", str(docs)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert len(lines) == 2 + 3 * 3
    assert lines[8] == (
        "| adr | 1 | 3.50 M | 600 | 16.00 (15.00 to 17.00) | 25.0 % | 8.00 (7.00 to 9.00) | 25.0 % |"
    )
    # two means with standard error s: their mean has s / sqrt(2)
    assert lines[10] == (
        "| **adr** | all | 3.50 M | 600 | **17.00** (16.29 to 17.71) | 25.0 %"
        " | **8.50** (7.79 to 9.21) | 25.0 % |"
    )
    page = (docs / "experiment.md").read_text()
    assert page == f"before\n{script.BEGIN}\n{answer.stdout.rstrip()}\n{script.END}\nafter\n"
    svg = ElementTree.parse(docs / "experiment.svg").getroot()
    name = "{http://www.w3.org/2000/svg}"
    bars = svg.findall(f"{name}rect")[1:]
    heights = [float(bar.get("height") or 0) for bar in bars]
    assert len(svg.findall(f"{name}circle")) == 12
    expected = [3.0, 9.0, 17.0, 1.5, 4.5, 8.5]  # the pooled means, nominal and then held-out
    assert heights == pytest.approx([heights[2] * x / 17.0 for x in expected], abs=0.02)
    whiskers = [x for x in svg.findall(f"{name}line") if x.get("stroke") == "#000"]
    assert len(whiskers) == 6
    top = float(whiskers[5].get("y2") or 0)
    assert 250 - top == pytest.approx(heights[2] * (8.5 + 0.5**0.5) / 17.0, abs=0.02)


def test_what_is_missing_is_named(script: SimpleNamespace, tmp_path: Path) -> None:
    finished(tmp_path, "none", 1, 1.0)
    (tmp_path / "none-1" / "exam.json").unlink()
    with pytest.raises(SystemExit, match=r"none-1: expected a finished and examined run"):
        script.read(tmp_path / "none-1", "none", 1)
    (tmp_path / "experiment.md").write_text("no marks")
    with pytest.raises(SystemExit, match=r"experiment\.md: expected the lines"):
        script.write([], tmp_path)


@pytest.mark.parametrize(("highest", "step"), [(0.0, 1.0), (0.9, 0.2), (4.0, 1.0), (27.0, 5.0)])
def test_ticks_are_round(script: SimpleNamespace, highest: float, step: float) -> None:
    assert script._tick(highest) == pytest.approx(step)


@pytest.mark.slow
def test_the_experiment_in_miniature(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--seeds", "3", "--iterations", "2", "--episodes", "4"]
    command += ["--runs", str(tmp_path / "runs"), "--docs", str(tmp_path / "docs"), "--set"]
    command += ["env.num_envs=8", "env.episode_seconds=1", "evaluation.episodes=2"]
    kept: list[dict[Path, int]] = []
    for _ in range(2):
        answer = subprocess.run(command, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
        assert len(answer.stdout.splitlines()) == 2 + 3
        files = tmp_path.glob("runs/*/adr.jsonl")
        kept.append({path: path.stat().st_mtime_ns for path in files})
    assert len(kept[0]) == 3
    assert kept[0] == kept[1]

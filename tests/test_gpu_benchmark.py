"""The GPU benchmark works from its first section to its table, in tiny sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


@pytest.mark.slow
@pytest.mark.warp
def test_every_section_but_the_long_ones(tmp_path: Path) -> None:
    pytest.importorskip("mujoco_warp")
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--smoke", "--only"]
    ran = subprocess.run(
        [*command, "simulation", "score", "profile"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    rows = found["simulation"]["rows"]
    assert [(row["worlds"], row["randomised"]) for row in rows] == [
        (8, False),
        (8, True),
        (16, False),
        (16, True),
    ]
    assert all(row["env_steps_per_s"] > 0 for row in rows)
    assert found["score"]["cpu_backend"]["episodes"] == found["score"]["warp_backend"]["episodes"]
    assert isinstance(found["score"]["agree"], bool)
    assert "widen: physics" in found["profile"]["table"]
    assert "| worlds |" in (tmp_path / "gpu.md").read_text()

"""The shipped configs learn what they promise. Minutes each on two cores."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def train(config: str, folder: Path) -> dict:
    command = [sys.executable, "-m", "widen.train", config, "--run-dir", str(folder), "--json"]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout)


@pytest.mark.slow
def test_quickstart_turns_the_cube_and_widens_its_ranges(tmp_path: Path) -> None:
    result = train("quickstart", tmp_path / "run")
    assert result["goals_mean"] >= 15.0  # drops included
    assert result["bounds_moved"] >= 6
    assert Path(result["policy"]).is_file()


@pytest.mark.slow
def test_fingertip_reach_learns(tmp_path: Path) -> None:
    assert train("fingertip_reach", tmp_path / "run")["goals_mean"] >= 10.0

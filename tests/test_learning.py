"""The shipped configs learn what they promise. Minutes each on two cores."""

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import answer_of


def train(config: str, folder: Path, *overrides: str) -> dict:
    command = [sys.executable, "-m", "widen.train", config, *overrides]
    command += ["--run-dir", str(folder), "--json"]
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


@pytest.mark.slow
@pytest.mark.warp
def test_a_policy_scores_the_same_on_both_backends(tmp_path: Path) -> None:
    """Where the solver stops early the backends part: one drops ten times as often as the other."""
    path = tmp_path / "run"
    short = ("ppo.iterations=280", "env.episode_seconds=10", "sim.backend=cpu")
    assert train("quickstart", path, *short)["goals_mean"] >= 3.0
    cpu, warp = (
        answer_of("eval", path, "--episodes", "128", "--backend", backend)
        for backend in ("cpu", "warp")
    )
    assert cpu["episodes"] == warp["episodes"] == 128
    error = math.sqrt(sum(statistics.variance(x["goals"]) / len(x["goals"]) for x in (cpu, warp)))
    # both by three standard errors; of the common rate for drops, with one drop more at least
    assert abs(cpu["goals_mean"] - warp["goals_mean"]) <= 3.0 * error
    rate = max((cpu["drop_rate"] + warp["drop_rate"]) / 2, 1 / 128)
    assert abs(cpu["drop_rate"] - warp["drop_rate"]) <= 3.0 * math.sqrt(2 * rate * (1 - rate) / 128)

"""The exported policy under the controller is the torch pipeline of training; the fault drill runs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_clock import ScriptedClock

from widen.deploy.control_log import ControlLog
from widen.deploy.controller import run
from widen.deploy.log_file import read_log
from widen.deploy.runtime import OnnxPolicy
from widen.deploy.safety import State, intervention_names
from widen.deploy.sim_robot import SimRobot
from widen.train.cli import main
from widen.train.cli_policy import contract_scene
from widen.train.run_folder import RunFolder
from widen.train.trained import Trained

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    small = ["env.num_envs=16", "ppo.steps=8", "ppo.iterations=2", "evaluation.episodes=8"]
    assert main(["train", "cube_rotate", *small, "--run-dir", str(folder)]) == 0
    return folder


def recorded(trained: Path, file: Path, seconds: float) -> OnnxPolicy:
    policy = OnnxPolicy(trained / "policy.onnx")
    robot = SimRobot.from_scene(contract_scene(policy.contract, 0.002), ScriptedClock(), seed=3)
    measured = [r for r in policy.contract.readings if r.source != "goal"]
    with ControlLog.of_policy(
        file,
        "small",
        policy.contract,
        states=[state.value for state in State],
        interventions=intervention_names(measured, robot.joint_names),
        robot_joints=robot.joint_names,
        clock=robot.clock,
    ) as log:
        run(policy, robot, seconds, log=log, max_speed=1.0)
    return policy


def test_logged_readings_through_torch_give_the_logged_targets(
    trained: Path, tmp_path: Path, benchmark: Any
) -> None:
    recorded(trained, tmp_path / "run.log", 15.0)
    script, log = benchmark("sim_to_sim"), read_log(tmp_path / "run.log")
    torch_side = Trained.restore(RunFolder.open(trained))
    assert script.trace_error(torch_side, log, 200) <= 1e-5
    with pytest.raises(ValueError, match="cycles of 9000"):
        script.trace_error(torch_side, log, 9000)
    # the policy moved, was held back by the speed limit, and was told so
    assert log.counts()["joint_speed"] > 10
    asked = log.arrays["asked"]
    assert np.nanmax(np.abs(np.diff(asked, axis=0))) > 0.01
    # a reading that is another by 1 mrad gives other targets
    log.arrays["joint_pos"][:] += 1e-3
    assert script.trace_error(torch_side, log, 200) > 1e-5


@pytest.mark.realtime
@pytest.mark.parametrize("fault", ["overload", "kill"])
def test_a_fault_of_the_drill(fault: str, tmp_path: Path, benchmark: Any) -> None:
    drill, out = benchmark("fault_drill"), tmp_path / "drill.json"
    for _ in range(6):
        # a busy computer may take longer than allowed, but not end elsewhere
        assert drill.main(["--only", fault, "--repeats", "1", "--out", str(out)]) in (0, 1)
        found = json.loads(out.read_text())["figures"]["faults"][fault]
        assert set(found["states"]) == ({"gone"} if fault == "kill" else {"fault"})
        assert found["outside"] == 0
        if found["reasons"] != ["deadline_missed"]:
            break  # a very busy one stops the hand for that, before the fault of the drill comes
    assert found["passive_ms"] is not None


def test_the_drills_judge_sees_what_is_outside(benchmark: Any) -> None:
    drill = benchmark("fault_drill")
    contract = OnnxPolicy(ROOT / "policies" / "fingertip_reach.onnx").contract
    order = [contract.joints.index(joint) for joint in drill.MOTOR_JOINTS]
    home = np.array(contract.home)[order]
    step = contract.max_target_speed * contract.control_period
    assert drill.violations([home, home + 0.5 * step, home], contract) == []
    assert drill.violations([home, home + 1.1 * step], contract) == [1]
    assert drill.violations([home, np.array(contract.upper)[order] + 0.01], contract) == [1]
    assert drill.violations([home, home * np.nan], contract) == [1]


def test_the_docs_table_is_replaced(tmp_path: Path, benchmark: Any, monkeypatch: Any) -> None:
    drill = benchmark("fault_drill")
    page = tmp_path / "safety.md"
    page.write_text(f"before\n{drill.BEGIN}\nold\n{drill.END}\nafter\n")
    monkeypatch.setattr(drill, "DOCS", page)
    drill.document("| new |")
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| new |" in text
    assert drill.BEGIN in (ROOT / "docs" / "safety.md").read_text()

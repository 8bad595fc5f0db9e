"""The examples that run a policy without widen: they do, and they are as small as is said."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from widen.deploy.contract import CONTRACT_KEY, GOLDEN_KEY
from widen.deploy.runtime import OnnxPolicy
from widen.train.cli_subject import policies_folder

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "deploy" / "examples" / "python" / "run_policy.py"
CPP = ROOT / "deploy" / "examples" / "cpp"
STUB = ROOT / "tests" / "support" / "onnxruntime_stub"
FILES = sorted(policies_folder().glob("*.onnx"))

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="tests an installed package")


def run_script(path: Path) -> subprocess.CompletedProcess[str]:
    """In an isolated interpreter that has neither widen nor torch nor mujoco."""
    gone = dict.fromkeys(["widen", "torch", "mujoco", "onnx", "fastjsonschema", "yaml"])
    program = (
        f"import sys, runpy; sys.modules.update({gone}); sys.argv = ['run_policy', {str(path)!r}];"
        f"runpy.run_path({str(SCRIPT)!r})"
    )
    return subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True)


def changed(path: Path, to: Path, key: str, change: Any) -> Path:
    model = onnx.load(path)
    (entry,) = (p for p in model.metadata_props if p.key == key)
    data = json.loads(entry.value)
    change(data)
    entry.value = json.dumps(data)
    onnx.save(model, to)
    return to


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_python_example_answers_as_widen_does(path: Path) -> None:
    answer = run_script(path)
    assert (answer.returncode, answer.stderr) == (0, "")
    first, *lines = answer.stdout.splitlines()
    words = first.split()
    assert words[:6] == ["largest", "error", "over", "8", "golden", "steps:"]
    policy = OnnxPolicy(path)
    assert float(words[6]) == pytest.approx(policy.verify(), rel=0.05)  # two digits are printed
    target = policy({name: values[0] for name, values in policy.golden.readings.items()})[0]
    target = target.clip(policy.contract.lower, policy.contract.upper)
    rows = [line.split() for line in lines]
    assert [row[0] for row in rows] == list(policy.contract.joints)
    np.testing.assert_allclose([float(row[2]) for row in rows], target, atol=5.1e-5)


def test_the_python_example_finds_a_difference(tmp_path: Path) -> None:
    def shift(golden: Any) -> None:
        golden["outputs"]["joint_target"]["values"][-1] += 2e-5

    answer = run_script(changed(FILES[0], tmp_path / "p.onnx", GOLDEN_KEY, shift))
    assert (answer.returncode, answer.stderr) == (1, "")
    found = float(answer.stdout.partition("golden steps: ")[2].split()[0])
    # the shift adds to an error of the file's own or takes from it; two digits are printed
    assert abs(found - 2e-5) <= OnnxPolicy(FILES[0]).verify() + 5e-7
    newer = changed(
        FILES[0], tmp_path / "n.onnx", CONTRACT_KEY, lambda d: d.update(schema="widen.policy/3")
    )
    assert "not made for widen.policy/3" in run_script(newer).stderr


def test_the_examples_are_small_and_need_nothing_else() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    nodes = list(ast.walk(ast.parse(text)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    imported = {name.split(".")[0] for name in names}
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}
    lines = [f.read_text(encoding="utf-8").splitlines() for f in CPP.iterdir()]
    assert {f.name for f in CPP.iterdir()} == {"CMakeLists.txt", "main.cpp"}
    assert sum(map(len, lines)) < 200


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_cpp_example_is_cpp17() -> None:
    """Against declarations of our own; .ci/run builds and runs it with the real headers."""
    options = ["-std=c++17", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    command = ["g++", *options, f"-I{STUB}", str(CPP / "main.cpp")]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr

"""Who may import whom: the arrows of the design, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("configs", "policies", "envs", "randomization", "train", "deploy")
ARROWS = {
    "configs": (),
    "policies": (),
    "envs": (),
    "randomization": ("envs",),
    "train": ("envs", "randomization"),
    "deploy": ("envs.layout",),
    "deploy/export.py": ("envs", "train.checkpoint"),
}
HEAVY = {"torch", "mujoco", "stable_baselines3", "gymnasium", "onnx", "onnxscript"}
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("**/*.py"))


def imports(path: Path, top_level: bool) -> set[str]:
    """Absolute names of imported modules; with top_level only those that loading runs."""
    found: set[str] = set()
    queue: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            own = ["widen", *path.relative_to(ROOT).parts[:-1]]
            base = own[: len(own) + 1 - node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
        lazy = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not (top_level and (lazy or typing_only)):
            queue += ast.iter_child_nodes(node)
    return found


def within(name: str, allowed: str) -> bool:
    return name == f"widen.{allowed}" or name.startswith(f"widen.{allowed}.")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path: Path) -> None:
    name, folder = str(path.relative_to(ROOT)), path.relative_to(ROOT).parts[0]
    door = name.startswith("train/cli") or name == "train/__main__.py"
    allowed = FOLDERS if door else (folder, *ARROWS.get(name, ARROWS[folder]))
    used = {module for module in imports(path, top_level=False) if module.startswith("widen.")}
    wrong = {module for module in used if not any(within(module, a) for a in allowed)}
    assert not wrong, f"{name} must not import {sorted(wrong)}"
    if door or name == "train/run_folder.py" or (folder == "deploy" and name not in ARROWS):
        heavy = {module.split(".")[0] for module in imports(path, top_level=True)} & HEAVY
        assert not heavy, f"{name} must import {sorted(heavy)} inside functions only"


@pytest.mark.parametrize(
    "module", ["widen.deploy.runtime", "widen.deploy.controller", "widen.deploy.sim_robot"]
)
def test_a_robot_computer_needs_neither_torch_nor_mujoco(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert module in loaded
    assert not {"torch", "mujoco"} & set(loaded)

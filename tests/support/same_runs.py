"""Whether two runs wrote the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


def log(run: Path) -> list[dict[str, Any]]:
    """The lines of adr.jsonl, without what a clock measured."""
    lines = [json.loads(line) for line in (run / "adr.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "fps")} for line in lines]


def newest(run: Path) -> dict[str, Any]:
    """The content of the last checkpoint."""
    path = max((run / "checkpoints").glob("*.pt"))
    return torch.load(path, weights_only=True)


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """To the last bit, but for "seconds"."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key != "seconds":
                assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        if a.is_floating_point():
            a, b = a.nan_to_num(7.5), b.nan_to_num(7.5)
        assert torch.equal(a, b), where
    else:
        assert a == b or (a != a and b != b), where

"""Which source made a policy: one hash of all of widen's own files."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

SOURCES = {
    "envs": ("*.py", "assets/*.xml"),
    "randomization": ("*.py",),
    "train": ("*.py",),
    "deploy": ("*.py",),
}
"""packages in which a policy and its figures are made, and the files in them that matter"""


def source_sha256() -> str:
    """SHA-256 over paths and contents of the files as they are on the disk now.

    The same for a checkout and for a package installed from it; nothing depends on git.
    """
    told = hashlib.sha256()
    for name, patterns in SOURCES.items():
        spec = find_spec(f"widen.{name}")
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
            told.update(f"{name}/{path.relative_to(folder).as_posix()}\n".encode())
            told.update(path.read_bytes())
    return told.hexdigest()

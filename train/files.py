"""Files that are written whole or not at all, and errors that name them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the system inside get the path, which those of a write lack.

    Raises:
        OSError: with errno, its meaning and the path, or another that has one already.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write_whole(path: Path, content: bytes) -> None:
    """Put a file in place complete and on disk, or leave what was there and nothing beside it.

    Raises:
        OSError: names the path, as when the disk is full.
    """
    beside = path.with_name(f"{path.name}.tmp")
    try:
        with open(beside, "wb", buffering=0) as file:
            _write_all(file.fileno(), content)
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:  # a signal, too, must not leave what takes up a full disk
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def append_whole(path: Path, content: bytes) -> None:
    """Add to the end of a file by one write, so that a reader never sees half of it, or not at all.

    Raises:
        OSError: names the path, as when the disk is full.
    """
    with naming(path), open(path, "ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            _write_all(file.fileno(), content)
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise


def _write_all(descriptor: int, content: bytes) -> None:
    """A disk that becomes full takes a part first, and only the next write tells why."""
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]

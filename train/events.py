"""TensorBoard's events, whose trouble with the disk is told as every other file's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat

from .files import naming


class _Events(TensorBoardOutputFormat):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with naming(folder):
            super().__init__(str(folder))

    def write(self, *args: Any, **kwargs: Any) -> None:
        with naming(self._folder):
            super().write(*args, **kwargs)


def events_logger(folder: Path) -> Logger:
    """A logger of stable-baselines3 that writes TensorBoard's events and nothing else.

    Raises:
        OSError: here and when it writes; names the folder.
    """
    return Logger(str(folder), [_Events(folder)])


@contextmanager
def told_once() -> Iterator[None]:
    """Keep TensorBoard's thread from printing an error that it hands to the next write as well."""
    before = threading.excepthook

    def hook(args: Any) -> None:
        ours = type(args.thread).__module__.startswith("tensorboard.")
        if not (ours and isinstance(args.exc_value, OSError)):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before

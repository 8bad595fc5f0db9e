"""An emergency stop that latches: once pressed, it stays so until it is reset by hand."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO


class EmergencyStop:
    """Pressed by anybody, from any thread; the controller asks once in each cycle.

    Attributes:
        reason: "" until it is pressed; then who did it first.
    """

    def __init__(
        self,
        *,
        file: str | Path | None = None,
        callbacks: tuple[Callable[[], bool], ...] = (),
    ) -> None:
        """Nothing pressed.

        Args:
            file: pressed when this path exists, for scripts and other machines.
            callbacks: pressed when one returns True or raises.

        Raises:
            ValueError: the file is there already.
        """
        self.reason = ""
        self._file = os.fspath(file) if file is not None else None
        self._callbacks = callbacks
        if self._file is not None and os.path.exists(self._file):
            raise ValueError(f"stop file {self._file} exists: expected none before the run begins")

    def press(self, reason: str = "callback") -> None:
        """Latch; the first reason stays."""
        self.reason = self.reason or reason

    def reset(self) -> None:
        """Release it. A stop file or callback that still says so presses it again at once."""
        self.reason = ""

    def pressed(self) -> bool:
        """Whether to stop."""
        if not self.reason and self._file is not None and os.path.exists(self._file):
            self.press("file")
        for callback in () if self.reason else self._callbacks:
            try:
                asked = callback()
            except Exception as error:  # whatever watches the stop is broken: stop
                self.press(f"callback: {type(error).__name__}")
            else:
                if asked:
                    self.press()
        return bool(self.reason)

    @contextlib.contextmanager
    def listen(self, keys: TextIO | None = None) -> Iterator[None]:
        """Also pressed by SIGUSR1 and, on a terminal, by the Enter key.

        Args:
            keys: where lines are typed; None for standard input if it is a terminal.
        """
        handlers = {"SIGUSR1": lambda *_: self.press("signal"), "SIGTTIN": signal.SIG_IGN}
        # a job in the background would be stopped, with the motors on, for reading its terminal
        before = {}
        if threading.current_thread() is threading.main_thread():
            for name, handler in handlers.items():
                if (number := getattr(signal, name, None)) is not None:  # not every system has it
                    before[number] = signal.signal(number, handler)
        if keys is None and sys.stdin is not None and sys.stdin.isatty():
            keys = sys.stdin
        if keys is not None:
            threading.Thread(target=self._read, args=(keys,), daemon=True).start()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _read(self, keys: TextIO) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed while it waited
            while keys.readline():
                self.press("key")

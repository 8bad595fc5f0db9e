"""Where the time of training goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Seconds spent in sections of a program, by name.

    On a GPU the host runs ahead and its clock would measure launches; there every section is
    marked by a pair of events, which are looked at only by `read`.
    """

    def __init__(self, device: torch.device) -> None:
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, Any, Any]] = []
        self.section = self._on_gpu if device.type == "cuda" else self._on_host

    @contextmanager
    def _on_host(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    @contextmanager
    def _on_gpu(self, name: str) -> Iterator[None]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self._events.append((name, start, end))

    def read(self) -> dict[str, float]:
        """Seconds by name since the last call. Waits for the device."""
        for name, start, end in self._events:
            end.synchronize()
            self._seconds[name] = self._seconds.get(name, 0.0) + start.elapsed_time(end) / 1e3
        self._events.clear()
        seconds, self._seconds = self._seconds, {}
        return seconds

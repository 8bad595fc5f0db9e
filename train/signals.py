"""How a training ends by Ctrl-C or SIGTERM at any moment."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ranks import Ranks

# [s] torchrun passes a terminal's Ctrl-C on to processes that have had it already
_ONE_REQUEST = 1.0


class Stopped(KeyboardInterrupt):
    """SIGTERM, where there is nothing to be saved."""

    number = int(signal.SIGTERM)


@contextmanager
def stop_at_once() -> Iterator[None]:
    """SIGTERM raises `Stopped`, as Ctrl-C raises KeyboardInterrupt."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped

    if threading.current_thread() is not threading.main_thread():
        yield  # where Python allows no handlers, and signals do not come
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_when_saved(ranks: Ranks) -> Iterator[None]:
    """SIGINT and SIGTERM end the run after the iteration under way, saved.

    A second Ctrl-C, once the first has had a second, is meant to be quicker: it raises
    KeyboardInterrupt at once. A repeated SIGTERM is not; who wants that sends SIGKILL.
    """
    from .ranks import RankLost

    first_at = 0.0

    def request(number: int, frame: Any) -> None:
        nonlocal first_at
        now = time.monotonic()
        if not ranks.stop_requested:
            ranks.stop_requested, first_at = number, now
        elif number == signal.SIGINT and now - first_at > _ONE_REQUEST:
            raise KeyboardInterrupt

    before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except RankLost:
        # The handlers stay: torchrun sends SIGTERM now, and there is one line to be said yet.
        raise
    except BaseException:
        _restore(before)
        raise
    _restore(before)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)

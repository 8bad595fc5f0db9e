"""What signals do to a run on a robot."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def one_interrupt() -> Iterator[threading.Event]:
    """The first signal that asks to end raises KeyboardInterrupt, unless the event is set.

    A terminal that is lost would else end the process with the motors on, and a second Ctrl-C
    would end the stopping itself. Elsewhere than in the main thread signals are not ours.
    """
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def interrupt(number: int, frame: Any) -> None:
        if not stopping.is_set():
            stopping.set()
            raise KeyboardInterrupt

    names = ("SIGINT", "SIGTERM", "SIGHUP")  # not every system has all
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # what is ignored stays so: nohup wants a run to survive its terminal
    before = {n: h for n in numbers if (h := signal.getsignal(n)) not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

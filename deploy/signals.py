"""What signals do to a run on a robot."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interrupt:
    """What the first signal that asks to end has done.

    Attributes:
        asked: it came.
        deferred: it only sets `asked`; otherwise it raises KeyboardInterrupt as well.
    """

    def __init__(self) -> None:
        self.asked = self.deferred = False

    def handle(self, number: int, frame: Any) -> None:
        """Of every signal; those after the first do nothing."""
        first, self.asked = not self.asked, True
        if first and not self.deferred:
            raise KeyboardInterrupt


@contextlib.contextmanager
def one_interrupt() -> Iterator[Interrupt]:
    """Ctrl-C, SIGTERM and a lost terminal ask to end, once.

    A terminal that is lost would else end the process with the motors on, and a second Ctrl-C
    would end the stopping itself. While a loop runs that asks in every cycle, the exception is
    better deferred: it could come between a lock and its release. Elsewhere than in the main
    thread signals are not ours.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # not every system has all
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # what is ignored stays so: nohup wants a run to survive its terminal
    before = {n: h for n in numbers if (h := signal.getsignal(n)) not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, interrupt.handle)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

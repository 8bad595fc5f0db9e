"""`widen`, that sends itself a signal at a given moment: python signal_at.py MOMENT SIGNAL ARGUMENT..."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

MOMENTS = {  # where, what, and in which call of it
    "environments": ("widen.envs.batched", "BatchedEnv.__init__", 1),
    "first rollout": ("widen.train.ppo", "WidenPPO._setup_learn", 1),
    "folder": ("widen.train.runner", "Runner.train", 1),
    "rollout": ("widen.envs.batched", "BatchedEnv.step", 10),
    "update": ("widen.train.ppo", "WidenPPO._epoch", 3),
    "checkpoint": ("torch", "save", 1),
    "export": ("torch.onnx", "export", 1),
    "evaluation": ("widen.train.runner", "evaluate", 1),
}


def send_in(moment: str, send: Callable[[], None]) -> None:
    """Wrap the moment's function: the signal comes when it has begun."""
    import importlib

    module, path, when = MOMENTS[moment]
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    before, calls = getattr(owner, name), 0

    def after(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == when:
            send()
        return before(*args, **kwargs)

    setattr(owner, name, after)


def main() -> int:
    moment, names, *arguments = sys.argv[1:]

    def send() -> None:
        for part in names.split(","):  # SIGINT, or with a pause: SIGINT,1.5,SIGINT
            if part.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, part))
            else:
                time.sleep(float(part))

    from widen.train import cli

    send_in(moment, send)
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())

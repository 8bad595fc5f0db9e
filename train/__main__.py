"""`python -m widen.train CONFIG ...` is `widen train CONFIG ...`; torchrun starts it like this."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

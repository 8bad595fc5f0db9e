"""Users' mistakes in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any


class Told(Exception):
    """This process ends because of something that another one tells the user."""

    def __init__(self, code: int = 2) -> None:
        """code: of the process."""
        super().__init__(code)
        self.code = code


def one_line(error: Exception) -> str | None:
    """What the user is told about an error, or None if it is no mistake of theirs."""
    # typer has its own copy of click or uses the installed one, depending on its version
    if hasattr(error, "format_message"):
        text = _usage(error)
    elif isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    elif isinstance(error, ModuleNotFoundError) and not _ours(error.name):
        # a robot computer has only what deploy/requirements.txt lists
        text = f"this command needs {error.name}, which is not installed: pip install widen"
    elif isinstance(error, (ValueError, FloatingPointError)):  # the latter: training blew up
        text = str(error)
    else:
        return None
    return " ".join(text.split())


def _ours(module: str | None) -> bool:
    return module is None or module.split(".")[0] == "widen"


def near(name: str, names: Iterable[str]) -> str:
    """The names most like a misspelt one, or else all of them."""
    names = list(names)
    return " or ".join(difflib.get_close_matches(name, names, 3, 0.5) or names)


def _usage(error: Any) -> str:
    """A command line that cannot be parsed: which command, what is wrong, what would be right."""
    context = getattr(error, "ctx", None)
    message = error.format_message().replace("Input should be", "expected")
    if context is None:
        return message
    path, command = context.command_path, context.command
    if message.startswith("No such option"):
        options = [name for parameter in command.params for name in parameter.opts if "-" in name]
        name = error.option_name
        return f"{path}: no such option {name}; expected {near(name, [*options, '--help'])}"
    if unknown := re.match("No such command '(.*?)'", message):
        name = unknown[1]
        return f"{path}: no such command {name}; expected {near(name, command.commands)}"
    return f"{path}: {message.rstrip('.')}; see {path} --help"

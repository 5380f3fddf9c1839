"""What commands share: default folders, exit codes, and options of the form NAME=VALUE."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from methods.core.errors import UserError

DEFAULT_METHODS = ["vanilla", "medusa", "eagle2", "s4c"]
RESULTS = Path("results")
INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C
FAULT = 70  # sysexits' EX_SOFTWARE

console = Console()


def pairs(option: str, given: Sequence[str] | None) -> dict[str, str]:
    """``["a=b"]`` -> ``{"a": "b"}``; split at the last sign, since an arm's name may hold one. Raises UserError."""
    found = {}
    for text in given or []:
        key, _, value = text.rpartition("=")
        if not key or not value:
            raise UserError(f"{option} {text!r} is not NAME=VALUE")
        found[key] = value
    return found

"""Atomic file writes: a killed process or machine never leaves a half-written file under the final name."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from methods.core.errors import UserError

NEXT_STEP = "choose another place"


def check_writable(path: Path, *, folder: bool = False, option: str = "--out") -> None:
    """Raise UserError unless a file can be written at ``path``, or into it where it is a ``folder``.

    Nothing is created: missing folders pass where they could be made. ``option`` is the command-line
    option that the error tells the user to change.
    """
    if not folder and path.is_dir():
        raise UserError(f"{path} is a directory; name a file")

    parent = path if folder else path.parent
    try:
        existing = next(place for place in (parent, *parent.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {path} ({error.strerror}); choose another {option} or make room there") from None


def make_folder(path: Path, next_step: str = NEXT_STEP) -> Path:
    """Return the folder, created where it is missing. Raises UserError where it cannot be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {path} cannot be made ({error.strerror}); {next_step}") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"folder {path} cannot be written to; {next_step}")
    return path


@contextmanager
def atomic_write(path: Path, next_step: str = NEXT_STEP) -> Iterator[Path]:
    """Yield a partial file's path, and rename that file to ``path`` when the block ends without an error.

    The folder is created where it is missing. Raises UserError, ending in ``next_step``, where the
    file cannot be written.
    """
    make_folder(path.parent, next_step)
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a file")

    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); {next_step}") from None


def write_text(path: Path, text: str, next_step: str = NEXT_STEP) -> None:
    """Write a text file atomically, in UTF-8. Raises UserError as ``atomic_write`` does."""
    with atomic_write(path, next_step) as partial:
        partial.write_text(text, encoding="utf-8")

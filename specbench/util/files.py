"""File writes that lose nothing: atomic ones, and the check that no file of a run and no input is written over."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from methods.core.errors import UserError

NEXT_STEP = "choose another place"
RUN_FILES = MANIFEST, RECORDS, PACKED, AGREEMENT = "manifest.json", "records.jsonl", "records.jsonl.xz", "agreement.json"


def check_writable(path: Path, *, folder: bool = False, option: str = "--out", inputs: Iterable[Path | str | None] = ()) -> None:
    """Raise UserError unless a file can be written at ``path``, or into it where it is a ``folder``.

    A file of a run is never written over, nor one of ``inputs``: what the command reads, where a folder stands for the files
    in it. Nothing is created: missing folders pass where they could be made. ``option`` is the command-line option that the
    error tells the user to change.
    """
    if not folder and path.is_dir():
        raise UserError(f"{path} is a directory; name a file")
    if not folder:
        _check_lost(path, option, inputs)

    parent = path if folder else path.parent
    try:
        existing = next(place for place in (parent, *parent.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {path} ({error.strerror}); choose another {option} or make room there") from None


def _check_lost(path: Path, option: str, inputs: Iterable[Path | str | None]) -> None:
    """Raise UserError if a file written at ``path`` would take the place of a run's file, or of an input."""
    target = path.resolve()
    for place in (path.parent.resolve() / path.name, target):  # either may be the run's, if the path is a link
        if place.name in RUN_FILES and holds_run(place.parent):
            raise UserError(f"{path} is a file of the run in {place.parent}; choose another {option}")

    for used in (Path(given).resolve() for given in inputs if given):
        if target == used or (target.parent == used and target.exists()):
            raise UserError(f"{path} is a file that this command reads or writes otherwise; choose another {option}")


def holds_run(folder: Path) -> bool:
    """Return whether a folder holds any file of a run."""
    return any((folder / name).exists() for name in RUN_FILES)


def absolute(name: str) -> str:
    """Return the absolute path of a file or folder that exists; another name, such as a hub id, as it is."""
    return str(Path(name).absolute()) if name and Path(name).exists() else name


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

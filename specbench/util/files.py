"""Files that are there whole or not at all: work that is killed leaves nothing a rerun would trip over."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from methods.core.errors import UserError


def folder(path: Path) -> Path:
    """The folder, made where it is missing. Raises UserError where nothing can be written into it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {path} cannot be made ({error.strerror}); choose another place") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"folder {path} cannot be written to; choose another place")
    return path


def writable(path: Path) -> Path:
    """The file's path, its folder made. Raises UserError where no file can be written there."""
    folder(path.parent)
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a file")
    return path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A partial file to write to, which becomes ``path`` when the block ends without an error."""
    partial = writable(path).with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); choose another place") from None


def save(path: Path, array: np.ndarray) -> None:
    """The array as a .npy file."""
    with whole(path) as partial, partial.open("wb") as file:
        np.save(file, array)

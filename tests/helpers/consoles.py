"""Consoles that print into memory."""

import io

from specbench.util.terminal import Console


def printed(console: Console) -> str:
    """Return what a console over a ``StringIO`` has printed."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()

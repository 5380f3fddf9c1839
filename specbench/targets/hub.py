"""Stand-in for hub ids: local folders alone. The branch `targets` brings the real one, of the same signature."""

from pathlib import Path

from methods.core.errors import UserError


def folder(name: str, revision: str | None = None, what: str = "target") -> Path:
    """A local folder as it is. Raises UserError for what is none."""
    if not Path(name).is_dir():
        raise UserError(f"{what} {name!r} is no folder here; check the path")
    return Path(name)

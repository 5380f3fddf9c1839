"""Options of the form NAME=VALUE, shared by the commands."""

from collections.abc import Sequence

from methods.core.errors import UserError


def pairs(option: str, given: Sequence[str] | None) -> dict[str, str]:
    """``["a=b"]`` -> ``{"a": "b"}``; split at the last sign, since an arm's name may hold one. Raises UserError."""
    found = {}
    for text in given or []:
        key, _, value = text.rpartition("=")
        if not key or not value:
            raise UserError(f"{option} {text!r} is not NAME=VALUE")
        found[key] = value
    return found

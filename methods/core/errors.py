"""Errors that the user can fix, as opposed to bugs of this package."""

import difflib
from collections.abc import Iterable, Mapping


class UserError(Exception):
    """An error in the input, told in one line: what is wrong, its value, what to do next."""


class WeightsError(UserError):
    """An error for missing or unusable drafter weights; weights of ``kind`` are needed instead.

    ``architecture`` holds the options these weights must have been trained with, where the
    defaults do not fit. The message says what is wrong only: how to train or pass weights is known
    to the program that uses this package.
    """

    def __init__(self, message: str, kind: str, architecture: Mapping[str, str] | None = None):
        super().__init__(message)
        self.kind, self.architecture = kind, architecture or {}


def check_range(name: str, value: int, most: int, least: int = 1) -> None:
    """Raise UserError unless ``least <= value <= most``; for the methods' options."""
    if not least <= value <= most:
        raise UserError(f"{name} is {value}; choose {least} to {most}")


def unknown(what: str, value: str, choices: Iterable[str], others: Iterable[str] = ()) -> UserError:
    """Return the error for a name that does not exist, with the closest choice and all choices.

    Example: ``unknown method 'medsua'; did you mean 'medusa'? choices: ...``. Names in ``others``
    are valid too and can be suggested, but are too many to list.
    """
    names = sorted(choices)
    near = difflib.get_close_matches(value, [*names, *others], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {what} {value!r}; {hint}choices: {', '.join(names)}")

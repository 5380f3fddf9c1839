"""What goes wrong because of the input, as opposed to because of us."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """One line for the user: what, which value, what to do next. The CLI prints it and exits with 2."""


def check_range(name: str, value: int, most: int, least: int = 1) -> None:
    """For the methods' Configs and Architectures: raise UserError on a number out of range."""
    if not least <= value <= most:
        raise UserError(f"{name} is {value}; choose {least} to {most}")


def unknown(what: str, value: str, choices: Iterable[str], others: Iterable[str] = ()) -> UserError:
    """``unknown method 'medsua'; did you mean 'medusa'? choices: …``; ``others`` can be meant too and are too many to list."""
    names = sorted(choices)
    near = difflib.get_close_matches(value, [*names, *others], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {what} {value!r}; {hint}choices: {', '.join(names)}")

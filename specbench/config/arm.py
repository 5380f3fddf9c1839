"""Arms: the entries of a run that are measured beside each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from methods.core.errors import UserError

BASELINE = "vanilla"  # the arm every other is compared with
AGAIN = "#2"  # suffix of the arm that repeats another one unchanged in an A/A test


@dataclass(frozen=True)
class Arm:
    """One configured entry of a run: a method or another engine with its options, as named by `--method`.

    ``options`` are the arm's own, as text. ``repeat_of`` names the arm that this one repeats in an A/A test, else "".
    """

    name: str
    method: str
    options: Mapping[str, str] = field(default_factory=dict)
    repeat_of: str = ""

    @classmethod
    def parse(cls, text: str) -> "Arm":
        """Return the arm named ``NAME`` or ``NAME:KEY=VALUE,...``. Raises UserError for an option given twice."""
        method, _, given = text.partition(":")
        options: dict[str, str] = {}
        for pair in filter(None, given.split(",")):
            key, _, value = pair.partition("=")
            if key in options:
                raise UserError(f"arm {text!r} gives its option {key!r} twice; keep one of them")
            options[key] = value
        return cls(text, method, options)

    @property
    def variant(self) -> str:
        """The arm's own options as the suffix of its title: a space and the options, or "" without any."""
        return self.name.removesuffix(AGAIN).removeprefix(self.method).replace(":", " ", 1)

    @staticmethod
    def is_reserved(name: str) -> bool:
        """Return whether a name belongs to the baseline or to an arm that repeats another one."""
        return name == BASELINE or name.endswith(AGAIN)

    def again(self) -> "Arm":
        """Return an arm that repeats this one in an A/A test."""
        return replace(self, name=self.name + AGAIN, repeat_of=self.name)

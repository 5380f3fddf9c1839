"""How far a server's count of an answer's tokens may be from ours."""

from typing import NamedTuple


class CountTolerance(NamedTuple):
    """How far a server's count of an answer's tokens may be from ours: ``tokens`` plus ``share`` of ours.

    Text that is tokenized again has lost its stop token and may split in other places, so small differences are no error.
    """

    tokens: int
    share: float

    def exceeded(self, reported: float, counted: float) -> bool:
        """Return whether the server's count is farther from ours than that."""
        return abs(reported - counted) > self.tokens + self.share * counted

    def __str__(self) -> str:
        return f"{self.tokens} tokens and {self.share:.0%}"


REMARKED = CountTolerance(2, 0.02)  # beyond it, a report says so
REFUSED = CountTolerance(8, 0.25)  # beyond it, the turn is an error

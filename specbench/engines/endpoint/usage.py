"""How far a server's count of tokens may be from ours before it is remarked on, and before it is not believed."""

from typing import NamedTuple


class Tolerance(NamedTuple):
    """In tokens and as a share of ours, added up: a text read back loses its stop token and may split elsewhere."""

    tokens: int
    share: float

    def exceeded(self, told: float, counted: float) -> bool:
        return abs(told - counted) > self.tokens + self.share * counted

    def __str__(self) -> str:
        return f"{self.tokens} tokens and {self.share:.0%}"


REMARKED = Tolerance(2, 0.02)
REFUSED = Tolerance(8, 0.25)

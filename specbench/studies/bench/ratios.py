"""V(n): what verifying a tree of n nodes takes, in plain steps."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from specbench.util.table import TextTable, number

TREES = (8, 64)


class VerifyRatio(NamedTuple):
    """One target in one dtype on one back end; ``seconds`` by n: of a plain step (1) and of ``TREES``."""

    target: str
    dtype: str
    backend: str
    past: int
    seconds: Mapping[int, float]

    def rows(self) -> list[dict[str, Any]]:
        """For the CSV."""
        shared = {"dtype": self.dtype, "backend": self.backend, "unit": "ratio"}
        return [{"what": f"V({n}) of {self.target}", "median": self.seconds[n] / self.seconds[1], **shared} for n in TREES]

    def cells(self) -> list[str]:
        ratios = [number(self.seconds[n] / self.seconds[1]) for n in TREES]
        return [self.target, self.dtype, self.backend, str(self.past), number(1e3 * self.seconds[1]), *ratios]


def table(ratios: Sequence[VerifyRatio]) -> TextTable:
    headers = ["Target", "dtype", "Back end", "Past tokens", "T(1) ms", *(f"V({n})" for n in TREES)]
    return TextTable("Verifying n nodes, in plain steps", headers, [each.cells() for each in ratios])

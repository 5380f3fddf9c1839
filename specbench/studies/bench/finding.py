"""A finding: paired ratios, what their median should be, and whether it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from specbench.util.table import NONE, TextTable

MET, MISSED, UNMEASURED = "met", "missed", "not measured"


class Quartiles(NamedTuple):
    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles":
        """NaN where nothing was measured."""
        return cls(*np.quantile(values, (0.25, 0.5, 0.75))) if values else cls(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Finding:
    """One row of the benchmark: ``ratios``, one a pair, and the bound their median has to keep.

    A share (``is_share``) has to stay at or below ``wanted``, a speed ratio to reach it.
    """

    what: str
    ratios: Sequence[float]
    wanted: float
    is_share: bool = False
    remark: str = ""

    @property
    def quartiles(self) -> Quartiles:
        return Quartiles.of(self.ratios)

    @property
    def verdict(self) -> str:
        if not self.ratios:
            return UNMEASURED
        median = self.quartiles.median
        return MET if (median <= self.wanted if self.is_share else median >= self.wanted) else MISSED

    def row(self) -> dict[str, Any]:
        """For the CSV."""
        low, median, high = self.quartiles
        counts = {"count": len(self.ratios), "unit": "share" if self.is_share else "ratio"}
        return {"what": self.what, "median": median, "low": low, "high": high, **counts, "wanted": self.wanted, "verdict": self.verdict}

    def cells(self) -> list[str]:
        low, median, high = map(self._shown, self.quartiles)
        wanted = f"{'at most' if self.is_share else 'at least'} {self._shown(self.wanted)}"
        return [self.what, median, f"{low} to {high}", str(len(self.ratios)), wanted, self.verdict, self.remark or NONE]

    def _shown(self, value: float) -> str:
        if np.isnan(value):
            return NONE
        return f"{value:.2%}" if self.is_share else f"{value:.3f}x"


def table(findings: Sequence[Finding]) -> TextTable:
    headers = ["What", "Median", "Quartiles", "Pairs", "Wanted", "Verdict", "Remark"]
    return TextTable("Speed against other loops, and the harness' own share", headers, [each.cells() for each in findings])

"""A finding: paired ratios, the bound for their median, and a verdict."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from specbench.studies.base import table
from specbench.util.text import NONE, TextTable

MET, MISSED, UNMEASURED = "met", "missed", "not measured"


class Quartiles(NamedTuple):
    """The quartiles of some values."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles":
        """Return the quartiles of the values; NaN without any."""
        return cls(*np.quantile(values, (0.25, 0.5, 0.75))) if values else cls(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Finding:
    """One row of the benchmark: ``ratios``, one a pair, and the bound ``wanted`` for their median.

    A share (``is_share``) must not exceed the bound; a speed ratio must reach it.
    """

    what: str
    ratios: Sequence[float]
    wanted: float
    is_share: bool = False
    remark: str = ""

    @property
    def quartiles(self) -> Quartiles:
        """The quartiles of the ratios."""
        return Quartiles.of(self.ratios)

    @property
    def verdict(self) -> str:
        """Whether the median keeps the bound: ``MET``, ``MISSED``, or ``UNMEASURED``."""
        if not self.ratios:
            return UNMEASURED
        median = self.quartiles.median
        return MET if (median <= self.wanted if self.is_share else median >= self.wanted) else MISSED

    @property
    def bound(self) -> str:
        """The bound in words."""
        return f"{'at most' if self.is_share else 'at least'} {self._shown(self.wanted)}"

    @property
    def median(self) -> str:
        """The median as a cell."""
        return self._shown(self.quartiles.median)

    def row(self) -> dict[str, Any]:
        """Return the finding as a row of the CSV file."""
        low, median, high = self.quartiles
        counts = {"count": len(self.ratios), "unit": "share" if self.is_share else "ratio"}
        return {"what": self.what, "median": median, "low": low, "high": high, **counts, "wanted": self.wanted, "verdict": self.verdict}

    def cells(self) -> dict[str, str]:
        """Return the finding as a row of the table."""
        low, _, high = map(self._shown, self.quartiles)
        return {
            "What": self.what,
            "Median": self.median,
            "Quartiles": f"{low} to {high}",
            "Pairs": str(len(self.ratios)),
            "Wanted": self.bound,
            "Verdict": self.verdict,
            "Remark": self.remark or NONE,
        }

    def _shown(self, value: float) -> str:
        if np.isnan(value):
            return NONE
        return f"{value:.2%}" if self.is_share else f"{value:.3f}x"


def findings_table(findings: Sequence[Finding]) -> TextTable:
    """Return the table of findings."""
    return table("Speed beside other loops, and the harness' share of the time", [finding.cells() for finding in findings])

"""A finding: paired ratios, what their median should be, and whether it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from rich.table import Table


class Quartiles(NamedTuple):
    low: float
    median: float
    high: float


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
        """NaN where nothing was measured."""
        return Quartiles(*np.quantile(self.ratios, (0.25, 0.5, 0.75))) if self.ratios else Quartiles(np.nan, np.nan, np.nan)

    @property
    def verdict(self) -> str:
        """ "met", "missed" or "not measured"."""
        if not self.ratios:
            return "not measured"
        median = self.quartiles.median
        return "met" if (median <= self.wanted if self.is_share else median >= self.wanted) else "missed"

    def shown(self, value: float) -> str:
        if np.isnan(value):
            return "-"
        return f"{value:.2%}" if self.is_share else f"{value:.3f}x"


def table(findings: Sequence[Finding]) -> Table:
    rows = Table("what", "median", "quartiles", "pairs", "wanted", "verdict", "remark")
    for each in findings:
        low, median, high = map(each.shown, each.quartiles)
        wanted = f"{'at most' if each.is_share else 'at least'} {each.shown(each.wanted)}"
        rows.add_row(each.what, median, f"{low} to {high}", str(len(each.ratios)), wanted, each.verdict, each.remark)
    return rows

"""Tables of finished text cells, for the terminal and for Markdown."""

import re
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import rich.box
import rich.table
from rich.text import Text

from specbench.util.text import escape

NONE = "\N{EM DASH}"
NUMBER = re.compile(rf"(?:[+-]?[\d.,]+\s?(?:[x%]|of)?(?:[\s,/].*)?|{NONE})", re.DOTALL)
UNBROKEN = 20  # characters of a cell that a narrow terminal keeps on one line


@dataclass(frozen=True)
class TextTable:
    """Headers and rows of finished cells; the first column names the row."""

    title: str
    headers: list[str]
    rows: list[list[str]]

    @property
    def sides(self) -> list[Literal["left", "right"]]:
        """The side each column is aligned to: numbers to the right, words to the left."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.headers)
        return ["right" if column and all(map(NUMBER.fullmatch, column)) else "left" for column in columns]

    def telling(self, header: str) -> "TextTable":
        """Without the column where it says nothing of any row."""
        place = self.headers.index(header)
        if any(cells[place] != NONE for cells in self.rows):
            return self
        rows = [[*cells[:place], *cells[place + 1 :]] for cells in self.rows]
        return TextTable(self.title, [*self.headers[:place], *self.headers[place + 1 :]], rows)

    def markdown(self) -> str:
        rule = ["---:" if side == "right" else "---" for side in self.sides]
        return "\n".join("| " + " | ".join(map(escape, cells)) + " |" for cells in (self.headers, rule, *self.rows))

    def rich(self) -> rich.table.Table:
        table = rich.table.Table(title=Text(self.title), title_justify="left", box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        longest = [max(map(len, column)) for column in zip(*self.rows, strict=True)] or [0] * len(self.headers)
        for header, side, width in zip(self.headers, self.sides, longest, strict=True):
            table.add_column(Text(header), justify=side, min_width=min(width, UNBROKEN), overflow="fold")
        for cells in self.rows:
            table.add_row(*map(Text, cells))
        return table


def number(value: float, digits: int = 2, unit: str = "") -> str:
    return f"{value:,.{digits}f}{unit}" if isfinite(value) else NONE


def percent(value: float) -> str:
    return number(100 * value, 1, " %")

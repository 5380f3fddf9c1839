"""Text for the terminal and for Markdown: escaping, formatted numbers, and tables of them."""

import json
import re
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import rich.box
import rich.table
from rich.cells import cell_len
from rich.text import Text

# Characters that GitHub's Markdown takes for markup. An underscore inside a word and a lone bracket are harmless.
MARKUP = re.compile(r"[\\|`*~$]|(?<![^\W_])_|_(?![^\W_])|(?<=\])[\[(:]")

# Control characters, directional overrides, surrogates and noncharacters: a document may not hold them, or they change
# the text around them.
UNPRINTABLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff\\ufdd0-\\ufdef"
    + "".join(chr(plane * 0x10000 + last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)

NONE = "\N{EM DASH}"
NUMBER = re.compile(rf"(?:[+-]?[\d.,]+\s?(?:[x%]|of)?(?:[\s,/].*)?|{NONE})", re.DOTALL)
MIN_WIDTH = 20  # columns of a cell that a narrow terminal keeps on one line
GAP = 2  # columns between two columns of a table


def visible(text: str) -> str:
    """Return the text with a replacement sign for every character that a document cannot show."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def escape(text: str) -> str:
    """Return the text on one line, escaped so that it can neither leave a Markdown table cell nor become markup."""
    plain = visible(text.replace("\r", "\n")).replace("&", "&amp;").replace("<", "&lt;")
    return " ".join(MARKUP.sub(r"\\\g<0>", plain).split())


def one_line(text: str) -> str:
    """Return text on one line, without characters that control a terminal."""
    return visible(" ".join(text.split()))


def shorten(value: object) -> str:
    """Return the beginning of a value as JSON, for messages; what JSON lacks is shown as Python does."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}…"


@dataclass(frozen=True)
class TextTable:
    """Headers and rows of formatted cells; the first column names the row."""

    title: str
    headers: list[str]
    rows: list[list[str]]

    @property
    def sides(self) -> list[Literal["left", "right"]]:
        """The alignment of each column: numbers to the right, words to the left."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.headers)
        return ["right" if column and all(map(NUMBER.fullmatch, column)) else "left" for column in columns]

    def drop_if_empty(self, header: str) -> "TextTable":
        """Return the table without the column if it is empty in every row."""
        column = self.headers.index(header)
        if any(cells[column] != NONE for cells in self.rows):
            return self
        rows = [[*cells[:column], *cells[column + 1 :]] for cells in self.rows]
        return TextTable(self.title, [*self.headers[:column], *self.headers[column + 1 :]], rows)

    def markdown(self) -> str:
        """Return the table in Markdown, without its title."""
        rule = ["---:" if side == "right" else "---" for side in self.sides]
        return "\n".join("| " + " | ".join(map(escape, cells)) + " |" for cells in (self.headers, rule, *self.rows))

    def parts(self, width: int) -> list["TextTable"]:
        """Return the table, or tables of some of its columns each if it is wider than ``width``. The first column is in all of them."""
        if not self.headers:
            return [self]
        names, *others = self._widths(MIN_WIDTH)
        groups: list[list[int]] = [[]]
        for column, own in enumerate(others, start=1):
            taken = names + sum(others[place - 1] + GAP for place in groups[-1])
            if groups[-1] and taken + own + GAP > width:
                groups.append([])
            groups[-1].append(column)
        if len(groups) == 1:
            return [self]
        return [
            TextTable(
                f"{self.title} (part {number} of {len(groups)})",
                [self.headers[0], *(self.headers[column] for column in group)],
                [[cells[0], *(cells[column] for column in group)] for cells in self.rows],
            )
            for number, group in enumerate(groups, start=1)
        ]

    def rich(self, width: int | None = None) -> rich.table.Table:
        """Return the table for a rich console, with cells folded where it would be wider than ``width``."""
        table = rich.table.Table(
            title=Text(self.title),
            title_justify="left",
            box=rich.box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            collapse_padding=True,
        )
        widths, whole = self._widths(MIN_WIDTH), self._widths()
        spare = sum(whole) if width is None else max(width - sum(widths) - GAP * (len(widths) - 1), 0)
        for column, (header, side) in enumerate(zip(self.headers, self.sides, strict=True)):
            more = min(whole[column] - widths[column], spare)  # of what is left, the first columns take what they need
            spare -= more
            table.add_column(Text(header), justify=side, width=widths[column] + more, overflow="fold")
        for cells in self.rows:
            table.add_row(*map(Text, cells))
        return table

    def _widths(self, most: int | None = None) -> list[int]:
        """Return the width of every column on a terminal. ``most``: where longer cells are folded, and headers at every space."""
        widths = []
        for header, *cells in zip(self.headers, *self.rows, strict=True):
            longest = max([header] if most is None else header.split(), key=cell_len, default="")
            whole = max(cell_len(visible(text)) for text in (longest, *cells))
            widths.append(whole if most is None else min(whole, most))
        return widths


def number(value: float, digits: int = 2, unit: str = "") -> str:
    """Format a number with thousands separators, or a dash where it is not finite."""
    return f"{value:,.{digits}f}{unit}" if isfinite(value) else NONE


def percent(value: float) -> str:
    """Format a share as a percentage with one decimal."""
    return number(100 * value, 1, " %")

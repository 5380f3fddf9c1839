"""Text in figures: names of any length, number and script, so that no label overlaps another or lacks a glyph."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from matplotlib.font_manager import findfont, fontManager, get_font
from rich.cells import cell_len, chop_cells

from specbench.analysis.frames import OVERALL
from specbench.util.text import visible

FONT = "DejaVu Sans"  # comes with matplotlib
LABEL_WIDTH = 34  # columns of a label on one line
MOST_CATEGORIES = 24  # that a figure draws
LONGEST = 80  # columns of a label, as a terminal counts them, of which a figure shows more than "…"


def families(texts: Iterable[str]) -> tuple[list[str], set[str]]:
    """Return the fonts that draw the texts, matplotlib's own first, and the characters that no font here has."""
    missing = {sign for text in texts for sign in text if not sign.isspace()} - _signs(findfont(FONT))
    found = [FONT]
    for entry in sorted(fontManager.ttflist, key=lambda entry: (entry.name, entry.fname)):
        if not missing:
            break
        usable = entry.style == "normal" and "Last Resort" not in entry.name  # that one draws boxes
        if usable and missing & _signs(entry.fname):
            found.append(entry.name)
            missing -= _signs(entry.fname)
    return found, missing


@cache
def _signs(file: str | Path) -> frozenset[str]:
    return frozenset(map(chr, get_font(file).get_charmap()))


def labels(names: Mapping[str, str], kind: str, missing: set[str]) -> dict[str, str]:
    """Return a figure's labels by name. One with a character that no font has becomes the number of its place: "category 3"."""
    shown = ((name, visible(label)) for name, label in names.items())
    return {name: f"{kind} {number}" if missing & set(label) else shortened(label) for number, (name, label) in enumerate(shown, start=1)}


def numbered(drawn: Mapping[str, str], names: Mapping[str, str], missing: set[str]) -> list[str]:
    """Return what the numbers among a figure's labels stand for, one text each."""
    return [f"{label} is {names[name]}" for name, label in drawn.items() if missing & set(visible(names[name]))]


def plain(text: str, missing: set[str]) -> str:
    """Return text with "?" for every character that no font has."""
    return "".join("?" if sign in missing else sign for sign in visible(text))


def shortened(label: str) -> str:
    """Return the beginning of a label that is too long for a figure."""
    return label if cell_len(label) <= LONGEST else f"{chop_cells(label, LONGEST - 1)[0]}…"


def wrapped(label: str, width: int) -> str:
    """Break a label into lines at spaces and after commas; a word that is too long for a line at its hyphens, or anywhere."""
    lines = [""]
    for part in _parts(label, width):
        if lines[-1] and cell_len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _parts(label: str, width: int) -> Iterator[str]:
    """Yield the parts of a label that stay on one line."""
    for word in re.split(r"(?<=[\s,])", label):
        fits = cell_len(word.rstrip()) <= width
        for part in [word] if fits else re.split(r"(?<=-)", word):
            yield from [part] if cell_len(part.rstrip()) <= width else chop_cells(part, width)


def chosen_categories(names: Mapping[str, str], questions: Mapping[str, int]) -> dict[str, str]:
    """Return the categories that a figure draws: those with the most questions if there are many, in the given order."""
    if len(names) - 1 <= MOST_CATEGORIES:
        return dict(names)
    order: Sequence[str] = sorted(questions, key=lambda name: -questions[name])
    kept = {*order[:MOST_CATEGORIES], OVERALL}
    return {name: label for name, label in names.items() if name in kept}

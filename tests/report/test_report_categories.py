"""Suites of many categories, and names of any length and script: figures and tables show all of it, or say what they leave out."""

import warnings
from collections import Counter
from itertools import pairwise
from unittest.mock import patch

import matplotlib
import pandas as pd
import pytest
from helpers.scripted_records import turn, write_run
from matplotlib.font_manager import findfont, get_font

from specbench.analysis.frames import OVERALL
from specbench.report import compose, figure_text, figures, html, tables
from specbench.report.canvas import RC, FigureContext
from specbench.report.figure_text import FONT, LONGEST, families, labels, shortened, wrapped
from specbench.report.speedup_figure import speedup_figure
from specbench.util.terminal import Console, print_table
from specbench.util.text import TextTable

NO_GLYPH = "\u0378"  # is no character, so that no font has it
ARMS = {"vanilla": "Vanilla", "pld": "Prompt lookup", "s4c": "S4C"}


def comparison(names):
    """Return the columns of a comparison table that a figure and a table of speedups need."""
    rows = [
        {"arm": arm, "category": category, "speedup": value, "speedup_low": value - 0.1, "speedup_high": value + 0.1}
        for place, category in enumerate((*names, OVERALL))
        for arm, value in zip(ARMS, (1.0, 1.25 + place / 100, 1.5), strict=True)
    ]
    return pd.DataFrame(rows)


def drawn(names):
    """Return the boxes of the names below or beside the bars, in their order on the page, and whether the bars are upright."""
    titles = {name: name for name in names} | {OVERALL: "Overall"}
    fonts, missing = families(titles.values())
    context = FigureContext(ARMS, labels(titles, "category", missing), "target", None, fonts)
    rows = comparison(names)
    with warnings.catch_warnings(), matplotlib.rc_context(RC | {"font.family": fonts}):
        warnings.simplefilter("error")
        figure = speedup_figure(rows[rows["arm"] != "vanilla"], context)
        figure.draw_without_rendering()
    (axes,) = figure.axes
    upright = axes.get_ylabel().startswith("speedup")
    return [label.get_window_extent() for label in (axes.get_xticklabels() if upright else axes.get_yticklabels())], upright


@pytest.mark.parametrize(
    ("names", "upright"),
    [
        (["writing", "summarization", "retrieval-augmented generation"], True),
        ([f"a subject of question {number}" for number in range(12)], False),
        (["W" * 40, "WWWWW WWWWW WWWWW " * 9, "qa", "rag", "math", "code"], False),
        (
            ["数" * 20, "Übersetzung", "العربية", "qa", f"odd{NO_GLYPH}", *("ж" * 13 + end for end in "абвг")],
            False,
        ),
    ],
    ids=["three", "twelve", "wide", "scripts"],
)
def test_names_of_categories_do_not_overlap(names, upright):
    boxes, stands = drawn(names)
    assert stands is upright
    assert len(boxes) == len(names) + 1
    for left, right in pairwise(boxes):
        assert left.x1 < right.x0 if upright else left.y0 > right.y1
    assert all(box.x0 >= 0 for box in boxes)


def test_figures_of_a_report_say_what_they_leave_out_and_what_numbers_stand_for(tmp_path, monkeypatch):
    monkeypatch.setattr(figure_text, "MOST_CATEGORIES", 2)
    names = ["qa", f"odd{NO_GLYPH}", "rag"]
    rows = [turn(arm, f"q{name}", [0] * 12 if arm == "vanilla" else [2] * 4, category=name) for name in names for arm in ARMS]
    run = write_run(tmp_path / "run", rows, methods=ARMS, suite={"categories": {"qa": 1, names[1]: 5, "rag": 4}}, units_total=len(rows))
    shown = []

    def kept(figure, path):
        shown.append(figure)
        return path

    with patch.object(figures, "save", kept):
        monkeypatch.setattr(html, "_embedded", lambda png: "")
        page = compose.build([run], tmp_path / "out", Console(record=True))
    assert [label.get_text() for label in shown[0].axes[0].get_xticklabels()] == ["category 2", "RAG", "Overall"]
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    assert f"Note: drawn are the 2 categories with the most questions, the table has all; category 2 is odd{NO_GLYPH}." in text


def test_a_font_that_has_the_characters_is_used():
    own = get_font(findfont(FONT)).get_charmap()
    sign = next(chr(code) for code in get_font(findfont("STIXGeneral")).get_charmap() if code not in own and chr(code).isprintable())
    fonts, missing = families(["plain", sign])
    assert fonts[0] == FONT
    assert len(fonts) > 1
    assert missing == set()
    assert families(["plain", NO_GLYPH]) == ([FONT], {NO_GLYPH})
    assert figure_text.plain(f"a{NO_GLYPH}b", {NO_GLYPH}) == "a?b"


def test_labels_are_wrapped_by_their_width_on_the_page():
    assert wrapped("Retrieval-augmented generation", 14) == "Retrieval-\naugmented\ngeneration"
    assert wrapped("Medusa (different engine: transformers)", 34) == "Medusa (different engine:\ntransformers)"
    assert wrapped("数学推理数学推理", 8) == "数学推理\n数学推理"
    assert len(shortened("x" * 500)) == LONGEST
    assert shortened("x" * LONGEST) == "x" * LONGEST


@pytest.mark.parametrize("count", [7, 9, 11, 27, 57])
def test_a_terminal_of_80_columns_shows_every_category_and_overall(count):
    names = {f"subject {number}": f"subject {number}" for number in range(count)} | {OVERALL: "Overall"}
    table = tables.by_category(comparison(list(names)[:-1]), ARMS, names, tables.speedup, "Speedup by category")
    console = Console(record=True, width=80)
    print_table(console, table)
    shown = console.export_text()
    assert all(len(line.rstrip()) <= 80 for line in shown.splitlines())
    assert [shown.count(word) for word in ("subject", "Overall")] == [count, 1]
    assert ("Method" in shown, "Category" in shown) == (count < 10, count >= 10)
    cells = Counter(cell for row in table.rows for cell in row[1:])
    assert {cell: shown.split().count(cell) for cell in cells} == cells


def test_a_table_that_is_too_wide_is_shown_in_parts():
    headers = ["Method", *(f"column {number}" for number in range(9))]
    table = TextTable("Numbers", headers, [[f"an arm {row}", *(f"{row}.{number}" for number in range(9))] for row in range(2)])
    console = Console(record=True, width=50)
    print_table(console, table)
    shown = console.export_text()
    assert "Numbers (part 1 of 2)" in shown
    assert shown.count("an arm 1") == 2
    assert all(f"1.{number}" in shown.split() for number in range(9))
    assert all(len(line.rstrip()) <= 50 for line in shown.splitlines())
    assert table.parts(200) == [table]
    empty = TextTable("Nothing", [], [])
    assert empty.parts(80) == [empty]
    console = Console(record=True, width=10)
    print_table(console, table)
    assert all(f"1.{number}" in console.export_text(clear=False) for number in range(9)), "a part has two columns at least"

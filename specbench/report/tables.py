"""The report's tables as text: finished cells that every format, the terminal's too, gives its form."""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

import pandas as pd

from specbench.analysis.breakdown import PARTS
from specbench.analysis.frames import OVERALL
from specbench.store.manifest import MethodFacts
from specbench.util.table import NONE, TextTable, number, percent

Row = Mapping[Any, Any]  # of a frame, by column name
RECONSTRUCTION = "(reconstruction)"


def method_label(name: str, facts: MethodFacts) -> str:
    """A method's title, with what a reader must know of it: another engine, a reconstruction, kept state, lossy output (where known)."""
    title = f"{facts.title} (different engine: {facts.engine})" if facts.engine else facts.title
    if facts.reconstruction and RECONSTRUCTION not in title:
        title = f"{title} {RECONSTRUCTION}"
    if facts.state:
        title = f"{title} (keeps state)"
    return title if facts.lossless is not False else f"{title} (lossy: {facts.acceptance})"


def with_interval(row: Row, name: str) -> str:
    """``1.43x [1.38, 1.48]``; without the bracket where there is no interval."""
    if not isfinite(row[f"{name}_low"]):
        return number(row[name], unit="x")
    return f"{row[name]:.2f}x [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def _agreement(row: Row) -> str:
    if not row["comparable_turns"]:
        return NONE
    where = f", first at {row['first_divergence']:.0f}" if isfinite(row["first_divergence"]) else ""
    return f"{percent(row['agreement'])} of {_compared(row)}{where}"


def _compared(row: Row) -> str:
    return f"{row['comparable_turns']}{' by text' if row['compared_by_text'] else ''}"


Cell = Callable[[Row], str]
OVER_EAGER = "Over eager vanilla [95 %]"
SHORT: dict[str, Cell] = {
    "Speedup [95 %]": lambda row: with_interval(row, "speedup"),
    OVER_EAGER: lambda row: with_interval(row, "speedup_over_eager"),
    "As Spec-Bench": lambda row: number(row["speedup_specbench_legacy"], unit="x"),
    "MAT": lambda row: number(row["mat"]),
    "R": lambda row: number(row["round_cost"]),
    "Tokens/s": lambda row: number(row["tokens_per_s"], 1),
}
FULL: dict[str, Cell] = {
    **SHORT,
    "Tokens/s decode": lambda row: number(row["tokens_per_s_decode"], 1),
    "Decode speedup [95 %]": lambda row: with_interval(row, "speedup_decode"),
    "Same as vanilla": _agreement,
    "Repeated 4-grams": lambda row: percent(row["repetition"]),
    "Cut by length": lambda row: percent(row["stopped_by_length"]),
    "Peak MiB": lambda row: number(row["peak_mib"], 0),
    "Questions": lambda row: str(row["questions"]),
    "Left out": lambda row: str(row["excluded_questions"]),
}


def headline(comparison: pd.DataFrame, methods: Mapping[str, str], columns: Mapping[str, Cell], title: str) -> TextTable:
    """One row a method over all categories."""
    rows = comparison[comparison["category"] == OVERALL].to_dict("records")
    cells = [[methods[row["method"]], *(cell(row) for cell in columns.values())] for row in rows]
    return TextTable(title, ["Method", *columns], cells).telling(OVER_EAGER)


def shared(table: TextTable, headers: Sequence[str]) -> tuple[TextTable, dict[str, str]]:
    """The table without those of the columns ``headers`` whose cells are all alike, and that cell by header."""
    columns = dict(zip(table.headers, zip(*table.rows, strict=True), strict=True))
    alike = {name: columns[name][0] for name in headers if len(set(columns[name])) == 1}
    kept = [place for place, name in enumerate(table.headers) if name not in alike]
    rows = [[cells[place] for place in kept] for cells in table.rows]
    return TextTable(table.title, [table.headers[place] for place in kept], rows), alike


def by_category(comparison: pd.DataFrame, methods: Mapping[str, str], categories: Mapping[str, str], cell: Cell, title: str) -> TextTable:
    """One row a method, one column a category."""
    cells = {(row["method"], row["category"]): cell(row) for row in comparison.to_dict("records")}
    rows = [[label, *(cells[name, category] for category in categories)] for name, label in methods.items()]
    return TextTable(title, ["Method", *categories.values()], rows)


def by_definition(overall: Sequence[Row], methods: Mapping[str, str], names: Sequence[str]) -> TextTable:
    """The same arms, one column a definition of speedup."""
    rows = [[methods[row["method"]], *(with_interval(row, name) for name in names)] for row in overall]
    return TextTable("Speedup over all categories under every definition, with 95 % intervals", ["Method", *names], rows)


def agreement(overall: Sequence[Row], methods: Mapping[str, str]) -> TextTable:
    """How many turns of each arm are vanilla's token for token."""
    rows = []
    for row in overall:
        first = number(row["first_divergence"], 0)
        counts = [str(row["turns"]), _compared(row), str(row["diverging_turns"])]
        rows.append([methods[row["method"]], *counts, percent(row["agreement"]), first])
    headers = ["Method", "Turns", "With vanilla's prompt", "Diverging", "Same tokens", "First difference at token (mean)"]
    return TextTable("Output tokens compared with vanilla's", headers, rows)


def time_split(split: pd.DataFrame, methods: Mapping[str, str]) -> TextTable:
    """Milliseconds per step and share of the end-to-end time of each part, over all categories."""
    rows = []
    for name, label in methods.items():
        parts = {row["part"]: row for row in split[(split["method"] == name) & (split["category"] == OVERALL)].to_dict("records")}
        steps = [number(parts[part]["ms_per_step"]) for part in PARTS if part != "prefill"]
        rows.append([label, *steps, *(percent(parts[part]["share"]) for part in PARTS)])
    headers = [*(f"{part} ms/step" for part in PARTS if part != "prefill"), *(f"{part} share" for part in PARTS)]
    return TextTable("Milliseconds per step, and share of the time end to end", ["Method", *headers], rows)


def acceptance(rates: pd.DataFrame, methods: Mapping[str, str]) -> TextTable:
    """Marginal and conditional acceptance rate, and share of rounds with a tree that deep, at each depth, over all categories."""
    overall = rates[rates["category"] == OVERALL]
    depths = range(1, int(overall["depth"].max()) + 1) if len(overall) else range(0)
    rows = []
    for name, label in methods.items():
        own = {row["depth"]: row for row in overall[overall["method"] == name].to_dict("records")}
        if own:
            rows.append([label, *(_rates(own[d]) if d in own else NONE for d in depths)])
    return TextTable("Acceptance by depth, marginal / conditional / drafted, in %", ["Method", *(f"depth {d}" for d in depths)], rows)


def _rates(row: Row) -> str:
    return " / ".join(number(100 * row[name], 1) for name in ("marginal", "conditional", "drafted"))

"""The tables of the report as finished text cells, for every format and the terminal, and the definitions of their columns."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

import pandas as pd

from specbench.analysis.breakdown import PARTS
from specbench.analysis.frames import OVERALL
from specbench.analysis.metrics import DEFINITIONS
from specbench.util.text import NONE, TextTable, number, percent

MOST_COLUMNS = 10  # categories that are columns of a table
Row = Mapping[Any, Any]  # one row of a frame, by column name
COLUMNS = (
    (
        "Speedup",
        "Definition speedup below. The 95 % bootstrap interval is over questions, stratified by category.",
    ),
    (
        "As Spec-Bench",
        "Definition speedup_specbench_legacy, the arithmetic of that benchmark. Use it only beside its leaderboard. "
        "A dash means that the run did not record text_tokens.",
    ),
    ("Decode speedup", "Definition speedup_decode: the time of the steps alone. It equals MAT / R."),
    ("MAT", "Definition mat. The target's own next token counts, so vanilla has 1."),
    ("R", "Definition step_cost: the time of a step in vanilla steps."),
    (
        "Tokens/s",
        "Mean over questions, end to end. Tokens/s decode: all emitted tokens divided by all step time.",
    ),
    (
        "Same as vanilla",
        "Share of turns with identical output token ids, among turns with the same prompt. “First at”: mean index of the "
        "first differing token in the other turns. “By text”: a server sent no ids, so texts are compared.",
    ),
    (
        "Repeated 4-grams",
        "Share of 4-grams seen earlier in the same output, averaged over turns. Repetition is easy to draft and raises MAT.",
    ),
    ("Cut by length", "Share of turns that ended at the token limit."),
    (
        "Peak MiB",
        "Largest peak memory of a turn, with the weights of all arms loaded: the allocator's on CUDA, the process's on a CPU.",
    ),
    (
        "Questions",
        "Questions compared. Left out: questions with a failed turn in either arm, which are left out of both.",
    ),
    (
        "Different engine",
        "A row that another program answered: transformers' generate on the same weights, or a server. Prompts, settings, and clock "
        "are the same. A dash is a number that it does not report. A server's prefill is the time to its first token. Its MAT is "
        "1 + accepted drafts / steps by its own counters, read before and after each request.",
    ),
    (
        "Acceptance by depth",
        "Marginal: share of all steps that accepted at least d drafts; 1 + its sum over depths is MAT before the last step of an answer "
        "is clipped. Conditional: the same share among steps that accepted d - 1 drafts and whose tree reaches depth d. Drafted: share "
        "of all steps whose tree reaches depth d.",
    ),
)


def with_interval(row: Row, name: str) -> str:
    """Return ``1.43x [1.38, 1.48]``, or the number alone if there is no interval."""
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


def speedup(row: Row) -> str:
    """Return the speedup without its interval."""
    return number(row["speedup"])


def speedup_with_interval(row: Row) -> str:
    """Return the speedup with its interval."""
    return with_interval(row, "speedup")


def mat(row: Row) -> str:
    """Return the mean accepted tokens."""
    return number(row["mat"])


Cell = Callable[[Row], str]
OVER_EAGER = "Over eager vanilla [95 %]"
SHORT: dict[str, Cell] = {
    "Speedup [95 %]": speedup_with_interval,
    OVER_EAGER: lambda row: with_interval(row, "speedup_over_eager"),
    "As Spec-Bench": lambda row: number(row["speedup_specbench_legacy"], unit="x"),
    "MAT": mat,
    "R": lambda row: number(row["step_cost"]),
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


def headline(comparison: pd.DataFrame, labels: Mapping[str, str], columns: Mapping[str, Cell], title: str) -> TextTable:
    """Return a table with one row per arm, over all categories."""
    rows = comparison[comparison["category"] == OVERALL].to_dict("records")
    cells = [[labels[row["arm"]], *(cell(row) for cell in columns.values())] for row in rows]
    return TextTable(title, ["Method", *columns], cells).drop_if_empty(OVER_EAGER)


def drop_constant_columns(table: TextTable, headers: Sequence[str]) -> tuple[TextTable, dict[str, str]]:
    """Return the table without those of ``headers`` whose cells are all equal, and that cell by header.

    Columns of unknown values stay.
    """
    columns = dict(zip(table.headers, zip(*table.rows, strict=True), strict=True))
    constant = {name: columns[name][0] for name in headers if set(columns[name]) != {NONE} and len(set(columns[name])) == 1}
    kept = [index for index, name in enumerate(table.headers) if name not in constant]
    rows = [[cells[index] for index in kept] for cells in table.rows]
    return TextTable(table.title, [table.headers[index] for index in kept], rows), constant


def by_category(comparison: pd.DataFrame, labels: Mapping[str, str], categories: Mapping[str, str], cell: Cell, title: str) -> TextTable:
    """Return a table with one row per arm and one column per category; with many categories, the other way round."""
    cells = {(row["arm"], row["category"]): cell(row) for row in comparison.to_dict("records")}
    if len(categories) > MOST_COLUMNS:
        by_row = [[title, *(cells[name, category] for name in labels)] for category, title in categories.items()]
        return TextTable(title, ["Category", *labels.values()], by_row)
    rows = [[label, *(cells[name, category] for category in categories)] for name, label in labels.items()]
    return TextTable(title, ["Method", *categories.values()], rows)


def by_definition(overall: Sequence[Row], labels: Mapping[str, str], names: Sequence[str]) -> TextTable:
    """Return a table with one row per arm and one column per definition of speedup."""
    rows = [[labels[row["arm"]], *(with_interval(row, name) for name in names)] for row in overall]
    return TextTable("Speedup over all categories under every definition, with 95 % intervals", ["Method", *names], rows)


def agreement(overall: Sequence[Row], labels: Mapping[str, str]) -> TextTable:
    """Return a table of how many turns of each arm equal vanilla's, token for token."""
    rows = []
    for row in overall:
        first = number(row["first_divergence"], 0)
        counts = [str(row["turns"]), _compared(row), str(row["diverging_turns"])]
        rows.append([labels[row["arm"]], *counts, percent(row["agreement"]), first])
    headers = ["Method", "Turns", "With vanilla's prompt", "Diverging", "Same tokens", "First difference at token (mean)"]
    return TextTable("Output tokens compared with vanilla's", headers, rows)


def time_split(split: pd.DataFrame, labels: Mapping[str, str]) -> TextTable:
    """Return a table of each part's milliseconds per step and share of the end-to-end time, over all categories."""
    rows = []
    for name, label in labels.items():
        parts = {row["part"]: row for row in split[(split["arm"] == name) & (split["category"] == OVERALL)].to_dict("records")}
        steps = [number(parts[part]["ms_per_step"]) for part in PARTS if part != "prefill"]
        rows.append([label, *steps, *(percent(parts[part]["share"]) for part in PARTS)])
    headers = [*(f"{part} ms/step" for part in PARTS if part != "prefill"), *(f"{part} share" for part in PARTS)]
    return TextTable("Milliseconds per step, and share of the end-to-end time", ["Method", *headers], rows)


def acceptance(rates: pd.DataFrame, labels: Mapping[str, str]) -> TextTable:
    """Return a table of the marginal and conditional acceptance rate and the share of steps drafted, at each depth."""
    overall = rates[rates["category"] == OVERALL]
    depths = range(1, int(overall["depth"].max()) + 1) if len(overall) else range(0)
    rows = []
    for name, label in labels.items():
        own = {row["depth"]: row for row in overall[overall["arm"] == name].to_dict("records")}
        if own:
            rows.append([label, *(_rates(own[d]) if d in own else NONE for d in depths)])
    return TextTable("Acceptance by depth, marginal / conditional / drafted, in %", ["Method", *(f"depth {d}" for d in depths)], rows)


def _rates(row: Row) -> str:
    return " / ".join(number(100 * row[name], 1) for name in ("marginal", "conditional", "drafted"))


def definitions() -> list[tuple[str, str]]:
    """Return the columns of the tables, then every metric of ``metrics.DEFINITIONS`` with its docstring."""
    metrics = ((name, " ".join((inspect.getdoc(metric) or "").replace("`", "").split())) for name, metric in DEFINITIONS.items())
    return [*COLUMNS, *metrics]

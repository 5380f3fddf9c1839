r"""The main and per-category numbers as LaTeX tables, to include with \input. They need the booktabs package."""

from specbench.report import findings, tables
from specbench.report.run import Run
from specbench.store import describe
from specbench.util.text import NONE, TextTable, visible

SIGNS = {sign: f"\\{sign}" for sign in "{}$&%#_"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # after a row's end it would open an optional argument
    "]": "{]}",
    NONE: "---",
    "\N{EN DASH}": "--",
    "\N{MIDDLE DOT}": r"\textperiodcentered{}",
}


def render(run: Run) -> str:
    """Return three tables, with the conditions in the caption: all categories, speedup by category, and MAT by category."""
    by_name = {
        "main": tables.headline(run.comparison, run.arms, tables.SHORT, "All categories"),
        "speedup": tables.by_category(
            run.comparison, run.shown, run.categories, tables.speedup, "End-to-end speedup over vanilla by category"
        ),
        "mat": tables.by_category(run.comparison, run.shown, run.categories, tables.mat, "Mean accepted tokens by category"),
    }
    label = " ".join(describe.cost_matched([run.manifest]))
    where = f"{findings.subtitle(run)}. {label}".strip()
    parts = [_table(table, f"{table.title}: {where}", f"tab:{run.slug}-{name}") for name, table in by_name.items()]
    return "\n\n".join(["% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}", *parts]) + "\n"


def escape(text: str) -> str:
    """Return text on one line, escaped for LaTeX."""
    return " ".join("".join(SIGNS.get(sign, sign) for sign in visible(text)).split())


def _table(table: TextTable, caption: str, label: str) -> str:
    rows = [" & ".join(map(escape, cells)) + r" \\" for cells in (table.headers, *table.rows)]
    body = [rows[0], r"\midrule", *rows[1:]]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(caption)}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.headers) - 1)}}}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )

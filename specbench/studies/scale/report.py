"""A sweep as files: CSV with the rows, Markdown, and the figure."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from specbench.report.blocks import Block, Bullets, Figure, Heading, Paragraph
from specbench.report.tables import with_interval
from specbench.store.manifest import RunManifest
from specbench.studies.base import Conditions, table, write_report
from specbench.studies.scale import figure
from specbench.studies.scale.points import points
from specbench.studies.scale.sweep import Sweep
from specbench.util.table import TextTable, number

WARNING = (
    "The targets are cost-matched: one small model computed in larger shapes. MAT is that small model's at every size, up to numeric ties, "
    "so only the cost of a step changes with size. A real model of that size accepts more or less."
)
HOW = (
    "Measured: pooled over the run's questions, with 95 % bootstrap intervals. The step cost R is the time of a step over that of a "
    "vanilla step, V(n) the same for verifying alone, n the size of the method's tree with its root; decode speedup is MAT / R. The "
    "speedup end to end includes prefill.",
    "Limit: the cost model at this device's measured copy bandwidth and matrix-product rate, verifying and drafting one after the other. "
    "Commits, launches and the host count as free. A measured ratio can lie below it: a plain step is further from its limit than a tree.",
)


def write(sweep: Sweep, out: Path) -> list[TextTable]:
    """Write ``scale.csv``, ``.md``, ``.png`` and ``.svg``, and return the tables.

    Raises UserError if they cannot be written, or if nothing was measured.
    """
    rows, failures = points(sweep, out)
    sentence = _conditions(RunManifest.read(out / str(rows["target"].iloc[0])))
    png = figure.draw(rows, sentence, out)
    tables = [_methods(rows), _targets(rows)]
    bandwidth, rate = sweep.device
    blocks: list[Block] = [
        Heading(1, "The same methods over the target's size"),
        Paragraph(sentence),
        Paragraph(WARNING, warning=True),
        Bullets(
            [
                f"This device copies {bandwidth / 1e9:,.1f} GB/s and multiplies matrices at {rate / 1e9:,.0f} GFLOP/s.",
                *(f"Left out: {reason}" for reason in (*sweep.left_out.values(), *failures)),
            ]
        ),
        *tables,
        Figure(png, "R, V(n) and decode speedup over the target's size", "Three panels over parameters: R, V(n), decode speedup"),
        Bullets(HOW),
    ]
    write_report(out, "scale", blocks, rows)
    return tables


def _conditions(manifest: RunManifest) -> str:
    """Return the conditions that all runs of a sweep share."""
    conditions = replace(Conditions.of_run(manifest), target="cost-matched targets", parameters=None)
    settings = manifest.settings
    suite = f"suite {settings.suite}, {settings.limit} question(s) a category, at most {settings.max_new_tokens} tokens a turn"
    return conditions.sentence(suite)


def _methods(rows: pd.DataFrame) -> TextTable:
    cells = []
    for row in rows[rows["mat"].notna()].to_dict("records"):
        limits = {name: number(row[f"{name}_limit"], unit="x") for name in ("verify_ratio", "step_cost", "speedup_decode")}
        cells.append(
            {
                "Target and method": f"{row['target']}, {row['title']}",
                "Nodes": str(row["nodes"]),
                "MAT": number(row["mat"]),
                "V(n) [95 %]": with_interval(row, "verify_ratio"),
                "V(n) limit": limits["verify_ratio"],
                "R [95 %]": with_interval(row, "step_cost"),
                "R limit": limits["step_cost"],
                "Decode speedup [95 %]": with_interval(row, "speedup_decode"),
                "Decode speedup limit": limits["speedup_decode"],
                "Speedup end to end [95 %]": with_interval(row, "speedup"),
            }
        )
    return table("Measured, and the cost model's limit", cells)


def _targets(rows: pd.DataFrame) -> TextTable:
    cells = [
        {
            "Target": row["target"],
            "M parameters": number(row["parameters"] / 1e6, 0),
            "Load s": number(row["load_s"], 1),
            "Prepare s": number(row["prepare_s"], 1),
            "Peak MiB": number(row["peak_mib"], 0),
        }
        for row in rows[rows["mat"].notna()].drop_duplicates("target").to_dict("records")
    ]
    return table("The targets", cells)

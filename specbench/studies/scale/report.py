"""A sweep as files: CSV with the rows, Markdown to read, and the figure."""

from pathlib import Path

import pandas as pd

from specbench.report import markdown
from specbench.report.blocks import Block, Bullets, Figure, Heading, Paragraph
from specbench.report.tables import with_interval
from specbench.store import describe
from specbench.store.manifest import RunManifest
from specbench.studies.scale import figure
from specbench.studies.scale.points import points
from specbench.studies.scale.sweep import Found
from specbench.util.files import whole
from specbench.util.table import TextTable, number

HOW = (
    "The targets are cost-matched: one small model computed in larger shapes. MAT is that small model's at every size, up to numeric ties, "
    "so what changes over size is the cost of a round alone. A real model of that size accepts more or less.",
    "Measured: pooled over the run's questions, with 95 % bootstrap intervals. R is seconds of a round over seconds of a vanilla step, "
    "V(n) the same of verifying alone, decode speedup MAT / R; the speedup end to end has prefill in it too.",
    "Limit: the cost model at this device's measured copy bandwidth and matrix-product rate, verifying and drafting one after the other, "
    "commits, launches and the host for nothing. A measured ratio can lie below it: a plain step is further from its limit than a tree.",
)


def write(found: Found, out: Path) -> list[TextTable]:
    """``scale.csv``, ``scale.md``, ``scale.png`` and ``.svg``; returns the tables.

    Raises UserError where they cannot be written, or nothing was measured.
    """
    rows, failures = points(found, out)
    manifest = RunManifest.read(out / str(rows["target"].iloc[0]))
    with whole(out / "scale.csv") as file:
        rows.to_csv(file, index=False, float_format="%.6g")
    (bandwidth, rate), asked, where = found.device, found.asked, describe.processor(manifest)
    conditions = (
        f"{asked.dtype} on {where}, back end {asked.backend}; suite {asked.suite}, {asked.limit} question(s) a category, at most "
        f"{asked.max_new_tokens} tokens a turn; torch {manifest.environment['torch']}, transformers {manifest.environment['transformers']}"
    )
    png = figure.draw(rows, conditions, out)
    tables = [_methods(rows), _targets(rows)]
    blocks: list[Block] = [
        Heading(1, "One method set over the target's size"),
        Paragraph(conditions),
        Paragraph(HOW[0], warning=True),
        Bullets(
            [
                f"This device copies {bandwidth / 1e9:,.1f} GB/s and multiplies matrices at {rate / 1e9:,.0f} GFLOP/s.",
                *(f"Left out: {reason}" for reason in (*found.left_out.values(), *failures)),
            ]
        ),
        *tables,
        Figure(png, "R, V(n) and decode speedup over the target's size", "Three panels over parameters: R, V(n), decode speedup"),
        Bullets(HOW[1:]),
    ]
    with whole(out / "scale.md") as file:
        file.write_text(markdown.render(blocks, out), encoding="utf-8")
    return tables


def _methods(rows: pd.DataFrame) -> TextTable:
    headers = ["Target and method", "Nodes", "MAT", "V(n) [95 %]", "limit", "R [95 %]", "limit", "Decode speedup [95 %]", "limit"]
    cells = []
    for row in rows[rows["mat"].notna()].to_dict("records"):
        ratios = [
            text
            for name in ("verify_ratio", "round_cost", "speedup_decode")
            for text in (with_interval(row, name), number(row[f"{name}_limit"], unit="x"))
        ]
        cells.append([f"{row['target']}, {row['title']}", str(row["nodes"]), number(row["mat"]), *ratios, with_interval(row, "speedup")])
    return TextTable("Measured, and the cost model's limit", [*headers, "Speedup end to end [95 %]"], cells)


def _targets(rows: pd.DataFrame) -> TextTable:
    cells = []
    for row in rows[rows["mat"].notna()].drop_duplicates("target").to_dict("records"):
        seconds = [number(row["load_s"], 1), number(row["prepare_s"], 1)]
        cells.append([row["target"], number(row["parameters"] / 1e6, 0), *seconds, number(row["peak_mib"], 0)])
    return TextTable("The targets", ["Target", "M parameters", "Load s", "Prepare s", "Peak MiB"], cells)

"""A sweep as files: CSV with the rows, Markdown, and the figure."""

from dataclasses import replace
from pathlib import Path

import matplotlib.figure
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from specbench.report.blocks import Block, Bullets, Figure, Heading, Paragraph
from specbench.report.canvas import RC, STYLES, reach_of, save
from specbench.report.tables import with_interval
from specbench.store.manifest import RunManifest
from specbench.studies.base import Conditions, table, write_report
from specbench.studies.scale.points import points
from specbench.studies.scale.sweep import Sweep
from specbench.util.text import TextTable, number

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
PANELS = {
    "step_cost": "Step cost R, vanilla steps",
    "verify_ratio": "V(n) at the method's tree size",
    "speedup_decode": "Decode speedup, MAT / R",
}


def write(sweep: Sweep, out: Path) -> list[TextTable]:
    """Write ``scale.csv``, ``.md``, ``.png`` and ``.svg``, and return the tables.

    Raises UserError if they cannot be written, or if nothing was measured.
    """
    rows, failures = points(sweep, out)
    sentence = _conditions(RunManifest.read(out / str(rows["target"].iloc[0])))
    png = draw(rows, sentence, out)
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


def draw(rows: pd.DataFrame, subtitle: str, folder: Path) -> Path:
    """Draw ``scale.png`` with an SVG beside it, and return the PNG's path."""
    with matplotlib.rc_context(RC):
        figure = matplotlib.figure.Figure(figsize=(12, 4.8), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(
            f"Cost-matched targets: the cost of a step changes with size, acceptance does not\n{subtitle}",
            x=0.01,
            ha="left",
            fontsize=11,
        )
        styles = dict(zip(rows["arm"].unique(), STYLES[1:] + STYLES[:1], strict=False))
        for axes, (name, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            for arm, (colour, marker, _) in styles.items():
                _curve(axes, rows[rows["arm"] == arm], name, colour, marker)
            _finish(axes, rows, title)

        titles = rows.drop_duplicates("arm").set_index("arm")["title"]
        handles = [Line2D([], [], ls="", marker=marker, color=colour, ms=7) for colour, marker, _ in styles.values()]
        kinds = [Line2D([], [], color="#444444", lw=1.4)]
        labels = [*(str(titles[arm]) for arm in styles), "the cost model's limit"]
        figure.legend([*handles, *kinds], labels, loc="outside lower center", ncols=5, frameon=False)
        return save(figure, folder / "scale.png")


def _curve(axes: Axes, own: pd.DataFrame, name: str, colour: str, marker: str) -> None:
    own = own.sort_values("parameters")
    axes.plot(own["parameters"], own[f"{name}_limit"], color=colour, lw=1.4)
    measured = own[own[name].notna()]
    reach = reach_of(measured, name)
    axes.errorbar(measured["parameters"], measured[name], reach, fmt=marker, color=colour, ms=7, mec="white", elinewidth=1.2, capsize=2)


def _finish(axes: Axes, rows: pd.DataFrame, title: str) -> None:
    sizes = rows.drop_duplicates("target").sort_values("parameters")
    axes.axhline(1, color="#777777", lw=0.9, ls=":")
    axes.set_xscale("log")
    axes.set_xticks(sizes["parameters"], [name.removeprefix("tiny-") for name in sizes["target"]], rotation=90)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("parameters of the target's shape")
    axes.set_xlim(sizes["parameters"].min() * 0.8, sizes["parameters"].max() * 1.25)
    axes.set_ylim(bottom=0)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis="y", color="#DDDDDD", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)

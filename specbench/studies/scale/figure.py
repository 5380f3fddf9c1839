"""The figure of a sweep: R, V(n) and decode speedup over the target's size, measured points beside the cost model's curves."""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from specbench.report.figures import RC, STYLES, reach_of, save

PANELS = {
    "step_cost": "Step cost R, vanilla steps",
    "verify_ratio": "V(n) at the method's tree size",
    "speedup_decode": "Decode speedup, MAT / R",
}


def draw(rows: pd.DataFrame, subtitle: str, folder: Path) -> Path:
    """Draw ``scale.png`` with an SVG beside it, and return the PNG's path."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(12, 4.8), layout="constrained")
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

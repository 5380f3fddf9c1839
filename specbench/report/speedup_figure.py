"""The figure of speedups by category."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specbench.report.canvas import FigureContext, add_legend, highest, new_canvas, reach_of
from specbench.report.figure_text import LABEL_WIDTH, wrapped

CATEGORY_WIDTH = 14  # columns of a name on one line below upright bars
GAP = 6  # pixels between two names below upright bars
TITLE = "End-to-end speedup over vanilla, with 95 % intervals"


def speedup_figure(rows: pd.DataFrame, context: FigureContext) -> Figure:
    """Draw the bars upright, or lying if the categories' names do not fit below them."""
    figure, axes = new_canvas(TITLE, context, 10, 4.2)
    names = [wrapped(label, CATEGORY_WIDTH) for label in context.categories.values()]
    axes.set_xticks(range(len(names)), names)
    widths = [label.get_window_extent().width for label in axes.get_xticklabels()]
    room = 0.9 * figure.bbox.width / len(names) - GAP
    upright = all((left + right) / 2 <= room for left, right in pairwise(widths))

    arms = [name for name in context.arms if (rows["arm"] == name).any()]
    if not upright:
        names = [wrapped(label, LABEL_WIDTH) for label in context.categories.values()]
        row = max(0.17 * max(name.count("\n") + 1 for name in names), 0.12 * len(arms)) + 0.1
        figure, axes = new_canvas(TITLE, context, 8.4, 1.6 + row * len(names))
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.margins(y=0.01)
    _bars(axes, rows, arms, context, upright)
    add_legend(figure, *axes.get_legend_handles_labels(), columns=3 if upright else 2)
    return figure


def _bars(axes: Axes, rows: pd.DataFrame, arms: Sequence[str], context: FigureContext, upright: bool) -> None:
    bars, line, across, span = (
        (axes.bar, axes.axhline, axes.axvline, axes.axhspan) if upright else (axes.barh, axes.axvline, axes.axhline, axes.axvspan)
    )
    top = highest(rows[rows["category"].isin(list(context.categories))], "speedup")
    claim = context.claim
    if claim and claim.high:
        low, high = claim.low, claim.high
        band = f"{claim.title} paper's claim {low:.2f}\N{EN DASH}{high:.2f}x (other hardware and models)"
        span(low, high, color="#F0E442", alpha=0.35, lw=0, label=band)
        top = max(top, high)
    line(1, color="#444444", lw=1)

    width = 0.82 / len(arms)
    for i, arm in enumerate(arms):
        own = rows[rows["arm"] == arm].set_index("category").reindex(list(context.categories))
        colour, _, hatch = context.style(arm)
        places = np.arange(len(own)) + (i - (len(arms) - 1) / 2) * width
        bars(places, own["speedup"], width, color=colour, hatch=hatch, edgecolor="white", lw=0.5, label=context.arms[arm])
        value, reach = own["speedup"].to_numpy(), reach_of(own, "speedup")
        x, y, y_reach, x_reach = (places, value, reach, None) if upright else (value, places, None, reach)
        axes.errorbar(x, y, y_reach, x_reach, fmt="none", ecolor="#222222", elinewidth=1, capsize=2)

    across(len(context.categories) - 1.5, color="#BBBBBB", lw=0.8, ls=":")
    (axes.set_ylabel if upright else axes.set_xlabel)("speedup (vanilla = 1)")
    (axes.set_ylim if upright else axes.set_xlim)(0, top * 1.06)

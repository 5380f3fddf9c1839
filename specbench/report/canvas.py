"""The parts that all figures share: styles, labels, the canvas, the legend, and the files.

Colours are safe for colour-blind readers (Okabe and Ito); markers and hatches tell arms apart as well.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from specbench.claims.claim import Claim
from specbench.report.figure_text import FONT

STYLES = [  # colour, marker, hatch
    ("#000000", "o", ""),
    ("#E69F00", "s", "//"),
    ("#56B4E9", "^", ".."),
    ("#009E73", "D", "xx"),
    ("#CC79A7", "v", "--"),
    ("#D55E00", "P", ""),
    ("#0072B2", "X", "\\\\"),
    ("#F0E442", "*", "++"),
    ("#999999", "<", "oo"),  # Tol's muted colours from here on
    ("#882255", ">", "///"),
    ("#44AA99", "h", "xxx"),
    ("#661100", "p", "..."),
]
LEGEND_LINE = 0.3  # inches of a legend of one line, for which the figures leave room
RC: dict[Any, Any] = {
    "font.size": 10,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "specbench",
    "text.parse_math": False,  # the name of a category may hold dollar signs
}


@dataclass(frozen=True)
class FigureContext:
    """The data that all figures of a run share: labels of arms and categories by name, in the order to show them."""

    arms: Mapping[str, str]
    categories: Mapping[str, str]  # OVERALL included
    subtitle: str  # target and its label, device, dtype, suite, number of questions
    claim: Claim | None = None  # drawn as a band if an arm of the run is compared with it
    fonts: Sequence[str] = (FONT,)

    def style(self, arm: str) -> tuple[str, str, str]:
        """Return the colour, marker, and hatch of an arm."""
        return STYLES[list(self.arms).index(arm) % len(STYLES)]


def new_canvas(title: str, context: FigureContext, width: float, height: float, pad: float = 6) -> tuple[Figure, Axes]:
    """Return a figure in inches with its title and one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes.set_title(textwrap.fill(context.subtitle, int(width * 14)), loc="left", fontsize=9, color="#444444", pad=pad)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def add_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int) -> None:
    """Add a legend below the axes, in as many columns as fit the figure's width, up to ``columns``.

    The figure grows by the legend's height beyond one line, so the axes keep their size.
    """
    for count in range(min(columns, len(labels)), 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=count, frameon=False)
        box = legend.get_window_extent()
        if box.width <= figure.bbox.width or count == 1:
            break
        legend.remove()
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + max(box.height / figure.dpi - LEGEND_LINE, 0))


def reach_of(rows: pd.DataFrame, name: str) -> np.ndarray:
    """Return the lengths of error bars below and above a value.

    They are clipped at 0, because with few questions the interval can miss the value.
    """
    value = rows[name].to_numpy()
    return np.maximum([value - rows[f"{name}_low"].to_numpy(), rows[f"{name}_high"].to_numpy() - value], 0)


def highest(rows: pd.DataFrame, name: str) -> float:
    """Return the largest value of a column and of the upper end of its interval."""
    return float(rows[[name, f"{name}_high"]].max().max())


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and SVG and return the PNG's path. The same numbers give the same files."""
    figure.savefig(path, dpi=150)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    return path

"""The figures of the report, each as PNG and SVG.

Colours are safe for colour-blind readers (Okabe and Ito); markers and hatches tell arms apart as well.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from specbench.analysis.breakdown import BIN, PARTS
from specbench.analysis.frames import OVERALL
from specbench.claims.claim import Claim
from specbench.config.arm import BASELINE

STEP_COSTS = (1.0, 1.25, 1.5, 2.0, 3.0)
MIN_STEPS = 30  # rates over fewer steps are too noisy to draw; the table has them
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
PART_STYLES = {
    "draft": ("#E69F00", "//"),
    "verify": ("#0072B2", ""),
    "commit": ("#009E73", "xx"),
    "other": ("#999999", ".."),
    "prefill": ("#FFFFFF", "\\\\"),
}
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

    def style(self, arm: str) -> tuple[str, str, str]:
        """Return the colour, marker, and hatch of an arm."""
        return STYLES[list(self.arms).index(arm) % len(STYLES)]


def draw(
    comparison: pd.DataFrame, split: pd.DataFrame, acceptance: pd.DataFrame, along: pd.DataFrame, context: FigureContext, folder: Path
) -> dict[str, Path]:
    """Draw the figures that the numbers allow and return each PNG by name, with its SVG beside it.

    Without vanilla there are no speedups to draw.
    """
    timed = comparison[comparison["speedup"].notna() & comparison["arm"].isin(list(context.arms)) & (comparison["arm"] != BASELINE)]
    split = split[(split["category"] == OVERALL) & split["ms_per_token"].notna()]
    split = split[split.groupby("arm")["part"].transform("size") == len(PARTS)]  # a bar that lacks a part would look complete
    acceptance = acceptance[(acceptance["category"] == OVERALL) & (acceptance["steps"] >= MIN_STEPS)]
    along = along[along["steps"] >= MIN_STEPS]
    with matplotlib.rc_context(RC):
        figures = {
            "speedup": _speedup(timed, context) if len(timed) else None,
            "step_cost": _step_cost(timed[timed["speedup_decode"].notna()], context) if timed["speedup_decode"].notna().any() else None,
            "time_split": _time_split(split, context) if len(split) else None,
            "acceptance": _acceptance(acceptance, context) if len(acceptance) else None,
            "along": _along(along, context) if len(along) else None,
        }
        return {name: save(figure, folder / f"{name}.png") for name, figure in figures.items() if figure}


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and SVG and return the PNG's path. The same numbers give the same files."""
    figure.savefig(path, dpi=150)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    return path


def _canvas(title: str, context: FigureContext, width: float, height: float, pad: float = 6) -> tuple[Figure, Axes]:
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


def _speedup(rows: pd.DataFrame, context: FigureContext) -> Figure:
    figure, axes = _canvas("End-to-end speedup over vanilla, with 95 % intervals", context, 10, 4.2)
    top = _highest(rows, "speedup")
    if context.claim:
        low, high = context.claim.low, context.claim.high
        band = f"{context.claim.title} paper's claim {low:.2f}\N{EN DASH}{high:.2f}x (other hardware and models)"
        axes.axhspan(low, high, color="#F0E442", alpha=0.35, lw=0, label=band)
        top = max(top, high)
    axes.axhline(1, color="#444444", lw=1)

    arms = [name for name in context.arms if (rows["arm"] == name).any()]
    width = 0.82 / len(arms)
    for i, arm in enumerate(arms):
        own = rows[rows["arm"] == arm].set_index("category").reindex(list(context.categories))
        colour, _, hatch = context.style(arm)
        places = np.arange(len(own)) + (i - (len(arms) - 1) / 2) * width
        axes.bar(places, own["speedup"], width, color=colour, hatch=hatch, edgecolor="white", lw=0.5, label=context.arms[arm])
        axes.errorbar(places, own["speedup"], yerr=reach_of(own, "speedup"), fmt="none", ecolor="#222222", elinewidth=1, capsize=2)

    axes.set_xticks(range(len(context.categories)), list(context.categories.values()))
    axes.axvline(len(context.categories) - 1.5, color="#BBBBBB", lw=0.8, ls=":")
    axes.set_ylabel("speedup (vanilla = 1)")
    axes.set_ylim(0, top * 1.06)
    add_legend(figure, *axes.get_legend_handles_labels(), columns=3)
    return figure


def reach_of(rows: pd.DataFrame, name: str) -> np.ndarray:
    """Return the lengths of error bars below and above a value.

    They are clipped at 0, because with few questions the interval can miss the value.
    """
    value = rows[name].to_numpy()
    return np.maximum([value - rows[f"{name}_low"].to_numpy(), rows[f"{name}_high"].to_numpy() - value], 0)


def _highest(rows: pd.DataFrame, name: str) -> float:
    return float(rows[[name, f"{name}_high"]].max().max())


def _step_cost(rows: pd.DataFrame, context: FigureContext) -> Figure:
    figure, axes = _canvas("Step cost R: decode speedup = MAT / R", context, 7.2, 4.8, pad=20)
    right = _highest(rows, "mat") * 1.06
    top = max(_highest(rows, "speedup_decode"), 1) * 1.12
    bottom = min(rows["speedup_decode"].min(), 1) * 0.85
    for cost in STEP_COSTS:
        axes.plot([0, right], [0, right / cost], color="#AAAAAA", lw=0.9, zorder=1)
        if bottom < right / cost <= top:
            axes.annotate(
                f"R = {cost:g}", (right, right / cost), (4, 0), textcoords="offset points", va="center", fontsize=9, color="#555555"
            )
        elif right / cost > top:
            axes.annotate(f"R = {cost:g}", (top * cost, top), (0, 4), textcoords="offset points", ha="center", fontsize=9, color="#555555")
    axes.plot(1, 1, "o", color=STYLES[0][0], ms=8, label=context.arms.get(BASELINE, "Vanilla"), zorder=3)

    for arm in (name for name in context.arms if (rows["arm"] == name).any()):
        colour, marker, _ = context.style(arm)
        own = rows[rows["arm"] == arm]
        overall, parts = own[own["category"] == OVERALL], own[own["category"] != OVERALL]
        mat, speedup = overall["mat"], overall["speedup_decode"]
        axes.plot(parts["mat"], parts["speedup_decode"], marker, color=colour, ms=5, alpha=0.45, mec="none", zorder=2)
        up, across = reach_of(overall, "speedup_decode"), reach_of(overall, "mat")
        axes.errorbar(mat, speedup, up, across, fmt="none", ecolor=colour, elinewidth=1.2, capsize=2, zorder=3)
        axes.plot(mat, speedup, marker, color=colour, ms=9, mec="white", mew=0.8, label=context.arms[arm], zorder=4)

    axes.set(xlim=(0.9, right), ylim=(bottom, top), xlabel="MAT, tokens per step", ylabel="decode speedup (vanilla = 1)")
    handles, labels = axes.get_legend_handles_labels()
    small = Line2D([], [], ls="", marker="o", color="#555555", alpha=0.45, ms=5)
    add_legend(figure, [*handles, small], [*labels, "small: one category"], columns=4)
    return figure


def _time_split(rows: pd.DataFrame, context: FigureContext) -> Figure:
    arms = [name for name in context.arms if (rows["arm"] == name).any()]
    lines = sum(context.arms[name].count("\n") + 1 for name in arms)
    figure, axes = _canvas("Where the time goes, all categories", context, 8.4, 1.9 + 0.3 * len(arms) + 0.15 * lines)
    table = rows.pivot(index="arm", columns="part", values="ms_per_token").reindex(arms)
    left = np.zeros(len(arms))
    for part in PARTS:
        colour, hatch = PART_STYLES[part]
        axes.barh(range(len(arms)), table[part], left=left, height=0.68, color=colour, hatch=hatch, edgecolor="#333333", lw=0.6, label=part)
        left = left + table[part].to_numpy()
    for row, total in enumerate(left):
        axes.annotate(f"{total:.3g}", (total, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(arms)), [context.arms[name] for name in arms])
    axes.invert_yaxis()
    axes.set_xlim(0, left.max() * 1.08)
    axes.set_xlabel("milliseconds per output token, end to end")
    add_legend(figure, *axes.get_legend_handles_labels(), columns=len(PARTS))
    return figure


def _acceptance(rows: pd.DataFrame, context: FigureContext) -> Figure:
    figure, axes = _canvas("Acceptance by depth of the draft tree, all categories", context, 7.6, 4.3)
    for arm in (name for name in context.arms if (rows["arm"] == name).any()):
        colour, marker, _ = context.style(arm)
        own = rows[rows["arm"] == arm]
        likely = own[own["reached"] >= MIN_STEPS]
        axes.plot(own["depth"], own["marginal"], marker=marker, color=colour, lw=1.8, ms=7, label=context.arms[arm])
        axes.plot(likely["depth"], likely["conditional"], marker=marker, color=colour, lw=1.2, ls="--", ms=4, alpha=0.5)
    axes.set(ylim=(0, 1.02), xlabel="depth d", ylabel="share of steps that accept at least d drafts")
    axes.set_xticks(range(1, rows["depth"].max() + 1))
    axes.grid(axis="y", color="#DDDDDD", lw=0.6)
    handles, labels = axes.get_legend_handles_labels()
    kinds = [Line2D([], [], color="#444444", lw=1.8), Line2D([], [], color="#444444", lw=1.2, ls="--", alpha=0.5)]
    names = ["marginal: of all steps", "conditional: of steps that accept\nd \N{MINUS SIGN} 1 and draft depth d"]
    add_legend(figure, [*handles, *kinds], [*labels, *names], columns=3)
    return figure


def _along(rows: pd.DataFrame, context: FigureContext) -> Figure:
    figure, axes = _canvas("MAT along the answer, all categories", context, 7.6, 4.0)
    for arm in (name for name in context.arms if (rows["arm"] == name).any()):
        colour, marker, _ = context.style(arm)
        own = rows[rows["arm"] == arm]
        axes.plot(own["start"] + BIN / 2, own["mat"], marker=marker, color=colour, lw=1.8, ms=6, label=context.arms[arm])
    axes.axhline(1, color="#444444", lw=1)
    axes.set(xlabel=f"output tokens before the step, in bins of {BIN} tokens with at least {MIN_STEPS} steps", ylabel="MAT (vanilla = 1)")
    axes.set_ylim(bottom=0.9)
    axes.grid(axis="y", color="#DDDDDD", lw=0.6)
    add_legend(figure, *axes.get_legend_handles_labels(), columns=3)
    return figure

"""The report's figures, each as PNG and SVG: colour-blind-safe colours (Okabe and Ito), told apart by marker or hatch too."""

import textwrap
from collections.abc import Mapping
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

from specbench import claims
from specbench.analysis.breakdown import BIN, PARTS
from specbench.analysis.frames import OVERALL
from specbench.store.records import BASELINE

ROUND_COSTS = (1.0, 1.25, 1.5, 2.0, 3.0)
MIN_STEPS = 30  # a rate over fewer steps is noise: the table has it, the figure leaves it out
STYLES = [  # colour, marker, hatch
    ("#000000", "o", ""),
    ("#E69F00", "s", "//"),
    ("#56B4E9", "^", ".."),
    ("#009E73", "D", "xx"),
    ("#CC79A7", "v", "--"),
    ("#D55E00", "P", ""),
    ("#0072B2", "X", "\\\\"),
    ("#F0E442", "*", "++"),
]
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
    "text.parse_math": False,  # a suite's category may hold dollar signs
}


@dataclass(frozen=True)
class Look:
    """What every figure of a run shares; methods and categories map names to labels, in the order to show them."""

    methods: Mapping[str, str]
    categories: Mapping[str, str]  # OVERALL included
    subtitle: str  # target and its label, device, dtype, suite, number of questions

    def style(self, method: str) -> tuple[str, str, str]:
        return STYLES[list(self.methods).index(method) % len(STYLES)]


def draw(
    comparison: pd.DataFrame, split: pd.DataFrame, acceptance: pd.DataFrame, along: pd.DataFrame, look: Look, folder: Path
) -> dict[str, Path]:
    """Draw the look's methods as far as the numbers allow (no speedups without vanilla); each PNG by name, its SVG beside it."""
    timed = comparison[comparison["speedup"].notna() & comparison["method"].isin(list(look.methods)) & (comparison["method"] != BASELINE)]
    split = split[(split["category"] == OVERALL) & split["ms_per_token"].notna()]
    split = split[split.groupby("method")["part"].transform("size") == len(PARTS)]  # a bar of some parts would pass for the whole
    acceptance = acceptance[(acceptance["category"] == OVERALL) & (acceptance["steps"] >= MIN_STEPS)]
    along = along[along["steps"] >= MIN_STEPS]
    with matplotlib.rc_context(RC):
        figures = {
            "speedup": _speedup(timed, look) if len(timed) else None,
            "round_cost": _round_cost(timed[timed["speedup_decode"].notna()], look) if timed["speedup_decode"].notna().any() else None,
            "time_split": _time_split(split, look) if len(split) else None,
            "acceptance": _acceptance(acceptance, look) if len(acceptance) else None,
            "along": _along(along, look) if len(along) else None,
        }
        return {name: save(figure, folder / f"{name}.png") for name, figure in figures.items() if figure}


def save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=150)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})  # the same numbers give the same file
    return path


def _canvas(title: str, look: Look, width: float, height: float, pad: float = 6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes.set_title(textwrap.fill(look.subtitle, int(width * 14)), loc="left", fontsize=9, color="#444444", pad=pad)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _speedup(rows: pd.DataFrame, look: Look) -> Figure:
    figure, axes = _canvas("End-to-end speedup over vanilla, with 95 % intervals", look, 10, 4.8)
    claim = claims.named("s4c")
    band = f"S4C paper's claim {claim.low:.2f}\N{EN DASH}{claim.high:.2f}x (other hardware and models)"
    axes.axhspan(claim.low, claim.high, color="#F0E442", alpha=0.35, lw=0, label=band)
    axes.axhline(1, color="#444444", lw=1)
    methods = [name for name in look.methods if (rows["method"] == name).any()]
    width = 0.82 / len(methods)
    for i, method in enumerate(methods):
        own = rows[rows["method"] == method].set_index("category").reindex(list(look.categories))
        colour, _, hatch = look.style(method)
        places = np.arange(len(own)) + (i - (len(methods) - 1) / 2) * width
        axes.bar(places, own["speedup"], width, color=colour, hatch=hatch, edgecolor="white", lw=0.5, label=look.methods[method])
        axes.errorbar(places, own["speedup"], yerr=reach_of(own, "speedup"), fmt="none", ecolor="#222222", elinewidth=1, capsize=2)
    axes.set_xticks(range(len(look.categories)), list(look.categories.values()))
    axes.axvline(len(look.categories) - 1.5, color="#BBBBBB", lw=0.8, ls=":")
    axes.set_ylabel("speedup (vanilla = 1)")
    axes.set_ylim(0, max(claim.high, _highest(rows, "speedup")) * 1.06)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def reach_of(rows: pd.DataFrame, name: str) -> np.ndarray:
    """Error-bar lengths below and above; with few questions the interval can miss the estimate, hence the clip."""
    value = rows[name].to_numpy()
    return np.maximum([value - rows[f"{name}_low"].to_numpy(), rows[f"{name}_high"].to_numpy() - value], 0)


def _highest(rows: pd.DataFrame, name: str) -> float:
    return float(rows[[name, f"{name}_high"]].max().max())


def _round_cost(rows: pd.DataFrame, look: Look) -> Figure:
    figure, axes = _canvas("What a round costs: decode speedup = MAT / R", look, 7.2, 5.2, pad=20)
    right = _highest(rows, "mat") * 1.06
    top = max(_highest(rows, "speedup_decode"), 1) * 1.12
    bottom = min(rows["speedup_decode"].min(), 1) * 0.85
    for cost in ROUND_COSTS:
        axes.plot([0, right], [0, right / cost], color="#AAAAAA", lw=0.9, zorder=1)
        if bottom < right / cost <= top:
            axes.annotate(
                f"R = {cost:g}", (right, right / cost), (4, 0), textcoords="offset points", va="center", fontsize=9, color="#555555"
            )
        elif right / cost > top:
            axes.annotate(f"R = {cost:g}", (top * cost, top), (0, 4), textcoords="offset points", ha="center", fontsize=9, color="#555555")
    axes.plot(1, 1, "o", color=STYLES[0][0], ms=8, label=look.methods.get(BASELINE, "Vanilla"), zorder=3)
    for method in (name for name in look.methods if (rows["method"] == name).any()):
        colour, marker, _ = look.style(method)
        own = rows[rows["method"] == method]
        one, parts = own[own["category"] == OVERALL], own[own["category"] != OVERALL]
        axes.plot(parts["mat"], parts["speedup_decode"], marker, color=colour, ms=5, alpha=0.45, mec="none", zorder=2)
        up, across = reach_of(one, "speedup_decode"), reach_of(one, "mat")
        axes.errorbar(one["mat"], one["speedup_decode"], up, across, fmt="none", ecolor=colour, elinewidth=1.2, capsize=2, zorder=3)
        axes.plot(one["mat"], one["speedup_decode"], marker, color=colour, ms=9, mec="white", mew=0.8, label=look.methods[method], zorder=4)
    axes.set(xlim=(0.9, right), ylim=(bottom, top), xlabel="MAT, tokens per round", ylabel="decode speedup (vanilla = 1)")
    handles, labels = axes.get_legend_handles_labels()
    small = Line2D([], [], ls="", marker="o", color="#555555", alpha=0.45, ms=5)
    figure.legend([*handles, small], [*labels, "small: one category"], loc="outside lower center", ncols=4, frameon=False)
    return figure


def _time_split(rows: pd.DataFrame, look: Look) -> Figure:
    methods = [name for name in look.methods if (rows["method"] == name).any()]
    figure, axes = _canvas("Where the time goes, all categories", look, 8.4, 1.9 + 0.45 * len(methods))
    table = rows.pivot(index="method", columns="part", values="ms_per_token").reindex(methods)
    left = np.zeros(len(methods))
    for part in PARTS:
        colour, hatch = PART_STYLES[part]
        axes.barh(
            range(len(methods)), table[part], left=left, height=0.68, color=colour, hatch=hatch, edgecolor="#333333", lw=0.6, label=part
        )
        left = left + table[part].to_numpy()
    for row, total in enumerate(left):
        axes.annotate(f"{total:.3g}", (total, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(methods)), [look.methods[name] for name in methods])
    axes.invert_yaxis()
    axes.set_xlim(0, left.max() * 1.08)
    axes.set_xlabel("milliseconds per output token, end to end")
    figure.legend(loc="outside lower center", ncols=len(PARTS), frameon=False)
    return figure


def _acceptance(rows: pd.DataFrame, look: Look) -> Figure:
    figure, axes = _canvas("Acceptance by depth of the draft tree, all categories", look, 7.6, 4.8)
    for method in (name for name in look.methods if (rows["method"] == name).any()):
        colour, marker, _ = look.style(method)
        own = rows[rows["method"] == method]
        likely = own[own["reached"] >= MIN_STEPS]
        axes.plot(own["depth"], own["marginal"], marker=marker, color=colour, lw=1.8, ms=7, label=look.methods[method])
        axes.plot(likely["depth"], likely["conditional"], marker=marker, color=colour, lw=1.2, ls="--", ms=4, alpha=0.5)
    axes.set(ylim=(0, 1.02), xlabel="depth d", ylabel="share of rounds that accept at least d drafts")
    axes.set_xticks(range(1, rows["depth"].max() + 1))
    axes.grid(axis="y", color="#DDDDDD", lw=0.6)
    handles, labels = axes.get_legend_handles_labels()
    kinds = [Line2D([], [], color="#444444", lw=1.8), Line2D([], [], color="#444444", lw=1.2, ls="--", alpha=0.5)]
    names = ["marginal: of all rounds", "conditional: of those that accept d \N{MINUS SIGN} 1 and draft d"]
    figure.legend([*handles, *kinds], [*labels, *names], loc="outside lower center", ncols=3, frameon=False)
    return figure


def _along(rows: pd.DataFrame, look: Look) -> Figure:
    figure, axes = _canvas("MAT along the answer, all categories", look, 7.6, 4.4)
    for method in (name for name in look.methods if (rows["method"] == name).any()):
        colour, marker, _ = look.style(method)
        own = rows[rows["method"] == method]
        axes.plot(own["start"] + BIN / 2, own["mat"], marker=marker, color=colour, lw=1.8, ms=6, label=look.methods[method])
    axes.axhline(1, color="#444444", lw=1)
    axes.set(xlabel=f"output tokens before the step, in bins of {BIN}; bins of at least {MIN_STEPS} steps", ylabel="MAT (vanilla = 1)")
    axes.set_ylim(bottom=0.9)
    axes.grid(axis="y", color="#DDDDDD", lw=0.6)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure

"""The figures of the report, each as PNG and SVG."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from specbench.analysis.breakdown import BIN, PARTS
from specbench.analysis.frames import OVERALL
from specbench.config.arm import BASELINE
from specbench.report.canvas import RC, STYLES, FigureContext, add_legend, highest, new_canvas, reach_of, save
from specbench.report.speedup_figure import speedup_figure

STEP_COSTS = (1.0, 1.25, 1.5, 2.0, 3.0)
MIN_STEPS = 30  # rates over fewer steps are too noisy to draw; the table has them
PART_STYLES = {
    "draft": ("#E69F00", "//"),
    "verify": ("#0072B2", ""),
    "commit": ("#009E73", "xx"),
    "other": ("#999999", ".."),
    "prefill": ("#FFFFFF", "\\\\"),
}


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
    with matplotlib.rc_context(RC | {"font.family": list(context.fonts)}):
        figures = {
            "speedup": speedup_figure(timed, context) if len(timed) else None,
            "step_cost": _step_cost(timed[timed["speedup_decode"].notna()], context) if timed["speedup_decode"].notna().any() else None,
            "time_split": _time_split(split, context) if len(split) else None,
            "acceptance": _acceptance(acceptance, context) if len(acceptance) else None,
            "along": _along(along, context) if len(along) else None,
        }
        return {name: save(figure, folder / f"{name}.png") for name, figure in figures.items() if figure}


def _step_cost(rows: pd.DataFrame, context: FigureContext) -> Figure:
    figure, axes = new_canvas("Step cost R: decode speedup = MAT / R", context, 7.2, 4.8, pad=20)
    right = highest(rows, "mat") * 1.06
    top = max(highest(rows, "speedup_decode"), 1) * 1.12
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
    figure, axes = new_canvas("Where the time goes, all categories", context, 8.4, 1.9 + 0.3 * len(arms) + 0.15 * lines)
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
    figure, axes = new_canvas("Acceptance by depth of the draft tree, all categories", context, 7.6, 4.3)
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
    figure, axes = new_canvas("MAT along the answer, all categories", context, 7.6, 4.0)
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

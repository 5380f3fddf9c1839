"""A roofline as files: JSON with everything, CSV with the rows, Markdown, and the figure."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.figure
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import ScalarFormatter

from specbench.report.blocks import Block, Bullets, Figure
from specbench.report.canvas import RC, STYLES, save
from specbench.studies.base import ms, table, title_blocks, write_json, write_report
from specbench.studies.roofline.cost import KNEE
from specbench.studies.roofline.result import Drafted, Roofline
from specbench.util.text import NONE, TextTable, number, percent

HOW = (
    "Nodes are drafted nodes; a tree's size n counts the root too. T(n) is the time to score a tree of size n, V(n) = T(n) / T(1). The "
    "step cost R is a method's whole step (draft, verify, commit) over vanilla's.",
    "The limit is the slower of two times: moving the bytes at the device's copy bandwidth, and doing the arithmetic at its matrix-product "
    "rate, both measured here. Bytes and FLOPs count weights (read once a pass), cached keys and values, and 2 FLOPs for each weight and "
    "row. Activations, logits, and launches are not counted.",
    "Drafting is counted from the calls of the drafter's modules and of the target's head that the method makes at its tree size. Each "
    "call reads its weights anew; rows that pad to a fixed size count.",
    "Times are medians over many repeats after a warm-up: of Target.score for trees, of the steps of whole answers for methods.",
)
FAST_READS = (
    "A share above 100 % means that weights were read faster than this device copies: from a last-level cache, or because reading alone "
    "is faster than reading and writing."
)
MEASURED, MODEL = STYLES[6][0], STYLES[5][0]


def write(roofline: Roofline, folder: Path) -> None:
    """Write ``roofline.json``, ``.md``, ``.csv``, ``.png`` and ``.svg``. Raises UserError if they cannot be written."""
    write_json(folder / "roofline.json", roofline.json())
    png = draw(roofline, folder)
    write_report(folder, "roofline", blocks(roofline, png), roofline.frame())


def blocks(roofline: Roofline, png: Path) -> list[Block]:
    """Return the report's blocks; ``png`` is the figure."""
    above_limit = [FAST_READS] if (roofline.frame()["share_of_limit"] > 1).any() else []
    picture = Figure(png, "V(n) and T(n), measured and at the limit", "Two panels: V(n) and T(n) over tree size")
    return [
        *title_blocks(f"Roofline of {roofline.conditions.target}", sentence(roofline), roofline.conditions.note),
        Bullets(summary(roofline)),
        *tables(roofline),
        picture,
        Bullets([*HOW, *above_limit]),
    ]


def sentence(roofline: Roofline) -> str:
    """Return the conditions in one line."""
    return roofline.conditions.sentence(f"{roofline.past} committed tokens")


def summary(roofline: Roofline) -> list[str]:
    """Return the main results, one a line."""
    bandwidth, rate = roofline.device
    plain = roofline.verified[0]
    peak = f"{roofline.peak_bytes / 2**20:,.0f} MiB" if roofline.peak_bytes else NONE
    share = percent(plain.cost.seconds(roofline.device) / plain.seconds)
    return [
        f"This device copies {bandwidth / 1e9:,.1f} GB/s and multiplies matrices at {rate / 1e9:,.0f} GFLOP/s in "
        f"{roofline.conditions.dtype}.",
        f"A plain step takes {ms(plain.seconds)} ms, {share} of the limit.",
        f"Knee: {roofline.knee} nodes, the largest measured tree up to which V(n) stays within {KNEE}; at the limit "
        f"{roofline.knee_at_limit} of {max(roofline.limit)}.",
        f"Loading took {roofline.load_s:.1f} s, preparing (compiling, capturing, first calls) {roofline.prepare_s:.1f} s; "
        f"peak memory {peak}.",
    ]


def tables(roofline: Roofline) -> list[TextTable]:
    """Return the table of trees and the table of methods."""
    return [_trees(roofline), _methods(roofline)]


def _trees(roofline: Roofline) -> TextTable:
    rows = []
    for tree in roofline.verified:
        limit = tree.cost.seconds(roofline.device)
        rows.append(
            {
                "Nodes": str(tree.nodes),
                "Tree size n": str(tree.nodes + 1),
                "MB": number(tree.cost.bytes / 1e6, 1),
                "GFLOP": number(tree.cost.flops / 1e9),
                "Limit ms": ms(limit),
                "Measured ms": ms(tree.seconds),
                "V(n)": number(tree.seconds / roofline.plain_s),
                "V(n) at limit": number(limit / roofline.limit[0]),
                "Share of limit": percent(limit / tree.seconds),
                "Bound by": tree.cost.bound(roofline.device),
            }
        )
    return table("Verifying a draft tree", rows)


def _methods(roofline: Roofline) -> TextTable:
    rows = [
        {
            "Method": drafted.title,
            "Nodes": str(drafted.nodes),
            "Tree size": str(drafted.nodes + 1),
            **_drafting(drafted, roofline),
            "Verify ms": ms(drafted.verify_s),
            "Commit ms": ms(drafted.commit_s),
            "R": number(roofline.step_cost(drafted)),
        }
        for drafted in roofline.drafted
    ]
    return table("A step of each method (step cost R: the whole step over vanilla's)", rows)


def _drafting(drafted: Drafted, roofline: Roofline) -> Mapping[str, str]:
    limit = drafted.cost.seconds(roofline.device)
    counted = {"Draft MB": NONE, "GFLOP": NONE, "Limit ms": NONE, "Draft ms": ms(drafted.draft_s), "Share of limit": NONE}
    if not limit:  # a drafter without a model has no limit
        return counted
    return {
        **counted,
        "Draft MB": number(drafted.cost.bytes / 1e6, 1),
        "GFLOP": number(drafted.cost.flops / 1e9),
        "Limit ms": ms(limit),
        "Share of limit": percent(limit / drafted.draft_s),
    }


def draw(roofline: Roofline, folder: Path) -> Path:
    """Draw ``roofline.png`` with an SVG beside it, and return the PNG's path."""
    conditions = roofline.conditions
    with matplotlib.rc_context(RC):
        figure = matplotlib.figure.Figure(figsize=(10, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        ratio, milliseconds = figure.subplots(1, 2)
        label = " (cost-matched)" if conditions.note else ""
        subject = f"{conditions.target}{label}, {conditions.dtype}, {conditions.backend}, {roofline.past} committed tokens"
        figure.suptitle(f"{subject}, {conditions.processor}", x=0.01, ha="left", fontsize=11, fontweight="bold")

        _panel(ratio, roofline, 1 / roofline.plain_s, 1 / roofline.limit[0], "V(n) = T(n) / T(1)")
        ratio.axhline(KNEE, color="#777777", lw=0.9, ls=":", label=f"V(n) = {KNEE}")
        ratio.axvline(roofline.knee + 1, color="#777777", lw=0.9, ls="--", label=f"knee: {roofline.knee} nodes")
        ratio.set_ylim(bottom=0)
        ratio.legend(frameon=False)

        _panel(milliseconds, roofline, 1e3, 1e3, "T(n), milliseconds")
        milliseconds.set_ylim(bottom=0)
        milliseconds.legend(frameon=False)
        return save(figure, folder / "roofline.png")


def _panel(axes: Axes, roofline: Roofline, measured_scale: float, limit_scale: float, title: str) -> None:
    sizes = [tree.nodes + 1 for tree in roofline.verified]
    measured = [tree.seconds * measured_scale for tree in roofline.verified]
    limit = [seconds * limit_scale for seconds in roofline.limit.values()]
    axes.plot([nodes + 1 for nodes in roofline.limit], limit, color=MODEL, lw=1.6, label="cost model's limit")
    axes.plot(sizes, measured, "o", color=MEASURED, ms=7, label="measured")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel("tree size n: drafted nodes and the root")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(color="#DDDDDD", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)

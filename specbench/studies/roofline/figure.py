"""The roofline's figure: V(n) and T(n), measured points beside the cost model's curve."""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from specbench.report.figures import RC, STYLES, save
from specbench.studies.roofline.cost import KNEE
from specbench.studies.roofline.result import Roofline

MEASURED, MODEL = STYLES[6][0], STYLES[5][0]


def draw(roofline: Roofline, folder: Path) -> Path:
    """Draw ``roofline.png`` with an SVG beside it, and return the PNG's path."""
    conditions = roofline.conditions
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
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

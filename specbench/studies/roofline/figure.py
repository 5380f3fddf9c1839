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


def draw(found: Roofline, folder: Path) -> Path:
    """``roofline.png`` with its SVG beside it."""
    facts, where = found.facts, found.facts["environment"]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        ratio, milliseconds = figure.subplots(1, 2)
        label = " (cost-matched)" if facts["note"] else ""
        what = f"{facts['target']}{label}, {facts['dtype']}, {facts['backend']}, {facts['past']} committed tokens"
        figure.suptitle(f"{what}, {where['gpu'] or where['cpu']}", x=0.01, ha="left", fontsize=11, fontweight="bold")
        _panel(ratio, found, 1 / found.plain_s, 1 / found.limit[1], "V(n) = T(n) / T(1)")
        ratio.axhline(KNEE, color="#777777", lw=0.9, ls=":", label=f"V(n) = {KNEE}")
        ratio.axvline(found.knee, color="#777777", lw=0.9, ls="--", label=f"knee: {found.knee} nodes")
        ratio.set_ylim(bottom=0)
        ratio.legend(frameon=False)
        _panel(milliseconds, found, 1e3, 1e3, "T(n), milliseconds")
        milliseconds.set_ylim(bottom=0)
        milliseconds.legend(frameon=False)
        return save(figure, folder / "roofline.png")


def _panel(axes: Axes, found: Roofline, measured_scale: float, limit_scale: float, title: str) -> None:
    nodes, seconds = zip(*((each.nodes, each.seconds * measured_scale) for each in found.verified), strict=True)
    axes.plot(list(found.limit), [each * limit_scale for each in found.limit.values()], color=MODEL, lw=1.6, label="cost model's limit")
    axes.plot(nodes, seconds, "o", color=MEASURED, ms=7, label="measured")
    axes.set_xscale("log", base=2)
    axes.set_xticks(nodes)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel("nodes n of the tree")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(color="#DDDDDD", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)

"""A roofline as files: JSON with everything, CSV with the rows, Markdown to read, and the figure."""

import json
from collections.abc import Sequence
from pathlib import Path

from specbench.report import markdown
from specbench.report.blocks import Block, Bullets, Figure, Heading, Paragraph
from specbench.studies.roofline import figure
from specbench.studies.roofline.cost import KNEE
from specbench.studies.roofline.result import Drafted, Roofline
from specbench.util.files import whole
from specbench.util.table import NONE, TextTable, number, percent

HOW = (
    "The limit is the slower of moving the bytes at the device's copy bandwidth and of doing the arithmetic at its matrix-product rate, "
    "both measured here. Counted are weights (each once a pass), cached keys and values, and 2 FLOPs a weight and row; not activations, "
    "logits or launches.",
    "A drafter's round is counted from the calls of its modules and of the target's head that its method really makes at its tree size, "
    "each call reading its weights anew; rows that only pad to a fixed size count.",
    "Seconds are medians over many repeats after a warm-up: of Target.score for trees, of whole answers' rounds for methods. V(n) is a "
    "tree's T(n) over T(1); R is a method's draft, verify and commit over vanilla's.",
)
FAST_READS = (
    "A share above 100 % means that weights were read faster than this device copies: from a last-level cache, or because reading alone "
    "is faster than reading and writing."
)


def write(found: Roofline, out: Path) -> None:
    """``roofline.json``, ``.md``, ``.csv``, ``.png`` and ``.svg``. Raises UserError where they cannot be written."""
    with whole(out / "roofline.json") as file:
        file.write_text(json.dumps(found.json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with whole(out / "roofline.csv") as file:
        found.frame().to_csv(file, index=False, float_format="%.6g")
    png = figure.draw(found, out)
    with whole(out / "roofline.md") as file:
        file.write_text(markdown.render(blocks(found, png), out), encoding="utf-8")


def blocks(found: Roofline, png: Path) -> list[Block]:
    remarks = [FAST_READS] if (found.frame()["share_of_limit"] > 1).any() else []
    picture = Figure(png, "V(n) and T(n), measured and at the limit", "Two panels: V(n) and T(n) over tree size")
    return [
        Heading(1, f"Roofline of {found.facts['target']}"),
        Paragraph(conditions(found)),
        *([Paragraph(found.facts["note"], warning=True)] if found.facts["note"] else []),
        Bullets(summary(found)),
        *tables(found),
        picture,
        Bullets([*HOW, *remarks]),
    ]


def conditions(found: Roofline) -> str:
    facts, where = found.facts, found.facts["environment"]
    threads = "" if where["gpu"] else f", {where['threads']} threads"
    return (
        f"{facts['target']} ({facts['parameters'] / 1e6:,.0f} M parameters), {facts['dtype']}, back end {facts['backend']}, "
        f"{facts['past']} committed tokens; {where['gpu'] or where['cpu']}{threads}, torch {where['torch']}, transformers "
        f"{where['transformers']}"
    )


def summary(found: Roofline) -> list[str]:
    bandwidth, rate = found.device
    plain = found.verified[0]
    peak = f"{found.peak_bytes / 2**20:,.0f} MiB" if found.peak_bytes else NONE
    return [
        f"This device copies {bandwidth / 1e9:,.1f} GB/s and multiplies matrices at {rate / 1e9:,.0f} GFLOP/s in {found.facts['dtype']}.",
        f"A plain step takes {1e3 * plain.seconds:.2f} ms, {percent(plain.cost.seconds(found.device) / plain.seconds)} of the limit.",
        f"Knee: {found.knee} nodes, the largest measured tree up to which V(n) stays within {KNEE}; at the limit {found.knee_at_limit} "
        f"of {max(found.limit)}.",
        f"Loading took {found.load_s:.1f} s, preparing (compiling, capturing, first calls) {found.prepare_s:.1f} s; peak memory {peak}.",
    ]


def tables(found: Roofline) -> list[TextTable]:
    return [_trees(found), _methods(found)]


def _trees(found: Roofline) -> TextTable:
    headers = ["Nodes", "MB", "GFLOP", "Limit ms", "Measured ms", "V(n)", "V(n) at limit", "Share of limit", "Bound by"]
    rows = []
    for each in found.verified:
        limit = each.cost.seconds(found.device)
        ratios = [number(each.seconds / found.plain_s), number(limit / found.limit[1])]
        cells = [number(each.cost.bytes / 1e6, 1), number(each.cost.flops / 1e9), number(1e3 * limit), number(1e3 * each.seconds)]
        rows.append([str(each.nodes), *cells, *ratios, percent(limit / each.seconds), each.cost.bound(found.device)])
    return TextTable("Verifying a tree of n nodes", headers, rows)


def _methods(found: Roofline) -> TextTable:
    headers = ["Method", "Nodes", "Draft MB", "GFLOP", "Limit ms", "Draft ms", "Share of limit", "Verify ms", "Commit ms", "R"]
    rows = [[each.title, str(each.nodes), *_draft(each, found), *_rest(each, found)] for each in found.drafted]
    return TextTable("A round of each method (R: the whole round over vanilla's)", headers, rows)


def _draft(each: Drafted, found: Roofline) -> Sequence[str]:
    limit = each.cost.seconds(found.device)
    if not limit:  # a drafter without a model: nothing to be far from
        return [NONE, NONE, NONE, number(1e3 * each.draft_s), NONE]
    counts = [number(each.cost.bytes / 1e6, 1), number(each.cost.flops / 1e9)]
    return [*counts, number(1e3 * limit), number(1e3 * each.draft_s), percent(limit / each.draft_s)]


def _rest(each: Drafted, found: Roofline) -> Sequence[str]:
    return [number(1e3 * each.verify_s), number(1e3 * each.commit_s), number(found.round_cost(each))]

"""A profile as Markdown, CSV and tables."""

from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd

from specbench.report import markdown
from specbench.report.blocks import Block, Bullets, Heading, Paragraph
from specbench.store.manifest import RunManifest
from specbench.studies.profiling.run import Profile
from specbench.studies.profiling.split import PHASES, TOP_OPS
from specbench.util.files import whole
from specbench.util.table import NONE, TextTable, number, percent

HOW = (
    "Rounds only: prefill is left out. Draft, verify and commit lie where the decode loop's clock has them; acceptance belongs to verify, "
    "the host's read of a round to commit.",
    "On a CPU the parts are time inside torch's ops; host is time inside none: Python and the loop. On CUDA they are time in which the "
    "device runs what the part launched; launch gaps and host are time in which it runs nothing, with the host inside an op or a CUDA "
    "call, or inside neither.",
    "The profiler slows what it watches, small ops most: the shares lean towards parts of many small ops, and host. Milliseconds without "
    "it are of the same answers just before.",
    "Host reads: on CUDA copies from the device, and beside them calls that wait for it. On a CPU reads of single values, which wait for "
    "nothing; there a tolist leaves no trace, and the loop's one read a round is of that kind.",
)


def write(found: Sequence[Profile], manifest: RunManifest, out: Path) -> None:
    """``profile.md`` and ``profile.csv``. Raises UserError where they cannot be written."""
    with whole(out / "profile.csv") as file:
        frame(found).to_csv(file, index=False, float_format="%.6g")
    with whole(out / "profile.md") as file:
        file.write_text(markdown.render(blocks(found, manifest), out), encoding="utf-8")


def blocks(found: Sequence[Profile], manifest: RunManifest) -> list[Block]:
    note = manifest.target["note"]
    return [
        Heading(1, f"Profile of {manifest.settings.target}"),
        Paragraph(conditions(manifest)),
        *([Paragraph(note, warning=True)] if note else []),
        split_table(found),
        Bullets(HOW),
        *(table for each in found for table in ops_tables(each)),
        Bullets([f"{each.title}: {each.trace.name} opens in ui.perfetto.dev or chrome://tracing" for each in found]),
    ]


def conditions(manifest: RunManifest) -> str:
    settings, where = manifest.settings, manifest.environment
    processor = where["gpu"] or f"{where['cpu']}, {where['threads']} threads"
    return (
        f"{settings.target}, {settings.dtype}, back end {settings.backend}, {processor}, torch {where['torch']}; suite {settings.suite}, "
        f"{sum(manifest.categories.values())} questions, first turns, {settings.max_new_tokens} new tokens, greedy"
    )


def split_table(found: Sequence[Profile]) -> TextTable:
    headers = ["Method", "Rounds", "Ms a round", "profiled", "Draft", "Verify", "Commit", "Launch gaps", "Host", "Reads a round", "Waits"]
    return TextTable("Where the wall-clock of a round goes", headers, [_cells(each) for each in found])


def ops_tables(each: Profile) -> list[TextTable]:
    found = []
    for phase, costs in each.split.ops.items():
        rows = [[cost.name, number(1e3 * cost.seconds / each.split.rounds, 3), number(cost.calls / each.split.rounds, 1)] for cost in costs]
        if rows:
            found.append(
                TextTable(f"{each.title}, {phase}: the {TOP_OPS} that take most time", ["Op", "Ms a round", "Calls a round"], rows)
            )
    return found


def frame(found: Sequence[Profile]) -> pd.DataFrame:
    """One row a part of each method's round (``op`` empty) and one an op; milliseconds, share of the wall-clock, calls a round."""
    return pd.DataFrame([row for each in found for row in _rows(each)])


def _rows(each: Profile) -> Iterator[dict[str, Any]]:
    split = each.split
    parts = {**split.busy, "launch gaps": split.gaps, "host": split.host, "round": split.wall}
    counts = {"host reads": split.reads, "waits": split.waits}
    for part, seconds in parts.items():
        yield {"method": each.arm, "part": part, "op": "", "ms": 1e3 * seconds / split.rounds, "share": seconds / split.wall}
    yield {"method": each.arm, "part": "round without profiler", "op": "", "ms": 1e3 * each.plain_s}
    for part, count in counts.items():
        yield {"method": each.arm, "part": part, "op": "", "calls": None if count is None else count / split.rounds}
    for part in PHASES:
        for op in split.ops[part]:
            facts = {"ms": 1e3 * op.seconds / split.rounds, "share": op.seconds / split.wall, "calls": op.calls / split.rounds}
            yield {"method": each.arm, "part": part, "op": op.name, **facts}


def _cells(each: Profile) -> list[str]:
    split = each.split
    times = [number(1e3 * each.plain_s), number(1e3 * split.wall / split.rounds)]
    gaps = NONE if isnan(split.gaps) else percent(split.gaps / split.wall)
    shares = [*(percent(split.busy[phase] / split.wall) for phase in PHASES), gaps, percent(split.host / split.wall)]
    waits = NONE if split.waits is None else number(split.waits / split.rounds, 1)
    return [each.title, str(split.rounds), *times, *shares, number(split.reads / split.rounds, 1), waits]

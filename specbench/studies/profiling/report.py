"""A profile as Markdown, CSV and tables."""

from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd

from specbench.report.blocks import Block, Bullets
from specbench.studies.base import ms, table, title_blocks, write_report
from specbench.studies.profiling.run import ArmProfile, Profile
from specbench.studies.profiling.split import PHASES, TOP_OPS
from specbench.util.text import NONE, TextTable, number, percent

HOW = (
    "Only steps are counted, prefill is left out. Draft, verify and commit begin and end where the decode loop's clock has them: "
    "acceptance belongs to verify, the host's read of a step's tokens to commit.",
    "On a CPU the phases are time inside torch's ops, and host is time outside any op: Python and the loop. On CUDA they are time in which "
    "the device runs what the phase launched. Launch gaps and host are time in which it runs nothing: the host is inside an op or a CUDA "
    "call, or inside neither.",
    "The profiler slows what it observes, small ops most, so phases of many small ops and host look larger than they are. Ms a step is "
    "measured without the profiler, on the same answers just before.",
    "Reads: on CUDA, copies from the device to the host; calls that wait for the device are counted apart. On a CPU, reads of single "
    "values, which wait for nothing. The loop's own read of a step's tokens is a tolist, which the profiler does not see on a CPU.",
)


def write(profile: Profile, out: Path) -> None:
    """Write ``profile.md`` and ``profile.csv``. Raises UserError if they cannot be written."""
    write_report(out, "profile", blocks(profile), frame(profile.arms))


def blocks(profile: Profile) -> list[Block]:
    """Return the report's blocks."""
    traces = [f"{arm.title}: {arm.trace.name} opens in ui.perfetto.dev or chrome://tracing" for arm in profile.arms]
    return [
        *title_blocks(f"Profile of {profile.conditions.target}", profile.sentence, profile.conditions.note),
        split_table(profile.arms),
        Bullets(HOW),
        *(ops for arm in profile.arms for ops in ops_tables(arm)),
        Bullets(traces),
    ]


def split_table(arms: Sequence[ArmProfile]) -> TextTable:
    """Return the table of the parts of a step's time, one row an arm."""
    rows = []
    for arm in arms:
        split = arm.split
        row = {"Method": arm.title, "Steps": str(split.steps), "Ms a step": ms(arm.plain_s), "Profiled": ms(split.wall / split.steps)}
        row |= {phase.capitalize(): percent(split.busy[phase] / split.wall) for phase in PHASES}
        row["Launch gaps"] = NONE if isnan(split.gaps) else percent(split.gaps / split.wall)
        row["Host"] = percent(split.host / split.wall)
        row["Reads a step"] = number(split.reads / split.steps, 1)
        row["Waits"] = NONE if split.waits is None else number(split.waits / split.steps, 1)
        rows.append(row)
    return table("Where the time of a step goes", rows)


def ops_tables(arm: ArmProfile) -> list[TextTable]:
    """Return a table of the slowest ops for each phase that has any."""
    tables = []
    for phase, ops in arm.split.ops.items():
        rows = [
            {"Op": op.name, "Ms a step": ms(op.seconds / arm.split.steps, 3), "Calls a step": number(op.calls / arm.split.steps, 1)}
            for op in ops
        ]
        if rows:
            tables.append(table(f"{arm.title}, {phase}: the {TOP_OPS} ops that take most time", rows))
    return tables


def frame(arms: Sequence[ArmProfile]) -> pd.DataFrame:
    """Return one row for each part of each arm's step (``op`` is empty) and one for each op.

    Columns: milliseconds a step, share of the wall-clock time, calls a step.
    """
    return pd.DataFrame([row for arm in arms for row in _rows(arm)])


def _rows(arm: ArmProfile) -> Iterator[dict[str, Any]]:
    split = arm.split
    parts = {**split.busy, "launch gaps": split.gaps, "host": split.host, "step": split.wall}
    counts = {"host reads": split.reads, "waits": split.waits}
    for part, seconds in parts.items():
        yield {"arm": arm.arm, "part": part, "op": "", "ms": 1e3 * seconds / split.steps, "share": seconds / split.wall}
    yield {"arm": arm.arm, "part": "step without profiler", "op": "", "ms": 1e3 * arm.plain_s}
    for part, count in counts.items():
        yield {"arm": arm.arm, "part": part, "op": "", "calls": None if count is None else count / split.steps}
    for part in PHASES:
        for op in split.ops[part]:
            numbers = {"ms": 1e3 * op.seconds / split.steps, "share": op.seconds / split.wall, "calls": op.calls / split.steps}
            yield {"arm": arm.arm, "part": part, "op": op.name, **numbers}

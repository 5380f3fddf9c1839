"""The benchmark as files: Markdown to read, what was missed named first, and a CSV with every number but the profiler's."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from specbench.report import markdown
from specbench.report.blocks import Block, Bullets, Heading, Paragraph
from specbench.studies.bench import finding, ratios, rounds
from specbench.studies.bench.finding import MISSED, Finding
from specbench.studies.bench.ratios import VerifyRatio
from specbench.studies.bench.rounds import RoundTime
from specbench.util.files import whole
from specbench.util.table import TextTable

FINDINGS = (
    "Ratios are of tokens/s, ours over theirs: medians of pairs that share a prompt and run one right after the other, who goes first "
    "changing. Greedy, end-of-sequence ignored, the same number of new tokens on both sides.",
    "Eager vanilla / generate: our decode loop against transformers' own, both calling modules as they are; below 1 our speedups would be "
    "measured from a slow baseline.",
    "Prompt lookup: the same draft rule in both, so only the loops differ.",
    "Static vanilla: the static back end without any drafting: fixed shapes and compiled layers; on a CPU packed weights, on CUDA captured "
    "graphs.",
    "Outside decoding: 1 \N{MINUS SIGN} decoding / wall-clock of a measured run, question by question.",
)
ROUNDS = (
    "A round is draft, verify and commit of one decode step, its median over all rounds of several answers; random weights accept next to "
    "nothing, so this is pure overhead and cost. The target is a Llama 384 wide (intermediate 1024, 6 heads, vocabulary 2000; 12.2 M "
    "parameters with 6 layers). EAGLE-2's drafter runs all five levels, though its guesses are so even that the kept trees are shallow.",
    "Floors: the cost model's limit (weights and cache at the measured copy bandwidth, or products at the measured matrix rate, whichever "
    "is slower) of what drafting calls and of verifying the tree; the share is both floors over the round.",
    "Reference: Spec-Bench's code for Medusa (6 layers) and EAGLE-3 (8 layers), fp32, two threads, measured on another machine; wanted is "
    "half of it.",
)
OPS = (
    "One more answer of each under the torch profiler, after everything that is timed; milliseconds a round with the calls a round in "
    "brackets. The profiler slows small ops most, and what Python does between ops is no op's.",
)
RATIOS = ("V(n) is the time of verifying a tree of n nodes over that of a plain step, on the same back end: medians of scoring alone.",)


def tables(
    findings: Sequence[Finding], times: Sequence[RoundTime], verified: Sequence[VerifyRatio]
) -> list[tuple[TextTable, Sequence[str]]]:
    """What was measured, each with what a reader must know of it."""
    explained = [
        (finding.table(findings), FINDINGS),
        (rounds.table(times), ROUNDS),
        (rounds.ops_table(times), OPS),
        (ratios.table(verified), RATIOS),
    ]
    return [(table, meaning) for table, meaning in explained if table.rows]


def misses(findings: Sequence[Finding], times: Sequence[RoundTime]) -> list[str]:
    """One line for each bound that was not kept, with what the time went to where that is known."""
    lines = [
        f"{each.what}: {median} where {wanted} was wanted"
        for each in findings
        if each.verdict == MISSED
        for _, median, _, _, wanted, *_ in [each.cells()]
    ]
    for each in times:
        if each.verdict == MISSED:
            draft, verify, commit = (1e3 * each.part_s(part) for part in rounds.PARTS)
            lines.append(
                f"{each.subject.what}, {each.subject.layers} layers, {each.dtype}, {each.backend}: {1e3 * each.quartiles.median:.2f} ms "
                f"where {1e3 * each.subject.wanted_s:.2f} was wanted; draft {draft:.2f} (floor {1e3 * each.draft_floor_s:.2f}), verify "
                f"{verify:.2f} (floor {1e3 * each.verify_floor_s:.2f}), commit {commit:.2f}"
                + (f"; most of {each.furthest}: {rounds.ops(each.split, each.furthest)}" if each.split else "")
            )
    return lines


def write(conditions: str, findings: Sequence[Finding], times: Sequence[RoundTime], verified: Sequence[VerifyRatio], out: Path) -> None:
    """``bench.md`` and ``bench.csv`` of what was measured. Raises UserError where they cannot be written."""
    rows = [*(each.row() for each in findings), *(each.row() for each in times), *(row for each in verified for row in each.rows())]
    with whole(out / "bench.csv") as file:
        pd.DataFrame(rows).to_csv(file, index=False, float_format="%.5g")
    missed = misses(findings, times)
    blocks: list[Block] = [
        Heading(1, "Benchmark of the harness"),
        *(Paragraph(line) for line in conditions.splitlines()),
        *([Paragraph("Missed:"), Bullets(missed)] if missed else [Paragraph("Every bound was kept.")]),
    ]
    for table, meaning in tables(findings, times, verified):
        blocks += [table, Bullets(meaning)]
    with whole(out / "bench.md") as file:
        file.write_text(markdown.render(blocks, out), encoding="utf-8")

"""The benchmark as files: Markdown that begins with the bounds that were missed, and a CSV with every number but the profiler's."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from specbench.report.blocks import Block, Bullets, Paragraph
from specbench.store.records import STEP_PARTS
from specbench.studies.base import ms, title_blocks, write_report
from specbench.studies.bench.finding import MISSED, findings_table
from specbench.studies.bench.run import Benchmark
from specbench.studies.bench.steps import StepTimes, ops_table, slowest_ops, steps_table, verify_table
from specbench.util.text import TextTable

FINDINGS = (
    "Ratios are of tokens/s, ours over theirs: medians of pairs that share a prompt and run directly after each other, taking turns to go "
    "first. Decoding is greedy and ignores end-of-sequence, so both sides emit the same number of new tokens.",
    "Eager vanilla / generate compares our decode loop with transformers' own; both call modules as they are. Below 1, our speedups would "
    "be measured from a slow baseline.",
    "Prompt lookup compares the loops alone, because both sides have the same draft rule.",
    "Static vanilla is the static back end without drafting: fixed shapes and compiled layers, with packed weights on a CPU and captured "
    "graphs on CUDA.",
    "Prefill is timed on a random Llama of two layers, 64 wide, whose time is nearly all attention. The bound is 1.2 times transformers' "
    "time.",
    "Time outside decoding is 1 \N{MINUS SIGN} decoding / wall-clock time of a measured run, question by question.",
)
STEPS = (
    "A step is draft, verify and commit; its time is the median over all steps of several answers. Drafts of random weights are "
    "almost never accepted, so the table shows cost only. The target is a Llama 384 wide (intermediate 1024, 6 heads, vocabulary 2000; "
    "12.2 M parameters with 6 layers). EAGLE-2's drafter runs all five levels, but its guesses are so even that kept trees are shallow.",
    "The floors are the cost model's limits for the drafting calls and for verifying the tree: weights and cache at the measured copy "
    "bandwidth, or products at the measured matrix rate, whichever is slower. The share is the sum of both floors over the step's time.",
    "The reference is Spec-Bench's code for Medusa (6 layers) and EAGLE-3 (8 layers) in fp32 with two threads, measured on another "
    "machine. The bound is half of its time.",
)
OPS = (
    "Each subject decodes one more answer under the torch profiler, after everything that is timed. Cells give milliseconds a step, and "
    "calls a step in brackets. The profiler slows small ops most, and Python's time between ops belongs to no op.",
)
RATIOS = (
    "V(n) is the time of verifying a tree of size n (root counted) over that of a plain step on the same back end; both are medians.",
)


def tables(benchmark: Benchmark) -> list[tuple[TextTable, Sequence[str]]]:
    """Return the tables that have rows, each with notes on how to read it."""
    explained = [
        (findings_table(benchmark.findings), FINDINGS),
        (steps_table(benchmark.steps), STEPS),
        (ops_table(benchmark.steps), OPS),
        (verify_table(benchmark.verified), RATIOS),
    ]
    return [(table, notes) for table, notes in explained if table.rows]


def misses(benchmark: Benchmark) -> list[str]:
    """Return one line for each bound that was missed, with the slowest ops where they are known."""
    missed = [finding for finding in benchmark.findings if finding.verdict == MISSED]
    lines = [f"{finding.what}: {finding.median} where {finding.bound} was wanted" for finding in missed]
    return lines + [_missed_step(times) for times in benchmark.steps if times.verdict == MISSED]


def _missed_step(times: StepTimes) -> str:
    draft, verify, commit = (ms(times.part_s(part)) for part in STEP_PARTS)
    slowest = f"; most of {times.furthest}: {slowest_ops(times.split, times.furthest)}" if times.split else ""
    return (
        f"{times.subject.what}, {times.subject.layers} layers, {times.dtype}, {times.backend}: {ms(times.quartiles.median)} ms where "
        f"{ms(times.subject.wanted_s)} was wanted; draft {draft} (floor {ms(times.draft_floor_s)}), verify {verify} (floor "
        f"{ms(times.verify_floor_s)}), commit {commit}{slowest}"
    )


def write(benchmark: Benchmark, out: Path) -> None:
    """Write ``bench.md`` and ``bench.csv``. Raises UserError if they cannot be written."""
    verified = [row for times in benchmark.verified for row in times.rows()]
    rows = [*(finding.row() for finding in benchmark.findings), *(times.row() for times in benchmark.steps), *verified]
    missed = misses(benchmark)
    blocks: list[Block] = [
        *title_blocks("Benchmark of the harness", benchmark.sentence, benchmark.conditions.note),
        *([Paragraph("Missed:"), Bullets(missed)] if missed else [Paragraph("Every bound was kept.")]),
    ]
    for table, notes in tables(benchmark):
        blocks += [table, Bullets(notes)]
    write_report(out, "bench", blocks, pd.DataFrame(rows))

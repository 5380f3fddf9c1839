"""The published claim that a run can be held against, as blocks: the verdict to open with, and what it rests on."""

from itertools import takewhile

from specbench.claims import UNKNOWN, named, text
from specbench.claims.conditions import DIFFERS
from specbench.claims.verdict import Verdict, judge
from specbench.report.blocks import Block, Heading, Paragraph
from specbench.report.run import Run
from specbench.store import describe

CLAIM = "s4c"


def judged(run: Run) -> Verdict | None:
    """The verdict on the claim; None for a run without the claim's arm."""
    claim = named(CLAIM)
    return judge(claim, run.manifest, run.turns) if claim.arm in run.methods else None


def opening(run: Run, verdict: Verdict | None) -> list[Block]:
    """The verdict in sentences, with the names of the conditions that are not the claim's."""
    if verdict is None:
        return [Paragraph(f"No published claim is judged: the run has no {named(CLAIM).arm} arm.")]
    differing, unknown = verdict.named(DIFFERS), verdict.named(UNKNOWN)
    lines = [f"Conditions that differ: {_list(differing)}. Unknown, which counts as different: {_list(unknown)}."]
    label = describe.cost_matched([run.manifest])  # the report begins with it
    return [_sentence(line) for line in [*_sentences(verdict), *lines] if line not in label]


def detail(verdict: Verdict | None) -> list[Block]:
    """The conditions one by one, the verdict under every definition, what the speedup is made of, and published rows."""
    if verdict is None:
        return []
    rest = text.parts(verdict)[len(_sentences(verdict)) :]
    return [Heading(3, "The verdict in detail"), *(Paragraph(part) if isinstance(part, str) else part for part in rest)]


def _sentences(verdict: Verdict) -> list[str]:
    return [str(part) for part in takewhile(lambda part: isinstance(part, str), text.parts(verdict))]


def _sentence(line: str) -> Paragraph:
    return Paragraph(line[:1].upper() + line[1:] + ("" if line.endswith(".") else "."))


def _list(names: list[str]) -> str:
    return ", ".join(names) or "none"

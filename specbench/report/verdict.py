"""The verdict on the published S4C claim, as blocks of the report: a summary and the details."""

from itertools import takewhile

from specbench.claims import text
from specbench.claims.claim import Claim, claim_named
from specbench.claims.conditions import DIFFERS
from specbench.claims.verdict import Verdict, judge
from specbench.report.blocks import Block, Heading, Paragraph
from specbench.report.run import Run
from specbench.store import describe

CLAIM = "s4c"


def judge_run(run: Run) -> Verdict | None:
    """Return the verdict on the claim; None for a run without the claim's arm."""
    claim = claim_shown(run)
    return judge(claim, run.manifest, run.turns) if claim else None


def claim_shown(run: Run) -> Claim | None:
    """Return the claim if the run has its arm, which is then judged; else None."""
    claim = claim_named(CLAIM)
    return claim if claim.arm in run.arms else None


def summary(run: Run, verdict: Verdict | None) -> list[Block]:
    """Return the verdict in sentences, with the names of the conditions that differ from the claim's."""
    if verdict is None:
        return [Paragraph(f"No published claim is judged, because the run has no {claim_named(CLAIM).arm} arm.")]
    differing, unknown = verdict.conditions_with(DIFFERS), verdict.conditions_with(describe.UNKNOWN)
    lines = [f"Conditions that differ: {_list(differing)}. Unknown conditions, counted as different: {_list(unknown)}."]
    first_sentence = describe.cost_matched([run.manifest])  # already at the top of the report
    return [_sentence(line) for line in [*_sentences(verdict), *lines] if line not in first_sentence]


def detail(verdict: Verdict | None) -> list[Block]:
    """Return every condition, the verdict under every definition, the parts of the speedup, and published rows."""
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

"""The verdicts on published claims, as blocks of the report: S4C's with a summary and the details, the others in a table."""

from itertools import takewhile

from specbench.claims import text
from specbench.claims.arms import held
from specbench.claims.claim import Claim, claim_named, load_claims
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
    return claim if held(claim, run.manifest) else None


def summary(run: Run, verdict: Verdict | None) -> list[Block]:
    """Return the verdict in sentences, with the names of the conditions that differ from the claim's."""
    if verdict is None:
        claim = claim_named(CLAIM)
        return [Paragraph(f"{claim.title}'s claim is not judged, because the run does not have both {claim.arm} and {claim.over}.")]
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


def others(run: Run) -> list[Block]:
    """Return the verdicts on the other papers' claims, each held against the run only if it has both arms of the claim."""
    claims = [claim for claim in load_claims().values() if claim.name != CLAIM and not claim.leaderboard and held(claim, run.manifest)]
    if not claims:
        return []
    table = text.overview([judge(claim, run.manifest, run.turns) for claim in claims])
    return [table, Paragraph("specbench verify --claim NAME lists the conditions of each, and what is known of it at second hand only.")]


def _sentences(verdict: Verdict) -> list[str]:
    return [str(part) for part in takewhile(lambda part: isinstance(part, str), text.parts(verdict))]


def _sentence(line: str) -> Paragraph:
    return Paragraph(line[:1].upper() + line[1:] + ("" if line.endswith(".") else "."))


def _list(names: list[str]) -> str:
    return ", ".join(names) or "none"

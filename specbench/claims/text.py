"""A verdict in words and tables, for the terminal, for Markdown, and as JSON."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from datetime import date
from math import isfinite
from typing import Any

from rich.console import Console

from specbench.analysis.stats import Estimate
from specbench.claims import UNKNOWN
from specbench.claims.conditions import DIFFERS
from specbench.claims.verdict import Judged, Verdict
from specbench.util.table import TextTable, number
from specbench.util.text import escape

SCHEMA = 1
Part = str | TextTable


def sentence(verdict: Verdict) -> str:
    """``below, under different conditions: S4C (reconstruction) measured 1.39x [1.37, 1.41] (…), claimed 2.26x-2.60x``."""
    where = "matching" if verdict.matching else "different"
    best = verdict.judged
    found = f"measured {_shown(best.speedup, 'x')}" if isfinite(best.speedup.value) else "has no measured speedup"
    return f"{verdict.outcome}, under {where} conditions: {verdict.label} {found} ({best.definition}), claimed {verdict.claim.range_text}"


def parts(verdict: Verdict) -> list[Part]:
    """The whole verdict, the sentence first: paragraphs of plain text, not yet escaped, and tables."""
    claim = verdict.claim
    return [
        sentence(verdict),
        f"Why: {verdict.judged.why}.",
        *verdict.caveats,
        f"Claim {claim.name}: {claim.title}; {claim.source}, {claim.date.isoformat()}, {claim.address}. Range: {claim.range_from}.",
        *_conditions(verdict),
        *_definitions(verdict.by_definition),
        _decomposition(verdict),
        _noise(verdict),
        _context(verdict),
    ]


def markdown(verdict: Verdict) -> list[str]:
    """The parts as Markdown blocks, escaped, the sentence in bold; the caller joins them with blank lines."""
    blocks = [f"**{part.title}**\n\n{part.markdown()}" if isinstance(part, TextTable) else escape(part) for part in parts(verdict)]
    return [f"**{blocks[0]}**", *blocks[1:]]


def show(verdict: Verdict, console: Console) -> None:
    """Print the verdict; its sentence stays one line however narrow the terminal is."""
    first, *rest = parts(verdict)
    console.print(first, markup=False, highlight=False, soft_wrap=True)
    for part in rest:
        console.print()
        if isinstance(part, TextTable):
            console.print(part.rich())
        else:
            console.print(part, markup=False, highlight=False)


def to_json(verdict: Verdict) -> dict[str, Any]:
    """Every fact of the verdict, with ``schema`` first; None for what is unknown or could not be formed."""
    said = {
        "outcome": verdict.outcome,
        "matching_conditions": verdict.matching,
        "exit_code": verdict.exit_code,
        "sentence": sentence(verdict),
    }
    return {"schema": SCHEMA, **said, **_plain(verdict)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Estimate):
        return {name: _plain(x) for name, x in value._asdict().items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value.isoformat() if isinstance(value, date) else value


def _shown(estimate: Estimate, unit: str = "", digits: int = 2) -> str:
    if not estimate.known:
        return number(estimate.value, digits, unit)
    return f"{estimate.value:.{digits}f}{unit} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _conditions(verdict: Verdict) -> list[Part]:
    rows = [[each.name, each.claimed, each.measured, each.status] for each in verdict.conditions]
    table = TextTable("Conditions", ["Condition", "Claimed", "Measured", "Status"], rows)
    differing, open_ = verdict.named(DIFFERS), verdict.named(UNKNOWN)
    if verdict.matching:
        return [table, "Every condition is the same."]
    lines = [
        f"{title}: {', '.join(names)}." for title, names in (("Differing", differing), ("Unknown, counted as different", open_)) if names
    ]
    return [table, *lines]


def _definitions(by_definition: Sequence[Judged]) -> list[Part]:
    rows = [[each.definition, _shown(each.speedup, "x"), each.outcome] for each in by_definition]
    table = TextTable("Verdict under each definition of speedup", ["Definition", "Measured [95 %]", "Outcome"], rows)
    found: dict[str, list[str]] = {}
    for each in by_definition:
        found.setdefault(each.outcome, []).append(each.definition)
    if len(found) == 1:
        return [table, "All definitions agree on the outcome."]
    split = "; ".join(f"{outcome} by {', '.join(names)}" for outcome, names in found.items())
    return [table, f"The definitions disagree: {split}."]


def _decomposition(verdict: Verdict) -> TextTable:
    found, claim = verdict.decomposition, verdict.claim
    rows = [
        ["MAT", _shown(found.mat), "emitted tokens a step"],
        ["R", _shown(found.round_cost), "time of a round of the decode loop, in vanilla steps"],
        ["Decode speedup", _shown(found.speedup_decode, "x"), "MAT / R"],
        *(
            [f"MAT needed for {bound:.2f}x", _shown(needed), meaning]
            for bound, needed, meaning in (
                (claim.low, found.decode_mat_for_low, "at this R, of the decode loop alone"),
                (claim.high, found.decode_mat_for_high, "at this R, of the decode loop alone"),
                (claim.low, found.mat_for_low, "at this R, end to end with prefill as measured (speedup_micro)"),
                (claim.high, found.mat_for_high, "at this R, end to end with prefill as measured (speedup_micro)"),
            )
        ),
    ]
    return TextTable("What the speedup is made of", ["Quantity", "Measured [95 %]", "Meaning"], rows)


def _noise(verdict: Verdict) -> str:
    if not isfinite(verdict.noise_floor.value):
        return f"This run has no second arm of {verdict.arm} (specbench run --aa), so its noise floor is not known."
    return f"Noise floor: {verdict.arm} over itself in this run is {_shown(verdict.noise_floor, 'x', 3)}, where 1 is no noise."


def _context(verdict: Verdict) -> TextTable:
    rows = [
        [each.name, each.title, number(each.speedup, unit="x"), number(each.mat), number(each.mat / each.speedup)]
        for each in verdict.context
    ]
    return TextTable("Spec-Bench's leaderboard on an A100", ["Claim", "Method and target", "Speedup", "MAT", "MAT / speedup"], rows)

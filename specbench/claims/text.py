"""A verdict as sentences and tables, for the terminal, for Markdown, and as JSON."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from datetime import date
from math import isfinite
from typing import Any

from specbench.analysis.stats import Estimate
from specbench.claims.conditions import DIFFERS
from specbench.claims.verdict import DefinitionOutcome, Verdict
from specbench.config.arm import BASELINE
from specbench.store.describe import UNKNOWN
from specbench.util.terminal import Console, print_table
from specbench.util.text import TextTable, escape, number

SCHEMA = 3
Part = str | TextTable  # a paragraph or a table


def sentence(verdict: Verdict) -> str:
    """Return the verdict in one sentence.

    For example ``below, under different conditions: S4C (reconstruction) measured 1.39x [1.37, 1.41]
    (speedup_specbench_legacy), claimed 2.26x-2.60x``; over another arm than vanilla ``measured 1.31x [1.29, 1.33] in MAT
    over EAGLE-3``.
    """
    where, claim = "matching" if verdict.matching else "different", verdict.claim
    quantity = "" if claim.quantity == "speedup" else f" in {claim.quantity}"
    over = "" if verdict.over == BASELINE else f" over {verdict.over_label}"
    value = _with_interval(verdict.judged.measured, "x")
    measured = f"measured {value}{quantity}{over}" if isfinite(verdict.judged.measured.value) else f"has no measured {claim.quantity}{over}"
    return (
        f"{verdict.outcome}, under {where} conditions: {verdict.label} {measured} ({verdict.judged.definition}), claimed {claim.range_text}"
    )


def parts(verdict: Verdict) -> list[Part]:
    """Return the whole verdict, the sentence first, as paragraphs of plain text and tables."""
    claim = verdict.claim
    return [
        sentence(verdict),
        f"Why: {verdict.judged.why}.",
        *verdict.caveats,
        f"Claim {claim.name}: {claim.title}. Source: {claim.source}, {claim.date.isoformat()}, {claim.address}.",
        f"Source of the range: {claim.range_from}.",
        f"Confirmed: {claim.confirmed}. Second-hand: {claim.second_hand}.",
        *_conditions(verdict),
        *_definitions(claim.quantity, verdict.by_definition),
        _decomposition(verdict),
        _noise(verdict),
        _context(verdict),
    ]


def markdown(verdict: Verdict) -> list[str]:
    """Return the parts as escaped Markdown blocks, the first one in bold."""
    blocks = [f"**{part.title}**\n\n{part.markdown()}" if isinstance(part, TextTable) else escape(part) for part in parts(verdict)]
    return [f"**{blocks[0]}**", *blocks[1:]]


def show(verdict: Verdict, console: Console) -> None:
    """Print the verdict. Its sentence stays on one line, even on a narrow terminal."""
    first, *rest = parts(verdict)
    console.print(first, markup=False, highlight=False, soft_wrap=True)
    for part in rest:
        console.print()
        if isinstance(part, TextTable):
            print_table(console, part)
        else:
            console.print(part, markup=False, highlight=False)


def overview(verdicts: Sequence[Verdict]) -> TextTable:
    """Return one row per verdict."""
    rows = [
        [
            verdict.claim.name,
            verdict.claim.title,
            verdict.claim.range_text,
            _with_interval(verdict.judged.measured, "x"),
            verdict.outcome,
            f"{len(verdict.conditions_with(DIFFERS))} differ, {len(verdict.conditions_with(UNKNOWN))} unknown",
        ]
        for verdict in verdicts
    ]
    return TextTable("Other published claims", ["Claim", "About", "Claimed", "Measured [95 %]", "Outcome", "Conditions"], rows)


def to_json(verdict: Verdict) -> dict[str, Any]:
    """Return every fact of the verdict, ``schema`` first; None for a fact that is unknown or could not be formed."""
    summary = {
        "outcome": verdict.outcome,
        "matching_conditions": verdict.matching,
        "exit_code": verdict.exit_code,
        "sentence": sentence(verdict),
    }
    return {"schema": SCHEMA, **summary, **_plain(verdict)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Estimate):
        return {name: _plain(x) for name, x in value._asdict().items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value.isoformat() if isinstance(value, date) else value


def _with_interval(estimate: Estimate, unit: str = "", digits: int = 2) -> str:
    if not estimate.known:
        return number(estimate.value, digits, unit)
    return f"{estimate.value:.{digits}f}{unit} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _conditions(verdict: Verdict) -> list[Part]:
    rows = [[condition.name, condition.claimed, condition.measured, condition.status] for condition in verdict.conditions]
    table = TextTable("Conditions", ["Condition", "Claimed", "Measured", "Status"], rows)
    if verdict.matching:
        return [table, "Every condition is the same."]
    by_title = {"Differing": verdict.conditions_with(DIFFERS), "Unknown, counted as different": verdict.conditions_with(UNKNOWN)}
    return [table, *(f"{title}: {', '.join(names)}." for title, names in by_title.items() if names)]


def _definitions(quantity: str, by_definition: Sequence[DefinitionOutcome]) -> list[Part]:
    rows = [[result.definition, _with_interval(result.measured, "x"), result.outcome] for result in by_definition]
    table = TextTable(f"Verdict under each definition of {quantity}", ["Definition", "Measured [95 %]", "Outcome"], rows)
    by_outcome: dict[str, list[str]] = {}
    for result in by_definition:
        by_outcome.setdefault(result.outcome, []).append(result.definition)
    if len(by_outcome) == 1:
        return [table, "All definitions agree on the outcome."]
    split = "; ".join(f"{outcome} by {', '.join(names)}" for outcome, names in by_outcome.items())
    return [table, f"The definitions disagree: {split}."]


def _decomposition(verdict: Verdict) -> TextTable:
    measured, claim = verdict.decomposition, verdict.claim
    in_loop = "at this R, in the decode loop alone"
    end_to_end = "at this R, end to end with prefill as measured (speedup_micro)"
    needed = [
        (claim.low, measured.decode_mat_for_low, in_loop),
        (claim.high, measured.decode_mat_for_high, in_loop),
        (claim.low, measured.mat_for_low, end_to_end),
        (claim.high, measured.mat_for_high, end_to_end),
    ]
    drafting = verdict.over != BASELINE
    rows = [
        ["MAT", _with_interval(measured.mat), "emitted tokens per step"],
        *([[f"MAT of {verdict.over}", _with_interval(measured.mat_over), "emitted tokens per step"]] if drafting else []),
        ["R", _with_interval(measured.step_cost), f"time of a step of the decode loop, in {verdict.over} steps"],
        ["Decode speedup", _with_interval(measured.speedup_decode, "x"), f"MAT / MAT of {verdict.over} / R" if drafting else "MAT / R"],
        *([f"MAT needed for {bound:.2f}x", _with_interval(mat), meaning] for bound, mat, meaning in needed if bound and mat),
    ]
    return TextTable("What the speedup is made of", ["Quantity", "Measured [95 %]", "Meaning"], rows)


def _noise(verdict: Verdict) -> str:
    if not isfinite(verdict.noise_floor.value):
        return f"The noise floor is unknown: {verdict.arm} did not run twice (specbench run --aa)."
    floor = _with_interval(verdict.noise_floor, "x", 3)
    return f"Noise floor: {verdict.arm}, run twice in this run, has a speedup over itself of {floor}; 1 means no noise."


def _context(verdict: Verdict) -> TextTable:
    rows = [[row.name, row.title, number(row.speedup, unit="x"), number(row.mat), number(row.mat / row.speedup)] for row in verdict.context]
    return TextTable("Spec-Bench's leaderboard on an A100", ["Claim", "Method and target", "Speedup", "MAT", "MAT / speedup"], rows)

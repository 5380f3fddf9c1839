"""A losslessness report as a table, as lines of text, and as plain data."""

from collections.abc import Iterator
from dataclasses import asdict
from math import isfinite
from typing import Any

from specbench.lossless.differences import REFERENCE_DTYPE, ROUNDINGS, ArmAgreement, Divergence, LosslessReport, rounding
from specbench.util.text import NONE, TextTable, number, percent

SCHEMA = 2


def table(report: LosslessReport) -> TextTable:
    """Return a table with one row per arm, counted in turns. Positions are indices of output tokens."""
    headers = [
        "Method",
        "Compared",
        "Same tokens",
        "Numeric ties",
        "Violations",
        "First divergence",
        "Widest tie",
        "Other prompt",
        "Unanswered",
    ]
    return TextTable(f"{report.run}: output tokens compared with vanilla's", headers, [_row(arm) for arm in report.arms])


def _row(arm: ArmAgreement) -> list[str]:
    low, median, high = (number(x, 0) for x in arm.position_quartiles)
    where = f"{median} ({low} to {high})" if arm.divergences else NONE
    same = f"{arm.same} ({percent(arm.share)})" if arm.compared else NONE
    widest = f"{arm.widest_tie:.2g}" if arm.ties else NONE
    counts = [str(len(arm.ties)), str(len(arm.violations))]
    return [_named(arm), str(arm.compared), same, *counts, where, widest, str(arm.other_prompt), str(arm.unanswered)]


def violations(report: LosslessReport) -> Iterator[str]:
    """Yield one printable line per violation: its place, both tokens, and the text around them.

    Control characters are escaped.
    """
    for arm in report.arms:
        for violation in arm.violations:
            line = _violation_line(_named(arm), violation)
            yield "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line)


def _violation_line(name: str, violation: Divergence) -> str:
    place = (
        f"{name}, question {violation.question_id}, turn {violation.turn + 1}, repeat {violation.repeat + 1}, token {violation.position}"
    )
    return (
        f"violation: {place}: {_side(violation, 1)} where vanilla has {_side(violation, 0)}, after {violation.before!r}; "
        f"top-1/top-2 gap {violation.gap:.3g}, {violation.shortfall:.3g} below the first choice, tolerance {violation.tolerance:.2g}"
    )


def _named(arm: ArmAgreement) -> str:
    return f"{arm.arm} (different engine)" if arm.engine else arm.arm


def _side(divergence: Divergence, side: int) -> str:
    token, text, after = divergence.tokens[side], divergence.texts[side], divergence.after[side]
    return "the end of the answer" if token is None else f"{text!r} (id {token}), then {after!r}"


def as_fields(report: LosslessReport) -> dict[str, Any]:
    """Return the whole report as plain data; None stands for a number that cannot be formed."""
    return {
        "schema": SCHEMA,
        "run": report.run,
        "dtype": report.dtype,
        "tolerance": {
            "rule": report.rule,
            "reference_dtype": REFERENCE_DTYPE,
            "roundings": ROUNDINGS,
            "rounding": rounding(report.dtype),
            "relative": report.relative_tolerance,
        },
        "undigested": report.undigested,
        "violations": len(report.violations),
        "arms": [_arm_fields(arm) for arm in report.arms],
    }


def _arm_fields(arm: ArmAgreement) -> dict[str, Any]:
    low, median, high = map(_finite, arm.position_quartiles)
    return {
        "arm": arm.arm,
        "engine": arm.engine,
        "compared": arm.compared,
        "same": arm.same,
        "share": _finite(arm.share),
        "ties": len(arm.ties),
        "violations": len(arm.violations),
        "first_divergence": {"low_quartile": low, "median": median, "high_quartile": high},
        "widest_tie": _finite(arm.widest_tie),
        "not_compared": {"other_prompt": arm.other_prompt, "unanswered": arm.unanswered},
        "divergences": [
            {**asdict(one), "shortfall": _finite(one.shortfall), "verdict": "tie" if one.is_tie else "violation"} for one in arm.divergences
        ],
    }


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None

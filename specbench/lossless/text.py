"""The losslessness of a run as a table, as lines of text, and as plain data."""

from collections.abc import Iterator
from dataclasses import asdict
from math import isfinite
from typing import Any

from specbench.engines.registry import is_peer
from specbench.lossless.divergence import REFEREE, ROUNDINGS, ArmAgreement, Divergence, Explained, rounding
from specbench.util.table import NONE, TextTable, number, percent

SCHEMA = 1


def table(explained: Explained) -> TextTable:
    """One row an arm, in turns; a position is an index of output tokens."""
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
    return TextTable(f"{explained.run}: output tokens beside vanilla's", headers, [_row(arm) for arm in explained.arms])


def _row(arm: ArmAgreement) -> list[str]:
    low, median, high = (number(x, 0) for x in arm.position_quartiles)
    where = f"{median} ({low} to {high})" if arm.divergences else NONE
    same = f"{arm.same} ({percent(arm.share)})" if arm.compared else NONE
    widest = f"{arm.widest_tie:.2g}" if arm.ties else NONE
    counts = [str(len(arm.ties)), str(len(arm.violations))]
    return [_named(arm.method), str(arm.compared), same, *counts, where, widest, str(arm.other_prompt), str(arm.unanswered)]


def violations(explained: Explained) -> Iterator[str]:
    """One printable line each: where it is, both tokens and what surrounds them, control characters escaped."""
    for each in explained.violations:
        place = f"{_named(each.method)}, question {each.question_id}, turn {each.turn + 1}, repeat {each.repeat + 1}, token {each.position}"
        line = (
            f"violation: {place}: {_side(each, 1)} where vanilla has {_side(each, 0)}, after {each.before!r}; "
            f"top-1/top-2 gap {each.gap:.3g}, {each.shortfall:.3g} below the first choice, tolerance {each.tolerance:.2g}"
        )
        yield "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line)


def _named(method: str) -> str:
    return f"{method} (different engine)" if is_peer(method) else method


def _side(each: Divergence, side: int) -> str:
    token = each.tokens[side]
    return "the end of the answer" if token is None else f"{each.texts[side]!r} (id {token}), then {each.after[side]!r}"


def as_fields(explained: Explained) -> dict[str, Any]:
    """Everything as plain data; None where a number cannot be formed."""
    return {
        "schema": SCHEMA,
        "run": explained.run,
        "dtype": explained.dtype,
        "tolerance": {
            "rule": explained.rule,
            "referee": REFEREE,
            "roundings": ROUNDINGS,
            "rounding": rounding(explained.dtype),
            "relative": explained.relative_tolerance,
        },
        "violations": len(explained.violations),
        "arms": [_arm_fields(arm) for arm in explained.arms],
    }


def _arm_fields(arm: ArmAgreement) -> dict[str, Any]:
    low, median, high = map(_finite, arm.position_quartiles)
    return {
        "method": arm.method,
        "compared": arm.compared,
        "same": arm.same,
        "share": _finite(arm.share),
        "ties": len(arm.ties),
        "violations": len(arm.violations),
        "first_divergence": {"low_quartile": low, "median": median, "high_quartile": high},
        "widest_tie": _finite(arm.widest_tie),
        "not_compared": {"other_prompt": arm.other_prompt, "unanswered": arm.unanswered},
        "divergences": [
            {**asdict(each), "shortfall": _finite(each.shortfall), "verdict": "tie" if each.is_tie else "violation"}
            for each in arm.divergences
        ],
    }


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None

"""``specbench agree``: the losslessness report of a run, for people and as JSON."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from specbench.peers import is_peer
from specbench.progress import LINE_EVERY_S
from specbench.tables import NONE, TextTable, number, percent

if TYPE_CHECKING:
    from specbench.divergence import ArmAgreement, Divergence, Explained, Told

SCHEMA = 1


def agree(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a greedy run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")] = False,
) -> None:
    """Compare every arm's tokens with vanilla's and ask the target, in fp32, about each first difference.

    Other engines are compared too, but decide nothing.
    Exit code 0: no violation; 1: a token differs where the target was not torn between the two; 2: cannot be compared.
    """
    from specbench.divergence import explain

    with progress(Console(stderr=True)) as told:
        explained = explain(run_dir, told)
    if as_json:
        print(json.dumps(as_fields(explained), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        console = Console()
        console.print(table(explained).rich())
        for line in (explained.rule, *violations(explained)):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if any(not is_peer(each.method) for each in explained.violations):
        raise SystemExit(1)


@contextmanager
def progress(console: Console) -> Iterator["Told"]:
    """What to tell of the target's work: a bar that goes away, or without a terminal a line every ``LINE_EVERY_S`` seconds."""
    what, shown = "first differences put to the target", time.perf_counter()

    def line(done: int, total: int) -> None:
        nonlocal shown
        if time.perf_counter() - shown >= LINE_EVERY_S:
            shown = time.perf_counter()
            console.print(f"{done}/{total} {what}", markup=False, highlight=False, soft_wrap=True)

    if not console.is_terminal:
        yield line
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(what, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def table(explained: "Explained") -> TextTable:
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


def _row(arm: "ArmAgreement") -> list[str]:
    low, median, high = (number(x, 0) for x in arm.position_quartiles)
    where = f"{median} ({low} to {high})" if arm.divergences else NONE
    same = f"{arm.same} ({percent(arm.share)})" if arm.compared else NONE
    widest = f"{arm.widest_tie:.2g}" if arm.ties else NONE
    counts = [str(len(arm.ties)), str(len(arm.violations))]
    return [_named(arm.method), str(arm.compared), same, *counts, where, widest, str(arm.other_prompt), str(arm.unanswered)]


def violations(explained: "Explained") -> Iterator[str]:
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


def _side(each: "Divergence", side: int) -> str:
    token = each.tokens[side]
    return "the end of the answer" if token is None else f"{each.texts[side]!r} (id {token}), then {each.after[side]!r}"


def as_fields(explained: "Explained") -> dict[str, Any]:
    """Everything as plain data; None where a number cannot be formed."""
    from specbench.divergence import REFEREE, ROUNDINGS, rounding

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


def _arm_fields(arm: "ArmAgreement") -> dict[str, Any]:
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

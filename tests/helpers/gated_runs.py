"""Run directories for the gate, and calls of its commands."""

import json
from typing import Any

import numpy as np
import typer
from typer.testing import CliRunner

from helpers.scripted_records import DRAFTING_STEP_S, turn, write_run
from methods.core.errors import UserError
from specbench.cli import check

TOKENS = 31
QUESTIONS = 48
app = typer.Typer()
app.command()(check.check)
app.add_typer(check.baseline, name="baseline")


def call(*arguments):
    """Return the exit code and the printed text, or the message of a UserError, as `specbench` would."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, UserError):
        return 2, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def accepts(rng, rate, depth=3):
    """Return the accepted drafts of each step of an answer of ``TOKENS``."""
    steps, left = [], TOKENS - 1
    while left:
        drafts = next((d for d in range(depth) if rng.random() > rate), depth)
        steps.append(min(drafts, left - 1))
        left -= steps[-1] + 1
    return steps


def answers(*, questions=QUESTIONS, repeats=1, slower=1.0, noise=0.0, rate=0.7, seed=0, again=False, depth=3):
    """Return the turns of vanilla and medusa on the same questions.

    Times have relative ``noise``; medusa's are ``slower`` times as long.
    """
    noisy, found = np.random.default_rng([seed, 1]), []
    for repeat in range(repeats):
        rng = np.random.default_rng(7)  # greedy: every repeat and every side accepts alike
        for index in range(questions):
            at: dict[str, Any] = {"category": ("qa", "rag")[index % 2], "repeat": repeat}
            drafts = accepts(rng, rate, depth)
            found.append(turn("vanilla", f"q{index}", [0] * (TOKENS - 1), step_s=scaled((0, 0.01, 0), noisy, 1, noise), **at))
            for arm in ("medusa", "medusa#2") if again else ("medusa",):
                step_s = scaled(DRAFTING_STEP_S, noisy, slower, noise)
                found.append(turn(arm, f"q{index}", drafts, step_s=step_s, depth=depth, **at))
    return found


def scaled(step_s, rng, factor, noise):
    """Return the times of a step, scaled by a factor with noise."""
    by = factor * float(np.exp(noise * rng.standard_normal()))
    return tuple(by * seconds for seconds in step_s)


def run(path, records, **changes):
    """Write a run directory whose arms are those of the records; ``changes`` are those of ``write_run``."""
    arms = dict.fromkeys(dict.fromkeys(record.arm for record in records), "A title")
    repeats = 1 + max(record.repeat for record in records)
    settings = {"repeats": repeats, **changes.pop("settings", {})}
    return write_run(path, records, methods=arms, units_total=len(records), settings=settings, **changes)


def outcomes(*arguments):
    """Return the exit code of ``specbench check`` and each check's outcome by name."""
    code, printed = call("check", *arguments, "--json")
    return code, {check["name"]: check["outcome"] for check in json.loads(printed)["checks"]}

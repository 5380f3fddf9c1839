"""The prompts options are chosen on: any suite file but the questions that results are reported on."""

import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from methods.core.errors import UserError
from specbench import suites
from specbench.suites import Suite, spec_bench
from specbench.suites.suite import select
from specbench.train.cli import HELD_OUT_PROMPTS


def load(suite_file: Path | None, corpus: Path | None, count: int, console: Console) -> Suite:
    """About ``count`` prompts of one turn, as many of each category, from a suite file or from a corpus' held-out records.

    Raises UserError for the questions of ``mini`` and of Spec-Bench: numbers on a test set that chose the options say nothing.
    """
    if (suite_file is None) == (corpus is None):
        raise UserError(
            "tuning needs prompts that no result is reported on: pass either --suite-file FILE (`specbench held-out` makes one) "
            "or --corpus FILE"
        )
    if count < 1:
        raise UserError(f"--prompts is {count}; it must be at least 1")
    whole = _whole(suite_file, corpus, console)
    _refuse_test_sets(whole, str(suite_file))
    categories = Counter(question.category for question in whole.questions)
    chosen = select(whole, limit=max(1, count // len(categories)), categories=())
    return replace(chosen, questions=tuple(replace(question, turns=question.turns[:1]) for question in chosen.questions[:count]))


def write(suite: Suite, path: Path) -> None:
    """The suite's first turns as a file that ``specbench run --suite-file`` takes."""
    rows = ({"question_id": each.id, "category": each.category, "turns": list(each.turns)} for each in suite.questions)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _whole(suite_file: Path | None, corpus: Path | None, console: Console) -> Suite:
    if corpus is None:
        return suites.load("file", suite_file=suite_file)
    from specbench.train import prompts

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "held_out.jsonl"
        prompts.write(corpus, made, HELD_OUT_PROMPTS, console)
        return suites.load("file", suite_file=made)


def _refuse_test_sets(suite: Suite, source: str) -> None:
    mini = suites.load("mini")
    asked = {question.turns[0] for question in mini.questions}
    tested = "Spec-Bench's" if suite.sha256 == spec_bench.SHA256 else ""
    if suite.sha256 == mini.sha256 or any(question.turns[0] in asked for question in suite.questions):
        tested = "the suite mini's"
    if tested:
        raise UserError(
            f"{source} holds {tested} questions, and tuning on the test set makes its results worthless; "
            "use other prompts: specbench held-out --corpus FILE --out FILE"
        )

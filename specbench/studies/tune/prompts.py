"""The prompts options are chosen on: any suite file but the questions that results are reported on."""

import hashlib
import json
import tempfile
from collections import Counter
from dataclasses import replace
from importlib import resources
from pathlib import Path

from rich.console import Console

from methods.core.errors import UserError
from specbench import suites
from specbench.cli.train import HELD_OUT_PROMPTS
from specbench.suites import Suite
from specbench.suites.suite import select
from specbench.train.data.corpus import Source


def load(suite_file: Path | None, data: Source | None, count: int, console: Console) -> Suite:
    """About ``count`` prompts of one turn, as many of each category, from a suite file or from a corpus' held-out records.

    Raises UserError for any question of ``mini`` or Spec-Bench: numbers on a test set that chose the options say nothing.
    """
    if (suite_file is None) == (data is None):
        raise UserError(
            "tuning needs prompts that no result is reported on: pass either --suite-file FILE (`specbench held-out` makes one) "
            "or --data FILE"
        )
    if count < 1:
        raise UserError(f"--prompts is {count}; it must be at least 1")
    whole = _whole(suite_file, data, console)
    _refuse_test_sets(whole, str(suite_file or data))
    categories = Counter(question.category for question in whole.questions)
    chosen = select(whole, limit=max(1, count // len(categories)), categories=())
    return replace(chosen, questions=tuple(replace(question, turns=question.turns[:1]) for question in chosen.questions[:count]))


def write(suite: Suite, path: Path) -> None:
    """The suite's first turns as a file that ``specbench run --suite-file`` takes."""
    rows = ({"question_id": each.id, "category": each.category, "turns": list(each.turns)} for each in suite.questions)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _whole(suite_file: Path | None, data: Source | None, console: Console) -> Suite:
    if data is None:
        return suites.load("file", suite_file=suite_file)
    from specbench.train.data import prompts

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "held_out.jsonl"
        prompts.write(data, made, HELD_OUT_PROMPTS, console)
        return suites.load("file", suite_file=made)


def fingerprint(text: str) -> str:
    """Sixteen hex digits that do not depend on white space or case."""
    return hashlib.sha256(" ".join(text.split()).casefold().encode()).hexdigest()[:16]


def spec_bench_fingerprints() -> frozenset[str]:
    """Of the 480 questions' first turns; the package holds no more of them."""
    return frozenset(resources.files(__package__).joinpath("spec_bench.txt").read_text(encoding="ascii").split())


def _refuse_test_sets(suite: Suite, source: str) -> None:
    mini, spec_bench = {fingerprint(question.turns[0]) for question in suites.load("mini").questions}, spec_bench_fingerprints()
    for question in suite.questions:
        found = fingerprint(question.turns[0])
        if found in mini or found in spec_bench:
            raise UserError(
                f"{source}, question {question.id}, is {'the suite mini' if found in mini else 'Spec-Bench'}'s, and tuning on the test set "
                "makes its results worthless; use other prompts: specbench held-out --data FILE --out FILE"
            )

"""The tuning prompts: any suite file, or held-out records of a corpus, but no question that results are reported on."""

import hashlib
import json
import tempfile
from collections import Counter
from dataclasses import replace
from importlib import resources
from pathlib import Path

from methods.core.errors import UserError
from specbench import suites
from specbench.suites import Suite
from specbench.suites.suite import select
from specbench.train.data import corpus
from specbench.train.data.corpus import Source
from specbench.util.terminal import Console


def load(suite_file: Path | None, data: Source | None, count: int, console: Console) -> Suite:
    """Return about ``count`` prompts of one turn, equally many of each category.

    They come from a suite file or from a corpus' held-out records. Raises UserError for any question of
    ``mini`` or Spec-Bench: results on a test set that chose the options would be worthless.
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
    """Write the suite as a file for ``specbench run --suite-file``."""
    rows = ({"question_id": question.id, "category": question.category, "turns": list(question.turns)} for question in suite.questions)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _whole(suite_file: Path | None, data: Source | None, console: Console) -> Suite:
    if data is None:
        return suites.load("file", suite_file=suite_file)

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "held_out.jsonl"
        corpus.write_held_out_suite(data, made, console)
        return suites.load("file", suite_file=made)


def fingerprint(text: str) -> str:
    """Return sixteen hex digits of a text, which do not depend on its white space or case."""
    return hashlib.sha256(" ".join(text.split()).casefold().encode()).hexdigest()[:16]


def spec_bench_fingerprints() -> frozenset[str]:
    """Return the fingerprints of the first turns of Spec-Bench's 480 questions. The package holds no more of them."""
    return frozenset(resources.files(__package__).joinpath("spec_bench.txt").read_text(encoding="ascii").split())


def _refuse_test_sets(suite: Suite, source: str) -> None:
    mini = {fingerprint(question.turns[0]) for question in suites.load("mini").questions}
    spec_bench = spec_bench_fingerprints()
    for question in suite.questions:
        mark = fingerprint(question.turns[0])
        if mark in mini or mark in spec_bench:
            raise UserError(
                f"{source}, question {question.id}, is {'the suite mini' if mark in mini else 'Spec-Bench'}'s, and tuning on the test set "
                "makes its results worthless; use other prompts: specbench held-out --data FILE --out FILE"
            )

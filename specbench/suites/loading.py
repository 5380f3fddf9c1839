"""Loading of suites by name, and the warm-up questions."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from methods.core.errors import UserError, unknown
from specbench.suites import hub, spec_bench
from specbench.suites.schema import questions_from_jsonl
from specbench.suites.suite import Question, Suite, select

MINI_VERSION = "1"
NAMES = ("mini", "spec-bench", "file", "hf:ID")


def load(
    name: str,
    *,
    suite_file: Path | None = None,
    limit: int | None = None,
    categories: Sequence[str] = (),
    hf_columns: Mapping[str, str] | None = None,
) -> Suite:
    """Load a suite: ``mini``, ``spec-bench``, ``file`` (a JSONL file of Spec-Bench's schema) or ``hf:ID``.

    With ``suite_file`` every name but ``spec-bench`` gives the suite ``file``. ``limit`` takes that
    many questions of each category, evenly spaced; ``categories`` keeps the reported categories named.
    Raises UserError for bad input.
    """
    if hf_columns and not name.startswith(hub.PREFIX):
        raise UserError(f"a column mapping was given but suite {name!r} is not from the hub; leave it out, or name a suite hf:ID")
    if suite_file is not None and name.startswith(hub.PREFIX):
        raise UserError(f"suite {name!r} is from the hub but a suite file {suite_file} was given too; leave one of them out")
    return select(_load_all(name, suite_file, hf_columns or {}), limit=limit, categories=categories)


def warmup() -> tuple[Question, ...]:
    """Return the questions to warm up with, none of which is in a suite."""
    return questions_from_jsonl(_read_packaged("warmup.jsonl"), "warmup.jsonl")


def _load_all(name: str, suite_file: Path | None, hf_columns: Mapping[str, str]) -> Suite:
    if name == "spec-bench":
        raw = spec_bench.read_questions(suite_file)
        return _parse(name, spec_bench.COMMIT[:7], raw, str(suite_file or name))
    if name.startswith(hub.PREFIX):
        return hub.load(name, hf_columns)
    if name not in NAMES:
        raise unknown("suite", name, NAMES)
    if suite_file is not None:
        raw = spec_bench.read_file(suite_file)
        return _parse("file", hashlib.sha256(raw).hexdigest()[:12], raw, str(suite_file))
    if name == "file":
        raise UserError("suite 'file' needs a file; pass --suite-file FILE (JSONL of Spec-Bench's schema)")
    return _parse(name, MINI_VERSION, _read_packaged("mini.jsonl"), name)


def _parse(name: str, version: str, raw: bytes, source: str) -> Suite:
    return Suite(name, version, questions_from_jsonl(raw, source), hashlib.sha256(raw).hexdigest())


def _read_packaged(filename: str) -> bytes:
    return resources.files("specbench.suites").joinpath(filename).read_bytes()

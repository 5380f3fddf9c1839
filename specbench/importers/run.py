"""A run directory from imported answers: records, and a manifest in which everything else is unknown."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from math import nan
from pathlib import Path
from typing import NamedTuple

from methods.core.errors import UserError
from specbench.config.arm import BASELINE, Arm
from specbench.config.options import RunConfig
from specbench.importers import spec_bench
from specbench.importers.spec_bench import AnswerFile
from specbench.store import records
from specbench.store.describe import UNKNOWN
from specbench.store.manifest import ArmFacts, ImportSource, RunManifest, SuiteFacts, TargetFacts
from specbench.store.records import Record
from specbench.store.rundir import ending_of
from specbench.util.environment import Environment, GitState
from specbench.util.files import check_writable, holds_run

IMPORTED = "imported"  # label of a target of which nothing is known


class Imported(NamedTuple):
    """The result of an import: the run directory and its number of turns."""

    run_dir: Path
    turns: int
    notices: list[str]  # what a reader of the numbers must know


def import_spec_bench(file: Path, baseline: Path, *, name: str | None, tokenizer: Path | None, out: Path) -> Imported:
    """Write ``out`` with two arms: vanilla from ``baseline``, and ``name`` (default: the file's stem) from ``file``.

    ``tokenizer`` is the folder that Spec-Bench's ``speed.py`` would be given; its legacy speedup needs it.
    Raises UserError for unreadable or malformed files, files of different suites, a reserved arm name, and
    an ``out`` that holds a run already.
    """
    arm = name or file.stem
    if Arm.is_reserved(arm):
        raise UserError(f"arm name {arm!r} is reserved; give the imported method another one by --name")
    if holds_run(out):
        raise UserError(f"{out} already holds a run; choose another --out")
    check_writable(out, folder=True)

    count_text_tokens = _token_counter(tokenizer) if tokenizer else None
    baseline_file, method_file = spec_bench.read_answers(baseline), spec_bench.read_answers(file)
    uneven = _uneven_questions(baseline_file, method_file)
    sources = {BASELINE: baseline_file.without(uneven), arm: method_file.without(uneven)}
    imported = [record for arm_name, source in sources.items() for record in spec_bench.records_of(source, arm_name, count_text_tokens)]

    notices = [notice for source in sources.values() for notice in source.notices()]
    if uneven:
        notices.append(f"{len(uneven)} question(s) have more turns in one file than in the other and are left out of both arms.")
    one_sided = baseline_file.answers.keys() ^ method_file.answers.keys()
    if one_sided:
        notices.append(f"{len(one_sided)} question(s) are in one of the files only and left out of every comparison.")

    out.mkdir(parents=True, exist_ok=True)
    (out / records.FILE).write_text("".join(records.to_line(record) + "\n" for record in imported), encoding="utf-8")
    replace(_manifest(sources, imported, notices), ending=ending_of(out)).write(out)
    return Imported(out, len(imported), notices)


def _uneven_questions(baseline_file: AnswerFile, method_file: AnswerFile) -> set[str]:
    """Return the ids of questions with more turns in one file than in the other, which cannot be compared.

    Raises UserError for a question that has two categories, and where no comparable question is left.
    """
    common = [question_id for question_id in baseline_file.answers if question_id in method_file.answers]
    uneven = set()
    for question_id in common:
        baseline, method = baseline_file.answers[question_id], method_file.answers[question_id]
        if baseline.category != method.category:
            raise UserError(
                f"question {question_id!r} is {baseline.category!r} in {baseline_file.path} and {method.category!r} in "
                f"{method_file.path}; give answer files of the same questions"
            )
        if len(baseline.texts) != len(method.texts):
            uneven.add(question_id)

    if len(uneven) == len(common):
        raise UserError(
            f"no question has the same number of turns in {baseline_file.path} and {method_file.path}; "
            "give answer files of the same questions"
        )
    return uneven


def _token_counter(folder: Path) -> Callable[[str], int]:
    """Return ``speed.py``'s token count of a text: all tokens, special ones included, less one."""
    from transformers import AutoTokenizer

    from specbench.targets import checkpoint

    if not folder.is_dir():
        raise UserError(f"tokenizer folder {folder} does not exist; give the target's, as saved by transformers")
    with checkpoint.readable(f"tokenizer folder {folder}", "give the target's, as saved by transformers"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return lambda text: len(tokenizer(text).input_ids) - 1


def _manifest(sources: dict[str, AnswerFile], imported: Sequence[Record], notices: Sequence[str]) -> RunManifest:
    origin = [ImportSource(arm, source.path.name, source.sha256, list(source.model_ids)) for arm, source in sources.items()]
    files = " and ".join(f"{source.file} (sha256 {source.sha256[:12]})" for source in origin)
    categories = {answer.question_id: answer.category for source in sources.values() for answer in source.answers.values()}
    return RunManifest(
        name=f"imported-{list(sources)[-1]}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=RunConfig(
            methods=list(sources),
            target=UNKNOWN,
            suite=UNKNOWN,
            dtype=UNKNOWN,
            device=UNKNOWN,
            attention=UNKNOWN,
            backend=UNKNOWN,
            template=UNKNOWN,
            turns="own",  # the only way Spec-Bench has
            max_new_tokens=0,
            temperature=nan,
        ),
        arms={arm: _facts(arm) for arm in sources},
        target=TargetFacts(
            UNKNOWN,
            label=IMPORTED,
            note=" ".join([f"Imported from Spec-Bench's answer files {files}; what they do not say is unknown.", *notices]),
        ),
        suite=SuiteFacts(UNKNOWN, UNKNOWN, UNKNOWN, dict(Counter(categories.values()))),
        units_total=len(imported),
        template_sha256=UNKNOWN,
        environment=Environment(),
        git=GitState(sha=UNKNOWN),
        argv=sys.argv[1:],
        imported=origin,
        status="complete",
    )


def _facts(arm: str) -> ArmFacts:
    """Return what is known of an imported arm. Only vanilla is known to be lossless."""
    vanilla = arm == BASELINE
    return ArmFacts(
        title="Vanilla (imported)" if vanilla else f"{arm} (imported)",
        method=arm,
        lossless=True if vanilla else None,
        reconstruction=False,
        config={},
        acceptance=UNKNOWN,
        weights_sha256=None,
        backend=UNKNOWN,
    )

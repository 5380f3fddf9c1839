"""Imported answers as a run directory: records, and a manifest that says of everything else that it is unknown."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

from methods.core.errors import UserError
from specbench.importers import spec_bench
from specbench.importers.spec_bench import AnswerFile
from specbench.store import manifest, records
from specbench.store.manifest import IMPORTED, MethodFacts, RunManifest, Settings
from specbench.store.records import AGAIN, BASELINE, Record
from specbench.store.rundir import check_writable

UNKNOWN = "unknown"


class Imported(NamedTuple):
    run_dir: Path
    turns: int
    notices: list[str]  # what a reader of the numbers must know


def import_spec_bench(file: Path, baseline: Path, *, name: str | None, tokenizer: Path | None, out: Path) -> Imported:
    """Write ``out`` with two arms: vanilla from ``baseline``, and ``name`` (default: the file's stem) from ``file``.

    ``tokenizer`` is the folder Spec-Bench's ``speed.py`` would be given; without it its legacy speedup cannot be formed.
    Raises UserError for unreadable or malformed files, files of different suites, an arm's name that means something else, and
    an ``out`` in use.
    """
    arm = name or file.stem
    if arm == BASELINE or arm.endswith(AGAIN):
        raise UserError(f"arm name {arm!r} is reserved; give the imported method another one by --name")
    if any((out / taken).exists() for taken in (manifest.FILE, records.FILE)):
        raise UserError(f"{out} already holds a run; choose another --out")
    check_writable(out)
    read_back = _counter(tokenizer) if tokenizer else None
    theirs, ours = spec_bench.read(baseline), spec_bench.read(file)
    uneven = _uneven(theirs, ours)
    sources = {BASELINE: theirs.without(uneven), arm: ours.without(uneven)}
    found = [record for each, source in sources.items() for record in spec_bench.records_of(source, each, read_back)]
    notices = [notice for source in sources.values() for notice in source.notices()]
    if uneven:
        notices.append(f"{len(uneven)} question(s) have more turns in one file than in the other and are left out of both arms.")
    one_sided = theirs.answers.keys() ^ ours.answers.keys()
    if one_sided:
        notices.append(f"{len(one_sided)} question(s) are in one of the files only and left out of every comparison.")
    out.mkdir(parents=True, exist_ok=True)
    (out / records.FILE).write_text("".join(records.to_line(record) + "\n" for record in found), encoding="utf-8")
    _manifest(sources, found, notices).write(out)
    return Imported(out, len(found), notices)


def _uneven(theirs: AnswerFile, ours: AnswerFile) -> set[str]:
    """Questions with more turns in one file than in the other: whole answers cannot be compared, and part of one is not the answer.

    Raises UserError for a question of two categories, and where none is left.
    """
    both = [each for each in theirs.answers if each in ours.answers]
    for each in both:
        one, other = theirs.answers[each].category, ours.answers[each].category
        if one != other:
            raise UserError(
                f"question {each!r} is {one!r} in {theirs.path} and {other!r} in {ours.path}; give answer files of the same questions"
            )
    uneven = {each for each in both if len(theirs.answers[each].texts) != len(ours.answers[each].texts)}
    if len(uneven) == len(both):
        raise UserError(
            f"no question has the same number of turns in {theirs.path} and {ours.path}; give answer files of the same questions"
        )
    return uneven


def _counter(folder: Path) -> Callable[[str], int]:
    """``speed.py``'s count of a text: its tokens with special ones, less one."""
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise UserError(f"tokenizer folder {folder} does not exist; give the target's, as saved by transformers")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"tokenizer folder {folder} cannot be loaded ({reason}); give the target's, as saved by transformers") from None
    return lambda text: len(tokenizer(text).input_ids) - 1


def _manifest(sources: dict[str, AnswerFile], found: Sequence[Record], notices: Sequence[str]) -> RunManifest:
    origin = [
        {"arm": arm, "file": source.path.name, "sha256": source.sha256, "model_ids": list(source.model_ids)}
        for arm, source in sources.items()
    ]
    files = " and ".join(f"{each['file']} (sha256 {str(each['sha256'])[:12]})" for each in origin)
    arms = list(sources)
    categories = {answer.question_id: answer.category for source in sources.values() for answer in source.answers.values()}
    unknown: dict[str, Any] = {"limit": None, "max_new_tokens": None, "temperature": nan, "seed": None}
    unlisted: dict[str, Any] = {"lossless": None}  # neither claimed nor denied
    return RunManifest(
        name=f"imported-{arms[-1]}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=Settings(
            methods=arms,
            target=UNKNOWN,
            suite=UNKNOWN,
            suite_sha256=UNKNOWN,
            categories=[],
            dtype=UNKNOWN,
            device=UNKNOWN,
            attention=UNKNOWN,
            backend=UNKNOWN,
            template=UNKNOWN,
            repeats=1,
            turns="own",  # Spec-Bench has no other way
            **unknown,
        ),
        methods={
            BASELINE: MethodFacts("Vanilla (imported)", True, False, {}, UNKNOWN, None, UNKNOWN),
            arms[-1]: MethodFacts(
                f"{arms[-1]} (imported)",
                reconstruction=False,
                config={},
                acceptance=UNKNOWN,
                weights_sha256=None,
                backend=UNKNOWN,
                **unlisted,
            ),
        },
        target={
            "name": UNKNOWN,
            "label": IMPORTED,
            "note": " ".join([f"Imported from Spec-Bench's answer files {files}; what they do not say is unknown.", *notices]),
            "weights_sha256": None,
        },
        categories=dict(Counter(categories.values())),
        units_total=len(found),
        suite_version=UNKNOWN,
        template_sha256=UNKNOWN,
        environment={"threads": UNKNOWN, "imported": origin},
        git={"sha": UNKNOWN},
        argv=sys.argv[1:],
        overrides=[],
        suite_file=None,
        hf_columns={},
        drafter_files={},
        status="complete",
    )

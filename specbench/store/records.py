"""Records: the raw facts of a run, one JSON line per (arm, question, turn, repeat). Nothing in them is derived.

Every line ends in a digest of itself (``store.digest``), checked whenever it is read. Lines of older runs have none.
"""

import json
import lzma
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from methods.core.errors import UserError
from specbench.store.digest import add_digest, check_digest, digest_of_all, find_digest, take_digest
from specbench.util import files
from specbench.util.stored import STRICT, FileFormat, parse_json, validated

SCHEMA = 2
FORMAT = FileFormat("record", SCHEMA, "restore the file")
MOST = 10_000  # nodes of a tree, or tokens of a step
FILE, PACKED = files.RECORDS, files.PACKED
CLOCK_TOLERANCE = 1.05  # allowed ratio of summed parts to the total; on CUDA, parts are timed by events and the turn by the host
OVERALL = "overall"  # stands for all categories together in tables; reserved, so no suite may have such a category
STEP_PARTS = ("draft_s", "verify_s", "commit_s")  # fields of ``Steps`` and of a decode step's trace


class ImpossibleTimesError(ValueError):
    """Times that no answer can take: the clock stood still or ran backwards."""


Timing = Literal["parts", "steps", "answer"]
Count = Annotated[int, Field(ge=0, le=MOST)]
Natural = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True)
class Steps:
    """The decode steps of a turn: one entry a step in every list, times in seconds. A list is empty if it is unknown."""

    tree_size: list[Count] = field(default_factory=list)  # nodes of the drafted tree with the root, without padding
    depth: list[Count] = field(default_factory=list)  # depth of the draft tree; 0 for vanilla
    accepted: list[Count] = field(default_factory=list)  # drafts the target agreed with, before clipping
    emitted: list[Count] = field(default_factory=list)  # tokens that count: accepted + 1, clipped at a stop or the limit
    draft_s: list[float] = field(default_factory=list)
    verify_s: list[float] = field(default_factory=list)
    commit_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)  # whole steps, if their parts cannot be timed


@dataclass(frozen=True)
class Drafting:
    """A server's own counts for one answer: decode steps, drafts accepted, and drafts proposed (None: not counted)."""

    steps: Natural
    accepted: Natural
    drafted: Natural | None


Key = tuple[str, str, int, int]  # arm, question, turn, repeat


@dataclass(frozen=True)
class Record:
    """One answered or failed turn.

    ``status`` is "ok" or "error"; a failed turn has ``error`` set and no numbers. The first output token belongs to the
    prefill, so ``len(output_ids) == prefill_tokens + sum(steps.emitted)`` (asserted). Other engines' answers have no draft
    trees, and only the times that ``timing`` names. Imported answers have ``tokens`` instead of ids, no draft trees, no step
    times, and the prefill's token counted in the first step. Raises ImpossibleTimesError for times that no answer takes.
    """

    __pydantic_config__ = STRICT

    arm: str
    question_id: str
    category: str  # one of the six reported categories, or the suite's own
    turn: Natural  # 0, 1, …
    repeat: Natural
    status: Literal["ok", "error"]
    error: str = ""
    prompt_sha256: str = ""  # of the prompt's token ids
    prompt_tokens: Natural = 0
    output_ids: list[Natural] = field(default_factory=list)
    prefill_tokens: Natural = 1  # output tokens of the forward over the prompt; more than 1 if an engine verifies drafts in it
    tokens: Natural | None = None  # number of output tokens if their ids are unknown: imported answers, servers that send text
    output_text: str = ""
    text_tokens: Natural | None = None  # tokens of the stripped text, tokenized again: Spec-Bench's count for its baseline
    stop: str = ""  # "stop_id" or "length"
    prefill_s: float = 0.0
    total_s: float = 0.0  # the turn end to end: prefill, drafting, verification, commits
    peak_bytes: Natural = 0  # peak memory while the turn ran: the allocator's on CUDA, the process's on a CPU
    device: str = ""  # device it ran on, "KIND #WHICH" (environment.device_id); "" if unknown
    steps: Steps = field(default_factory=Steps)
    timing: Timing = "parts"  # what was timed: the "parts" of each step, whole "steps", or only the "answer"
    drafting: Drafting | None = None  # a server's own counts, if no step is known

    def __post_init__(self) -> None:
        if self.status == "ok":
            steps = self.steps
            self._check_times()
            if self.tokens is not None:
                assert not self.output_ids, "tokens is set only if the ids are unknown"
            elif self.timing != "answer":
                assert len(self.output_ids) == self.prefill_tokens + sum(steps.emitted), "tokens must be the prefill's + the sum of emitted"
            whole = [accepted + 1 for accepted in steps.accepted]
            assert len(steps.emitted) == len(whole), "every step accepts and emits"
            assert steps.emitted[:-1] == whole[:-1], "every step but the last must emit accepted + 1"
            assert steps.emitted[-1:] <= whole[-1:], "the last step can only be clipped"

    def _check_times(self) -> None:
        """Raise ImpossibleTimesError unless the turn takes time, none of its parts a negative one, and no less than its parts."""
        steps = self.steps
        parts = [self.prefill_s, *steps.draft_s, *steps.verify_s, *steps.commit_s, *steps.step_s]
        if not 0 < self.total_s < inf:
            raise ImpossibleTimesError(f"the turn took {self.total_s} s by the clock")
        if not min(parts) >= 0:
            raise ImpossibleTimesError(f"a part of the turn took {min(parts)} s by the clock")
        if not sum(parts) <= self.total_s * CLOCK_TOLERANCE + 1e-3:
            raise ImpossibleTimesError(f"the turn took {self.total_s} s by the clock, its parts {sum(parts)} s")

    @property
    def key(self) -> Key:
        """The arm, question, turn and repeat, which identify a record within its run."""
        return (self.arm, self.question_id, self.turn, self.repeat)

    @property
    def token_count(self) -> int:
        """Number of output tokens."""
        return len(self.output_ids) if self.tokens is None else self.tokens


def describe_key(key: Key) -> str:
    """Return a record's key in words."""
    arm, question, turn, repeat = key
    return f"{arm}, question {question}, turn {turn + 1}, repeat {repeat + 1}"


def device_kind(device: str) -> str:
    """Return the kind of a record's device: the GPU's model, or a CPU with its threads. Times compare within a kind."""
    return device.partition(" #")[0]


def to_line(record: Record) -> str:
    """Return the record's JSON line, without a newline. Times of steps are rounded to 0.1 microseconds."""
    steps = {name: [round(s, 7) for s in values] if name.endswith("_s") else values for name, values in vars(record.steps).items()}
    fields = {**vars(record), "steps": steps, "drafting": record.drafting and vars(record.drafting)}
    return add_digest(json.dumps({"schema": SCHEMA, **fields}, ensure_ascii=False, separators=(",", ":")))


def from_line(line: bytes, where: str) -> Record:
    """Return the record of a JSON line. Raises UserError, which names the line's place, for anything else and for a changed line."""
    stored = parse_json(line, where, FORMAT)
    digest = take_digest(stored)
    record = validated(Record, stored, where, FORMAT)
    check_digest(digest, line, where)
    return record


class Writer:
    """A file that records are appended to. Each record is on disk when ``write`` returns."""

    def __init__(self, run_dir: Path):
        self._file = (run_dir / FILE).open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append a record and flush it to disk."""
        self._file.write(to_line(record) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Found(NamedTuple):
    """The records of a run as they were found on disk."""

    records: list[Record]
    torn: bool  # whether the last line is torn, because the process died while writing it; it is left out
    undigested: int  # records without a digest
    digest: str  # of all records, whatever their order


def read(run_dir: Path) -> Found:
    """Return a run's records.

    Reads ``records.jsonl``, or ``records.jsonl.xz`` of a published run. A byte order mark and CR LF line ends do not matter.
    Raises UserError for a damaged file, for a line that was changed, for lines that end in CR alone, and for a turn that was
    recorded twice.
    """
    path, lines, torn = _lines(run_dir)
    records = [from_line(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    digests = [find_digest(line) for line in lines]
    twice = [key for key, times in Counter(record.key for record in records).items() if times > 1]
    if twice:
        raise UserError(
            f"{path} holds {len(twice)} turn(s) twice, the first: {describe_key(twice[0])}; the file was edited or two runs were mixed: "
            "remove the lines that are not this run's"
        )
    return Found(records, torn, digests.count(""), digest_of_all(digests))


def _lines(run_dir: Path) -> tuple[Path, list[bytes], bool]:
    """Return the records' path, their whole lines, and whether a torn line follows; no lines if the run has no such file."""
    plain, packed = run_dir / FILE, run_dir / PACKED
    if plain.is_file():
        raw = plain.read_bytes()
    elif packed.is_file():
        raw = _decompress(packed)
    else:
        if plain.exists():
            raise UserError(f"{plain} is no file; restore the run's records")
        return plain, [], False

    lines = raw.split(b"\n")
    last = lines.pop()
    if b"\r" in last:
        raise UserError(
            f"{plain} has lines that end in CR alone; end them in LF: tr '\\r' '\\n' < {plain} > NEW, then put NEW in its place"
        )
    return plain, lines, last != b""


def _decompress(path: Path) -> bytes:
    try:
        return lzma.decompress(path.read_bytes())
    except (lzma.LZMAError, EOFError) as error:
        raise UserError(f"{path} cannot be unpacked ({error}); it is damaged or cut short: restore it") from None


def drop_torn_line(run_dir: Path) -> None:
    """Cut the file after its last complete line."""
    path = run_dir / FILE
    raw = path.read_bytes()
    os.truncate(path, raw.rfind(b"\n") + 1)  # truncated in place: rewriting the file and being killed meanwhile would lose every record


def keep(run_dir: Path, keys: Collection[Key]) -> None:
    """Remove the records of all other keys from disk, atomically. Raises UserError where the rest cannot be written."""
    path, lines, _ = _lines(run_dir)
    kept = [line for number, line in enumerate(lines, start=1) if from_line(line, f"{path}, line {number}").key in keys]
    with files.atomic_write(path, f"make room, then: specbench resume {run_dir}") as partial:
        partial.write_bytes(b"".join(line + b"\n" for line in kept))

"""Raw facts of a run: one JSON line per (method, question, turn, repeat), appended and flushed. Nothing derived."""

import json
import lzma
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from methods.core.errors import UserError

SCHEMA = 1
FILE = "records.jsonl"
PACKED = f"{FILE}.xz"
CLOCKS_AGREE = 1.05  # on CUDA the parts are timed by events, the turn by the host
BASELINE = "vanilla"  # the arm every other is compared with
EAGER_BASELINE = f"{BASELINE}:backend=eager"  # what papers compare with; an arm of a static run where it is asked for
TIMINGS = ("parts", "rounds", "answer")
AGAIN = "#2"  # ends the name of an arm that repeats another one unchanged, to measure the noise floor


@dataclass(frozen=True)
class Steps:
    """A turn's decode steps, one entry a step in every list; times in seconds."""

    nodes: list[int] = field(default_factory=list)  # tree nodes the target scored, root included
    depth: list[int] = field(default_factory=list)  # depth of the draft tree; 0 for vanilla
    accepted: list[int] = field(default_factory=list)  # drafts the target agreed with, before clipping
    emitted: list[int] = field(default_factory=list)  # tokens that count: accepted + 1, clipped at a stop or the limit
    draft_s: list[float] = field(default_factory=list)
    verify_s: list[float] = field(default_factory=list)
    commit_s: list[float] = field(default_factory=list)
    round_s: list[float] = field(default_factory=list)  # whole steps, where their parts cannot be told apart


@dataclass(frozen=True)
class Drafting:
    """What a server counted of an answer: rounds that verified drafts, drafts accepted, drafts proposed (None: not counted)."""

    rounds: int
    accepted: int
    drafted: int | None


@dataclass(frozen=True)
class Record:
    """One answered (or failed) turn.

    ``status`` is "ok" or "error"; an error row has ``error`` set and no numbers. The first output token belongs to the
    prefill, so ``len(output_ids) == prefill_tokens + sum(steps.emitted)`` (asserted). Imported answers have ``tokens`` instead
    of ids, no step times, no trees, and the prefill's token counted in the first step. Other engines' answers have no trees,
    and no more than ``timing`` says.
    """

    method: str
    question_id: str
    category: str  # one of the six reported categories, or the suite's own
    turn: int  # 0, 1, …
    repeat: int
    status: str
    error: str = ""
    prompt_sha256: str = ""  # of the prompt's token ids
    prompt_tokens: int = 0
    output_ids: list[int] = field(default_factory=list)
    prefill_tokens: int = 1  # output tokens of the prompt's own forward: more where an engine drafts before it
    tokens: int | None = None  # output tokens where the ids are unknown: imported answers, servers that send text
    output_text: str = ""
    text_tokens: int | None = None  # of the stripped text read back: Spec-Bench counts its baseline's so, and loses the stop token
    stop: str = ""  # "stop_id" or "length"
    prefill_s: float = 0.0
    total_s: float = 0.0  # the turn end to end: prefill, drafting, verification, commits
    peak_bytes: int = 0  # peak memory while the turn ran: allocator's on CUDA, the process' on CPU
    device: str = ""  # that it ran on, "KIND #WHICH" (environment.device_id); "" where not recorded
    steps: Steps = field(default_factory=Steps)
    timing: str = "parts"  # known of the decoding: the "parts" of each step, whole "rounds", or no more than the "answer"
    drafting: Drafting | None = None  # the server's own counts, where no step is known

    def __post_init__(self) -> None:
        if self.status == "ok":
            steps = self.steps
            assert self.timing in TIMINGS, f"timing is {self.timing!r}"
            assert 0 < self.total_s < inf, "a turn takes time"
            parts_s = self.prefill_s + sum(steps.draft_s) + sum(steps.verify_s) + sum(steps.commit_s) + sum(steps.round_s)
            assert parts_s <= self.total_s * CLOCKS_AGREE + 1e-3, "a turn cannot be shorter than its parts"
            if self.tokens is not None:
                assert not self.output_ids, "known ids are counted, not told"
            elif self.timing != "answer":
                assert len(self.output_ids) == self.prefill_tokens + sum(steps.emitted), "tokens must be the prefill's + the sum of emitted"
            whole = [accepted + 1 for accepted in steps.accepted]
            assert len(steps.emitted) == len(whole), "every step accepts and emits"
            assert steps.emitted[:-1] == whole[:-1], "every step but the last must emit accepted + 1"
            assert steps.emitted[-1:] <= whole[-1:], "the last step can only be clipped"

    @property
    def key(self) -> tuple[str, str, int, int]:
        return (self.method, self.question_id, self.turn, self.repeat)

    @property
    def token_count(self) -> int:
        return len(self.output_ids) if self.tokens is None else self.tokens


def device_kind(device: str) -> str:
    """What a record's device shares with those on which times compare with its own: the GPU's model, or a CPU and its load."""
    return device.partition(" #")[0]


def to_line(record: Record) -> str:
    fields = asdict(record)
    for name in ("draft_s", "verify_s", "commit_s", "round_s"):
        fields["steps"][name] = [round(s, 7) for s in fields["steps"][name]]
    return json.dumps({"schema": SCHEMA, **fields}, ensure_ascii=False, separators=(",", ":"))


def from_fields(fields: dict[str, Any], where: str) -> Record:
    schema = fields.pop("schema", None)
    if schema != SCHEMA:
        raise UserError(f"{where}: record schema {schema}, this version reads {SCHEMA}; use the specbench version that wrote it")
    counted = fields.get("drafting")
    return Record(**{**fields, "steps": Steps(**fields["steps"]), "drafting": Drafting(**counted) if counted else None})


class Writer:
    """Appends records to a run directory; each is on disk before the next turn starts."""

    def __init__(self, run_dir: Path):
        self._file = (run_dir / FILE).open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        self._file.write(to_line(record) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read(run_dir: Path) -> tuple[list[Record], bool]:
    """A run's records and whether its last line was torn (a process died while writing it; that line is left out).

    Reads ``records.jsonl`` or, of a published run, ``records.jsonl.xz``.
    """
    plain, packed = run_dir / FILE, run_dir / PACKED
    if plain.is_file():
        raw = plain.read_bytes()
    elif packed.is_file():
        raw = _unpacked(packed)
    else:
        if plain.exists():
            raise UserError(f"{plain} is no file; restore the run's records")
        return [], False
    lines = raw.split(b"\n")
    torn = lines.pop() != b""
    found = []
    for number, line in enumerate(lines, start=1):
        where = f"{plain}, line {number}"
        try:
            found.append(from_fields(json.loads(line), where))
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise UserError(f"{where}: not a record ({error}); the file was edited or is not specbench's") from None
    twice = [key for key, times in Counter(record.key for record in found).items() if times > 1]
    if twice:
        method, question, turn, repeat = twice[0]
        where = f"{method}, question {question}, turn {turn + 1}, repeat {repeat + 1}"
        raise UserError(f"{plain} holds {len(twice)} turn(s) twice, the first: {where}; the file was edited or two runs were mixed")
    return found, torn


def _unpacked(path: Path) -> bytes:
    try:
        return lzma.decompress(path.read_bytes())
    except (lzma.LZMAError, EOFError) as error:
        raise UserError(f"{path} cannot be unpacked ({error}); it is damaged or cut short: restore it") from None


def drop_torn_line(run_dir: Path) -> None:
    """Cut the file after its last complete line."""
    path = run_dir / FILE
    raw = path.read_bytes()
    os.truncate(path, raw.rfind(b"\n") + 1)  # never rewritten: a kill in between would lose every record

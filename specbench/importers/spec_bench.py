"""Spec-Bench's own answer files, read into records from which its ``evaluation/speed.py``'s numbers come out again.

Source: github.com/hemingkx/Spec-Bench (Apache-2.0). One JSON object a question: ``question_id``, ``category`` and
``choices``, of which the first counts: ``turns`` (the answers), ``decoding_steps``, ``new_tokens`` and ``wall_time`` (seconds)
by turn, and ``accept_lengths``, the tokens of every step of all turns in one list.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from methods.core.errors import UserError
from specbench.store.records import Record, Steps
from specbench.suites.schema import ALL
from specbench.suites.suite import reported

FAILED = "ERROR"  # what Spec-Bench stores as the text of a turn that raised
STALE = "Spec-Bench recorded an error; the numbers beside it are the previous turn's"

MOST = 10**9  # tokens, steps or seconds: more than any turn has, and what sums as a float


@dataclass(frozen=True)
class Answer:
    """A question's answers, turn by turn; ``step_tokens`` is ``accept_lengths`` cut into turns."""

    question_id: str
    category: str  # the reported one
    texts: tuple[str, ...]
    tokens: tuple[int, ...]
    wall_s: tuple[float, ...]
    step_tokens: tuple[list[int], ...]
    cut: bool  # whether decoding_steps told where; else all steps are the first turn's


@dataclass(frozen=True)
class AnswerFile:
    """The answers of one method, by question id in the file's order."""

    path: Path
    sha256: str
    model_ids: tuple[str, ...]  # as the files name what answered, distinct
    answers: Mapping[str, Answer]
    replaced: int  # lines that a later one with the same id replaces, as Spec-Bench's own clean-up does

    def without(self, ids: Set[str]) -> Self:
        return replace(self, answers={each: answer for each, answer in self.answers.items() if each not in ids})

    def notices(self) -> list[str]:
        """What a reader of the numbers must know about the file, one sentence each."""
        answers = self.answers.values()
        failed = sum(FAILED in answer.texts for answer in answers)
        uncounted = sum(0 in answer.tokens for answer in answers)
        uncut = sum(not answer.cut for answer in answers)
        found = {
            "line(s) replaced by a later one with the same question_id": self.replaced,
            "question(s) with an ERROR turn, left out of both arms; speed.py averages what stands beside them": failed,
            "question(s) with a turn of 0 new_tokens, taken for not counted": uncounted,
            "question(s) whose decoding_steps do not add up to their accept_lengths: all steps stand with the first turn": uncut,
        }
        return [f"{self.path.name}: {count} {what}." for what, count in found.items() if count]


def read(path: Path) -> AnswerFile:
    """Raises UserError naming the line for a file that is not of the schema."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"answer file {path} cannot be read ({error.strerror}); give one that Spec-Bench wrote") from None
    try:
        lines = raw.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {number}: not UTF-8 text; give an answer file of Spec-Bench") from None
    answers: dict[str, Answer] = {}
    models: dict[str, None] = {}
    count = 0
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = _Row(line, f"{path}, line {number}")
            answer = row.answer()
            answers[answer.question_id] = answer
            models[str(row.fields.get("model_id", "unknown"))] = None
            count += 1
    if not answers:
        raise UserError(f"{path}: no answers in it; give an answer file of Spec-Bench")
    return AnswerFile(path, hashlib.sha256(raw).hexdigest(), tuple(models), answers, count - len(answers))


def records_of(file: AnswerFile, arm: str, read_back: Callable[[str], int] | None) -> Iterator[Record]:
    """A record a turn. ``read_back`` counts a text's tokens as Spec-Bench counts its baseline's.

    The prompt is unknown, and named after the arm so that no two arms' turns are taken for answers to the same one.
    """
    for answer in file.answers.values():
        for turn, text in enumerate(answer.texts):
            facts = (arm, answer.question_id, answer.category, turn, 0)
            if text == FAILED:
                yield Record(*facts, status="error", error=STALE)
                continue
            emitted = answer.step_tokens[turn]
            yield Record(
                *facts,
                status="ok",
                prompt_sha256=f"unknown, {arm}",
                tokens=answer.tokens[turn],
                output_text=text,
                text_tokens=read_back(text) if read_back else None,
                total_s=answer.wall_s[turn],
                steps=Steps(accepted=[tokens - 1 for tokens in emitted], emitted=emitted),
            )


class _Row:
    """One line, its fields checked as they are taken; what is wrong is a UserError that names the line."""

    def __init__(self, line: str, where: str):
        self.where = where
        try:
            self.fields: Any = json.loads(line)
            json.dumps(self.fields, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError(f"{where}: half of a surrogate pair in it, which is no text; write the whole character or none") from None
        except RecursionError:
            raise UserError(f"{where}: nested too deeply; is this an answer file of Spec-Bench?") from None
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error}); an answer file holds one JSON object a line") from None
        if not isinstance(self.fields, dict):
            raise UserError(f"{where}: a JSON object is needed, found {_short(self.fields)}; an answer file holds one a line")

    def answer(self) -> Answer:
        identity = self._take(
            self.fields, "question_id", lambda x: isinstance(x, int | str) and not isinstance(x, bool), "a number or a string"
        )
        category = self._take(
            self.fields, "category", lambda x: isinstance(x, str) and x not in ("", ALL), f"a non-empty string other than {ALL!r}"
        )
        choices = self._take(self.fields, "choices", _list_of(lambda x: isinstance(x, dict)), "a non-empty list of objects")
        first = choices[0]
        texts = self._take(first, "turns", _list_of(lambda x: isinstance(x, str)), "a non-empty list of strings")
        turns = len(texts)
        counts, seconds = f"a list of {turns} counts, one a turn", f"a list of {turns} positive seconds, one a turn"
        steps = self._take(first, "decoding_steps", _list_of(_is_count, turns), counts)
        tokens = self._take(first, "new_tokens", _list_of(_is_count, turns), counts)
        wall_s = self._take(first, "wall_time", _list_of(_is_seconds, turns), seconds)
        lengths = self._take(first, "accept_lengths", _list_of(_is_count), "a non-empty list of counts")
        by_turn = _cut(lengths, steps)
        step_tokens = by_turn or [lengths, *([] for _ in texts[1:])]
        return Answer(
            str(identity), reported(category), tuple(texts), tuple(tokens), tuple(wall_s), tuple(step_tokens), by_turn is not None
        )

    def _take(self, source: Mapping[str, Any], name: str, sound: Callable[[Any], bool], wanted: str) -> Any:
        value = source.get(name)
        if not sound(value):
            found = "nothing" if value is None else _short(value)
            raise UserError(f"{self.where}: field {name!r} must be {wanted}, found {found}; is this an answer file of Spec-Bench?")
        return value


def _cut(lengths: list[int], steps: list[int]) -> list[list[int]] | None:
    """``accept_lengths`` by turn, or None where ``decoding_steps`` do not tell.

    Some methods return the index of the last step instead of their number; one turn needs no telling.
    """
    if len(steps) == 1:
        return [lengths]
    for counts in (steps, [last + 1 for last in steps]):
        if sum(counts) == len(lengths):
            ends = [sum(counts[: i + 1]) for i in range(len(counts))]
            return [lengths[end - count : end] for count, end in zip(counts, ends, strict=True)]
    return None


def _list_of(kind: Callable[[object], bool], length: int | None = None) -> Callable[[object], bool]:
    """Whether a value is a list of ``length`` such items, or of one or more."""
    return lambda values: isinstance(values, list) and all(map(kind, values)) and (len(values) == length if length else bool(values))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MOST


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"

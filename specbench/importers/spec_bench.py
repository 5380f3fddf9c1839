"""Spec-Bench's answer files, converted to records that reproduce the numbers of its ``evaluation/speed.py``.

Source: github.com/hemingkx/Spec-Bench (Apache-2.0). A file holds one JSON object a question: ``question_id``, ``category`` and
``choices``, of which only the first is read. It holds ``turns`` (the answers), ``decoding_steps``, ``new_tokens`` and
``wall_time`` (seconds) by turn, and ``accept_lengths``, the tokens of every step of all turns in one list.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from methods.core.errors import UserError
from specbench.store.records import OVERALL, Record, Steps
from specbench.suites.suite import reported_category
from specbench.util.stored import FileFormat, parse_lines, read_bytes
from specbench.util.text import shorten

FAILED = "ERROR"  # what Spec-Bench stores as the text of a turn that raised
STALE = "Spec-Bench recorded an error; the numbers beside it are the previous turn's"

FORMAT = FileFormat("question's answers", None, "an answer file of Spec-Bench holds one JSON object a line")
LIMIT = 10**9  # tokens, steps or seconds: more than any turn has, and few enough to be summed as floats


@dataclass(frozen=True)
class QuestionAnswers:
    """A question's answers, turn by turn; ``step_tokens`` is ``accept_lengths`` split by turn."""

    question_id: str
    category: str  # the reported category
    texts: tuple[str, ...]
    tokens: tuple[int, ...]
    wall_s: tuple[float, ...]
    step_tokens: tuple[list[int], ...]
    split: bool  # whether decoding_steps said how to split the steps; otherwise all are given to the first turn


@dataclass(frozen=True)
class AnswerFile:
    """The answers of one method, by question id in the file's order."""

    path: Path
    sha256: str
    model_ids: tuple[str, ...]  # the distinct model names in the file
    answers: Mapping[str, QuestionAnswers]
    replaced: int  # lines replaced by a later one with the same id, as in Spec-Bench's own clean-up

    def without(self, ids: Set[str]) -> Self:
        """Return the file without the answers to the questions ``ids``."""
        return replace(self, answers={question_id: answer for question_id, answer in self.answers.items() if question_id not in ids})

    def notices(self) -> list[str]:
        """Return what a reader of the numbers must know about the file, one sentence each."""
        answers = self.answers.values()
        failed = sum(FAILED in answer.texts for answer in answers)
        uncounted = sum(0 in answer.tokens for answer in answers)
        unsplit = sum(not answer.split for answer in answers)

        counts = {
            "line(s) replaced by a later one with the same question_id": self.replaced,
            "question(s) with an ERROR turn, left out of both arms; speed.py averages their stale numbers": failed,
            "question(s) with a turn of 0 new_tokens, taken for not counted": uncounted,
            "question(s) whose decoding_steps do not add up to their accept_lengths: all steps are assigned to the first turn": unsplit,
        }
        return [f"{self.path.name}: {count} {what}." for what, count in counts.items() if count]


def read_answers(path: Path) -> AnswerFile:
    """Read an answer file. Raises UserError naming the first line that does not follow the schema."""
    raw = read_bytes(path, FORMAT)
    answers: dict[str, QuestionAnswers] = {}
    models: dict[str, None] = {}
    count = 0
    for where, fields in parse_lines(raw, str(path), FORMAT):
        answer = _AnswerLine(fields, where).parse()
        answers[answer.question_id] = answer
        models[str(fields.get("model_id", "unknown"))] = None
        count += 1

    if not answers:
        raise UserError(f"{path}: no answers in it; give an answer file of Spec-Bench")
    return AnswerFile(path, hashlib.sha256(raw).hexdigest(), tuple(models), answers, count - len(answers))


def records_of(file: AnswerFile, arm: str, count_text_tokens: Callable[[str], int] | None) -> Iterator[Record]:
    """Yield one record a turn. ``count_text_tokens`` counts the tokens of a text as Spec-Bench does for its baseline.

    The prompt is unknown. Its hash is named after the arm, so that turns of two arms are never taken for
    answers to the same prompt.
    """
    for answer in file.answers.values():
        for turn, text in enumerate(answer.texts):
            identity = (arm, answer.question_id, answer.category, turn, 0)
            if text == FAILED:
                yield Record(*identity, status="error", error=STALE)
                continue

            emitted = answer.step_tokens[turn]
            yield Record(
                *identity,
                status="ok",
                prompt_sha256=f"unknown, {arm}",
                tokens=answer.tokens[turn],
                output_text=text,
                text_tokens=count_text_tokens(text) if count_text_tokens else None,
                total_s=answer.wall_s[turn],
                steps=Steps(accepted=[tokens - 1 for tokens in emitted], emitted=emitted),
            )


class _AnswerLine:
    """One line of an answer file. Raises UserError naming the line for a field that is wrong."""

    def __init__(self, fields: dict[str, Any], where: str):
        self.fields, self.where = fields, where

    def parse(self) -> QuestionAnswers:
        identity = self._take(
            self.fields, "question_id", lambda x: isinstance(x, int | str) and not isinstance(x, bool), "a number or a string"
        )
        category = self._take(
            self.fields, "category", lambda x: isinstance(x, str) and x not in ("", OVERALL), f"a non-empty string other than {OVERALL!r}"
        )
        choices = self._take(self.fields, "choices", _list_of(lambda x: isinstance(x, dict)), "a non-empty list of objects")

        first = choices[0]
        texts = self._take(first, "turns", _list_of(lambda x: isinstance(x, str)), "a non-empty list of strings")
        turns = len(texts)
        a_count_each, seconds_each = f"a list of {turns} counts, one a turn", f"a list of {turns} positive seconds, one a turn"
        steps = self._take(first, "decoding_steps", _list_of(_is_count, turns), a_count_each)
        tokens = self._take(first, "new_tokens", _list_of(_is_count, turns), a_count_each)
        wall_s = self._take(first, "wall_time", _list_of(_is_seconds, turns), seconds_each)
        lengths = self._take(first, "accept_lengths", _list_of(_is_count), "a non-empty list of counts")

        by_turn = _split_by_turn(lengths, steps)
        step_tokens = by_turn or [lengths, *([] for _ in texts[1:])]
        return QuestionAnswers(
            str(identity), reported_category(category), tuple(texts), tuple(tokens), tuple(wall_s), tuple(step_tokens), by_turn is not None
        )

    def _take(self, source: Mapping[str, Any], name: str, is_valid: Callable[[Any], bool], wanted: str) -> Any:
        value = source.get(name)
        if not is_valid(value):
            actual = "nothing" if value is None else shorten(value)
            raise UserError(f"{self.where}: field {name!r} must be {wanted}, found {actual}; is this an answer file of Spec-Bench?")
        return value


def _split_by_turn(lengths: list[int], steps: list[int]) -> list[list[int]] | None:
    """Split ``accept_lengths`` by turn; None where ``decoding_steps`` do not say how.

    Some methods store the index of the last step instead of the number of steps.
    """
    if len(steps) == 1:
        return [lengths]
    for counts in (steps, [last + 1 for last in steps]):
        if sum(counts) == len(lengths):
            ends = [sum(counts[: i + 1]) for i in range(len(counts))]
            return [lengths[end - count : end] for count, end in zip(counts, ends, strict=True)]
    return None


def _list_of(kind: Callable[[object], bool], length: int | None = None) -> Callable[[object], bool]:
    """Return a check for lists whose items all pass ``kind``: ``length`` of them, or one or more."""
    return lambda values: isinstance(values, list) and all(map(kind, values)) and (len(values) == length if length else bool(values))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LIMIT


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < LIMIT

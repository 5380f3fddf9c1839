"""Spec-Bench's question schema: one JSON object a line, checked field by field.

``{"question_id": 81, "category": "writing", "turns": ["…", …], "reference": ["…", …]}``; ``reference`` is optional.
"""

import json
from collections.abc import Mapping, Sequence

from methods.core.errors import UserError
from specbench.suites.suite import Question, reported

ALL = "overall"  # what tables call all categories together (turns.OVERALL, kept out of a run's imports), so no category's name


def questions_from_jsonl(raw: bytes, source: str) -> tuple[Question, ...]:
    """The questions of a JSONL file's bytes; ``source`` names it in messages. Raises UserError naming the first bad line."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad_line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{source}, line {bad_line}: not UTF-8 text; save the file as UTF-8 JSONL") from None
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()  # lone surrogates, which JSON can spell and no tokenizer can read
        except RecursionError:
            raise UserError(f"{where}: nested too deeply; a suite file holds one flat JSON object a line") from None
        except UnicodeEncodeError:
            raise UserError(f"{where}: half of a surrogate pair (\\ud800 to \\udfff) in its text; correct the line") from None
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error}); a suite file holds one JSON object a line") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: a JSON object is needed, found {_kind(row)}; a suite file holds one JSON object a line")
        found.append((where, question(row, where)))
    return distinct(found, source)


def distinct(found: Sequence[tuple[str, Question]], source: str) -> tuple[Question, ...]:
    """The questions of (where, question) pairs. Raises UserError if there are none or if two share an id."""
    if not found:
        raise UserError(f"{source}: no questions in it; a suite needs at least one")
    first: dict[str, str] = {}
    for where, item in found:
        if item.id in first:
            raise UserError(f"{where}: question_id {item.id!r} was already used at {first[item.id]}; give each question its own id")
        first[item.id] = where
    return tuple(item for _, item in found)


def question(row: Mapping[str, object], where: str) -> Question:
    """The question a row describes. Raises UserError, starting with ``where``, for a missing or ill-typed field."""
    identity = row.get("question_id")
    if isinstance(identity, bool) or not isinstance(identity, int | str) or identity == "":
        raise _bad(where, row, "question_id", "an integer or a non-empty string")
    category = row.get("category")
    if not isinstance(category, str) or not category:
        raise _bad(where, row, "category", "a non-empty string")
    if category == ALL:
        raise _bad(where, row, "category", "a name other than the one of all categories together")
    turns = row.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise _bad(where, row, "turns", "a non-empty list of non-empty strings")
    reference = _strings(row.get("reference"))
    if reference is None:
        raise _bad(where, row, "reference", "a list of strings")
    return Question(id=str(identity), category=reported(category), turns=tuple(turns), reference=tuple(reference))


def _strings(value: object) -> list[str] | None:
    """Strings of a possibly nested list (Spec-Bench nests its rag references); None if anything else is in it."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        return None
    parts = [None if item is None else _strings(item) for item in value]
    return None if any(part is None for part in parts) else [text for part in parts if part for text in part]


def _bad(where: str, row: Mapping[str, object], field: str, wanted: str) -> UserError:
    found = _kind(row[field]) if field in row else "nothing"
    return UserError(f"{where}: field {field!r} must be {wanted}, found {found}; correct the line")


def _kind(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}…"

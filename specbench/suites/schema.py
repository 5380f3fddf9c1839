"""Spec-Bench's question schema: one JSON object a line, checked field by field.

``{"question_id": 81, "category": "writing", "turns": ["…", …], "reference": ["…", …]}``; ``reference`` is optional.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from math import isfinite

from methods.core.errors import UserError
from specbench.store.records import OVERALL
from specbench.suites.suite import Question, reported_category
from specbench.util.stored import FileFormat, parse_lines
from specbench.util.text import shorten

FORMAT = FileFormat("question", None, "a suite file is UTF-8 text with one JSON object a line")


def questions_from_jsonl(raw: bytes, source: str) -> tuple[Question, ...]:
    """Parse the bytes of a JSONL file, called ``source`` in messages. Raises UserError naming the first bad line."""
    return check_distinct([(where, parse_question(row, where)) for where, row in parse_lines(raw, source, FORMAT)], source)


def check_distinct(located: Sequence[tuple[str, Question]], source: str) -> tuple[Question, ...]:
    """Return the questions of (where, question) pairs. Raises UserError if there are none or if two share an id."""
    if not located:
        raise UserError(f"{source}: no questions in it; a suite needs at least one")

    first_at: dict[str, str] = {}
    for where, question in located:
        if question.id in first_at:
            raise UserError(
                f"{where}: question_id {question.id!r} was already used at {first_at[question.id]}; give each question its own id"
            )
        first_at[question.id] = where
    return tuple(question for _, question in located)


def parse_question(row: Mapping[str, object], where: str, columns: Mapping[str, str] | None = None) -> Question:
    """Return the question of a row. Numbers and dates stand for their text.

    Raises UserError, starting with ``where``, for a missing or ill-typed field. ``columns`` names the column
    of a hub data set that each field was read from; None for a row of a file.
    """

    def bad(field: str, wanted: str) -> UserError:
        found = shorten(row[field]) if field in row else "nothing"
        if columns is None:
            return UserError(f"{where}: field {field!r} must be {wanted}, found {found}; correct the line")
        named = f"column {columns[field]!r}, read as" if field in columns else "field"
        return UserError(f"{where}: {named} {field!r} must be {wanted}, found {found}; read another: --hf-column {field}=COLUMN")

    identity = _as_text(row.get("question_id"))
    if not identity:
        raise bad("question_id", "a number or a non-empty string")

    category = _as_text(row.get("category"))
    if not category:
        raise bad("category", "a non-empty string")
    if category == OVERALL:
        raise bad("category", f"any name but {OVERALL!r}")

    turns = row.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise bad("turns", "a non-empty list of non-empty strings")

    reference = _flatten(row.get("reference"))
    if reference is None:
        raise bad("reference", "a list of strings or numbers")
    return Question(id=identity, category=reported_category(category), turns=tuple(turns), reference=tuple(reference))


def _as_text(value: object) -> str | None:
    """Return a text as it is, a number or a date as text, a whole number without decimals; None for anything else."""
    if isinstance(value, float) and isfinite(value):
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, str | int | date) and not isinstance(value, bool):
        return str(value)
    return None


def _flatten(value: object) -> list[str] | None:
    """Return the texts of a possibly nested list (Spec-Bench nests its rag references); None if it holds anything else."""
    if value is None:
        return []
    text = _as_text(value)
    if text is not None:
        return [text]
    if not isinstance(value, list):
        return None
    parts = [None if item is None else _flatten(item) for item in value]
    return None if any(part is None for part in parts) else [text for part in parts if part for text in part]

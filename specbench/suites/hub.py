"""Data sets of the Hugging Face hub, read with the optional package ``datasets``, which is imported only here."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from methods.core.errors import UserError, unknown
from specbench.suites.schema import check_distinct, parse_question
from specbench.suites.suite import Suite

PREFIX = "hf:"
FIELDS = ("question_id", "category", "turns", "reference")


def load(name: str, columns: Mapping[str, str]) -> Suite:
    """Load the suite ``hf:ID``, ``hf:ID:CONFIG`` or either with ``@SPLIT`` (needed where there are several splits).

    ``columns`` maps fields of the schema to the data set's columns; a field it leaves out is read from
    the column of the same name. Where there is no such column, ids are row numbers and the category is
    the data set's name; ``turns`` is required, and a string there is one turn. The suite's ``sha256`` is
    computed from the questions, since the hub may store them in any format.
    """
    table, identity = _read_split(name, "suite")
    sources = _source_columns(columns, table.column_names, identity)
    fallback_category = identity.rpartition("/")[2]
    features = getattr(table, "features", None) or {}
    labels = {field: features[column].names for field, column in sources.items() if hasattr(features.get(column), "names")}

    located = []
    for number, columns_of_row in enumerate(table):
        where = f"{name}, row {number}"
        row: dict[str, Any] = {"question_id": number, "category": fallback_category}
        row.update((field, columns_of_row[column]) for field, column in sources.items())
        row.update((field, _label(names, row[field])) for field, names in labels.items())
        if isinstance(row["turns"], str):
            row["turns"] = [row["turns"]]
        located.append((where, parse_question(row, where, sources)))

    questions = check_distinct(located, name)
    sha256 = hashlib.sha256(json.dumps([astuple(item) for item in questions]).encode()).hexdigest()
    return Suite(name, sha256[:12], questions, sha256)


def _label(names: Sequence[str], value: Any) -> Any:
    """Return the name of a class label, which a data set stores as its number; anything else as it is."""
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def read_rows(name: str, what: str) -> Any:
    """Return the rows, as dicts, of ``hf:ID``, ``hf:ID:CONFIG`` or either with ``@SPLIT``.

    Error messages say ``what`` the rows are for.
    """
    return _read_split(name, what)[0]


def _read_split(name: str, what: str) -> tuple[Any, str]:
    """Return a data set's rows and its id."""
    identity, _, split = name.removeprefix(PREFIX).partition("@")
    identity, _, config = identity.partition(":")
    if not identity:
        raise UserError(f"{what} {name!r} names no data set; write hf:OWNER/NAME, hf:OWNER/NAME:CONFIG or hf:OWNER/NAME@SPLIT")
    return _choose_split(download(identity, config, what), split, name, what), identity


def download(identity: str, config: str, what: str) -> Any:
    """Download a data set and return all its splits by name. Raises UserError where that fails."""
    try:
        import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise UserError(f"{what} from the hub needs the package datasets; install it with: pip install datasets") from None
    try:
        return datasets.load_dataset(identity, config or None)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"data set {identity!r} could not be loaded ({reason}); check its name, configuration and the network") from None


def _choose_split(splits: Any, wanted: str, name: str, what: str) -> Any:
    names = list(splits)
    if not wanted and len(names) == 1:
        return splits[names[0]]
    if not wanted:
        raise UserError(f"{what} {name!r} has the splits {', '.join(names)}; choose one, as in {name.rstrip('@')}@{names[0]}")
    if wanted not in names:
        raise unknown(f"split of {name.partition('@')[0]}", wanted, names)
    return splits[wanted]


def _source_columns(columns: Mapping[str, str], available: list[str], identity: str) -> dict[str, str]:
    """Return the column that each field is read from."""
    for field, column in columns.items():
        if field not in FIELDS:
            raise unknown("field in the column mapping", field, FIELDS)
        if column not in available:
            raise unknown(f"column of {identity}", column, available)
    sources = {field: columns.get(field, field) for field in FIELDS if field in columns or field in available}
    if "turns" not in sources:
        raise UserError(
            f"data set {identity!r} has no column 'turns'; map one of {', '.join(available)} to it: --hf-column turns={available[0]}"
        )
    return sources

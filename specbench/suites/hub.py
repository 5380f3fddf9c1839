"""Questions from a data set of the Hugging Face hub, through the optional package ``datasets``, imported only here."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from methods.core.errors import UserError, unknown
from specbench.suites.schema import distinct, question
from specbench.suites.suite import Suite

PREFIX = "hf:"
FIELDS = ("question_id", "category", "turns", "reference")


def load(name: str, columns: Mapping[str, str]) -> Suite:
    """The suite ``hf:ID``, ``hf:ID:CONFIG`` or either with ``@SPLIT`` (needed only where the data set has several splits).

    ``columns`` maps fields of the schema to the data set's columns; a field it leaves out is read from the column of
    its own name. Without such a column, ids are row numbers and the category is the data set's name; ``turns`` must
    be found, and a string there is one turn. ``sha256`` is of the questions, since the hub may store them in any format.
    """
    table, identity = _read(name, "suite")
    sources = _sources(columns, table.column_names, identity)
    fallback_category = identity.rpartition("/")[2]
    found = []
    for number, columns_of_row in enumerate(table):
        where = f"{name}, row {number}"
        row: dict[str, Any] = {"question_id": number, "category": fallback_category}
        row.update((field, columns_of_row[column]) for field, column in sources.items())
        if isinstance(row["turns"], str):
            row["turns"] = [row["turns"]]
        found.append((where, question(row, where)))
    questions = distinct(found, name)
    sha256 = hashlib.sha256(json.dumps([astuple(item) for item in questions]).encode()).hexdigest()
    return Suite(name, sha256[:12], questions, sha256)


def rows(name: str, what: str) -> Any:
    """The rows of ``hf:ID``, ``hf:ID:CONFIG`` or either with ``@SPLIT``, each a dict; ``what`` they are for is named in errors."""
    return _read(name, what)[0]


def _read(name: str, what: str) -> tuple[Any, str]:
    """A data set's rows and its name."""
    identity, _, split = name.removeprefix(PREFIX).partition("@")
    identity, _, config = identity.partition(":")
    if not identity:
        raise UserError(f"{what} {name!r} names no data set; write hf:OWNER/NAME, hf:OWNER/NAME:CONFIG or hf:OWNER/NAME@SPLIT")
    return _split(_download(identity, config, what), split, name, what), identity


def _download(identity: str, config: str, what: str) -> Any:
    """All splits of a data set, by name."""
    try:
        import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise UserError(f"{what} from the hub needs the package datasets; install it with: pip install datasets") from None
    try:
        return datasets.load_dataset(identity, config or None)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"data set {identity!r} could not be loaded ({reason}); check its name, configuration and the network") from None


def _split(splits: Any, wanted: str, name: str, what: str) -> Any:
    names = list(splits)
    if not wanted and len(names) == 1:
        return splits[names[0]]
    if not wanted:
        raise UserError(f"{what} {name!r} has the splits {', '.join(names)}; choose one, as in {name.rstrip('@')}@{names[0]}")
    if wanted not in names:
        raise unknown(f"split of {name.partition('@')[0]}", wanted, names)
    return splits[wanted]


def _sources(columns: Mapping[str, str], available: list[str], identity: str) -> dict[str, str]:
    """Which column each field is read from."""
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

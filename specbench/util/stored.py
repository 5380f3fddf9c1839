"""Files that specbench wrote, read back: every field is held against its type, and whatever is wrong becomes one line."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_json

from methods.core import json_text
from methods.core.errors import UserError
from specbench.util.text import one_line, shorten

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # for ``__pydantic_config__`` of what is read
T = TypeVar("T")


@dataclass(frozen=True)
class FileFormat:
    """What a file is called in messages, the schema version that is read (None: it has none), and what to do about a broken one."""

    name: str
    schema: int | None
    next_step: str

    def error(self, where: str, reason: str) -> UserError:
        """Return the error for a file, or the line at ``where``, that is not of this format."""
        return UserError(f"{where}: not a {self.name} ({reason}); {self.next_step}")


def read_json(path: Path, form: FileFormat) -> Any:
    """Return the contents of a JSON file.

    Raises UserError for a file that cannot be read and for text that is not JSON (``methods.core.json_text``).
    """
    return parse_json(read_bytes(path, form), str(path), form)


def read_bytes(path: Path, form: FileFormat) -> bytes:
    """Return the bytes of a file. Raises UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{form.name} {path} cannot be read ({error.strerror or error}); {form.next_step}") from None


def parse_json(raw: bytes, where: str, form: FileFormat) -> Any:
    """Return the value that JSON text stands for. Raises UserError as ``read_json`` does; ``where`` is its place."""
    try:
        return json_text.parse_json(raw)
    except ValueError as error:
        raise form.error(where, one_line(str(error))) from None


def parse_lines(raw: bytes, source: str, form: FileFormat) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the object of each line of JSONL that is not blank. Raises UserError as ``read_json`` does, naming the line."""
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if line.strip():
            where = f"{source}, line {number}"
            fields = parse_json(line, where, form)
            if not isinstance(fields, dict):
                raise form.error(where, f"an object is needed, found {shorten(fields)}")
            yield where, fields


def validated(kind: Callable[..., T], stored: Any, where: str, form: FileFormat) -> T:
    """Return stored fields as an instance of a dataclass. Raises UserError for another schema version or a wrong field."""
    if not isinstance(stored, dict):
        raise form.error(where, "an object is needed")
    schema = stored.get("schema")
    if schema != form.schema:
        version = f"{form.name} schema version {shorten(schema)}, this version reads {form.schema}"
        raise UserError(f"{where}: {version}; use the version that wrote it, or {form.next_step}")
    try:
        fields = to_json({name: value for name, value in stored.items() if name != "schema"}, inf_nan_mode="constants")
        found: T = _adapter(kind).validate_json(fields)  # of Python's values, strict validation takes instances alone
    except ValidationError as error:
        raise form.error(where, _reason(error)) from None
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)  # takes 60 ms for a manifest


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    return one_line(f"{place}: {first['msg']}" if place else first["msg"])

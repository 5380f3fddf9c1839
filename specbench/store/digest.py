"""Digests of stored text: they show that a record or a manifest was changed after it was written.

A digest is evidence of accidents and careless edits. It is no signature: whoever means to deceive can form it again.
"""

import hashlib
import re
from codecs import BOM_UTF8
from collections.abc import Iterable
from typing import Any

from methods.core.errors import UserError

FIELD = "digest"
_LAST = re.compile(rb',\s*"digest":\s*"([0-9a-f]{64})"\s*\}\s*$')


def add_digest(text: str) -> str:
    """Return a JSON object's text with one more field at its end: the SHA-256 of the text before that field."""
    before = text[:-1].rstrip()
    end = text[len(before) :]
    gap, space = ("", "") if end == "}" else ("\n ", " ")
    return f'{before},{gap}"{FIELD}":{space}"{_sha256(before.encode())}"{end}'


def take_digest(stored: Any) -> str:
    """Remove the digest from a parsed object and return it, or "" if it has none."""
    found = stored.pop(FIELD, "") if isinstance(stored, dict) else ""
    return found if isinstance(found, str) else "?"


def find_digest(raw: bytes) -> str:
    """Return the digest at the end of a JSON object's text, or ""."""
    last = _LAST.search(raw)
    return last[1].decode() if last else ""


def check_digest(digest: str, raw: bytes, where: str) -> None:
    """Raise UserError, which names the text's place, if a digest was taken from it and is not the digest of the rest."""
    if not digest:
        return
    last = _LAST.search(raw)
    if last is None or _sha256(raw[: last.start()].removeprefix(BOM_UTF8)) != digest:
        raise UserError(
            f"{where}: its digest is not that of its text, so it was changed after it was written; restore it, or remove the field "
            f"{FIELD}, and reports will say that it has none"
        )


def digest_of_all(digests: Iterable[str]) -> str:
    """Return one digest of many, whatever their order."""
    return _sha256("\n".join(sorted(digests)).encode())


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()

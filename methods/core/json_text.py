"""JSON that others wrote, parsed so that whatever is wrong with it is a ValueError of one line."""

from codecs import BOM_UTF8
from typing import Any

from pydantic_core import from_json

REASONS = {  # in words of the parser, and plainer
    "recursion limit exceeded": "nested too deeply",
    "hex escape": "half of a surrogate pair in its text",
}


def parse_json(raw: bytes | str) -> Any:
    """Return the value that JSON text stands for. A byte order mark does not matter.

    Raises ValueError for text that is not UTF-8 or not JSON; nesting without end, numbers of thousands of
    digits, NaN and half surrogate pairs included.
    """
    text = (raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw).removeprefix(BOM_UTF8)
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(_reason(text, str(error))) from None


def _reason(text: bytes, said: str) -> str:
    try:
        text.decode()
    except UnicodeDecodeError:
        return "not UTF-8 text"
    plain = next((reason for words, reason in REASONS.items() if words in said), "")
    return f"{plain}: {said}" if plain else f"not JSON: {said}"

"""Escaping of text from models, files and servers before it is shown."""

import re

# Characters that GitHub's Markdown takes for markup. An underscore inside a word and a lone bracket are harmless.
MARKUP = re.compile(r"[\\|`*~$]|(?<![^\W_])_|_(?![^\W_])|(?<=\])[\[(:]")

# Control characters, directional overrides, surrogates and noncharacters: a document may not hold them, or they change
# the text around them.
UNPRINTABLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff\\ufdd0-\\ufdef"
    + "".join(chr(plane * 0x10000 + last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)


def visible(text: str) -> str:
    """Return the text with a replacement sign for every character that a document cannot show."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def escape(text: str) -> str:
    """Return the text on one line, escaped so that it can neither leave a Markdown table cell nor become markup."""
    plain = visible(text.replace("\r", "\n")).replace("&", "&amp;").replace("<", "&lt;")
    return " ".join(MARKUP.sub(r"\\\g<0>", plain).split())

"""Escaping of text from models, files, and servers before it is shown."""

import re

# What GitHub's Markdown would take for markup wherever it stands: an underscore within a word and a lone bracket are none.
MARKUP = re.compile(r"[\\|`*~$]|(?<![^\W_])_|_(?![^\W_])|(?<=\])[\[(:]")


# Controls, directional overrides, surrogates and noncharacters: no document may hold them, or they change what stands around them.
UNPRINTABLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff\\ufdd0-\\ufdef"
    + "".join(chr(plane * 0x10000 + last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)


def visible(text: str) -> str:
    """Text with a replacement sign for every character that a document cannot show."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def escape(text: str) -> str:
    """Text on one line that cannot break out of its Markdown table or turn into markup."""
    plain = visible(text.replace("\r", "\n")).replace("&", "&amp;").replace("<", "&lt;")
    return " ".join(MARKUP.sub(r"\\\g<0>", plain).split())

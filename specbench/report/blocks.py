"""What a report is made of, in reading order and in no format: the renderers give each block its form.

Every string is plain text, the model's included; escaping is the renderers' work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specbench.util.table import TextTable


@dataclass(frozen=True)
class Heading:
    """``level`` 1 is the title, 2 a run, 3 a section of it."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True)
class Terms:
    """Names and what they mean or are."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Figure:
    """A drawn figure: ``png``, with an SVG of the same name beside it."""

    png: Path
    caption: str
    alt: str


@dataclass(frozen=True)
class Piece:
    """Text of one step's accepted drafts, or of its bonus token; step 0 is the prefill."""

    text: str
    step: int
    bonus: bool


@dataclass(frozen=True)
class Answer:
    """One arm's output; ``pieces`` concatenate to it. A single piece: the text is not cut into steps."""

    label: str
    note: str
    pieces: Sequence[Piece]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class Sample:
    """One question's answers side by side; ``prompt`` is None where its text is not shown."""

    title: str
    prompt: str | None
    answers: Sequence[Answer]


Block = Heading | Paragraph | Bullets | Terms | TextTable | Figure | Sample

"""The parts of a report in reading order, independent of any format.

Every string is plain text, also text that a model wrote. The renderers escape it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specbench.util.text import TextTable


@dataclass(frozen=True)
class Heading:
    """A heading: level 1 is the title, 2 a run, 3 a section of a run."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text, or a warning that stands out."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Bullets:
    """A bulleted list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Terms:
    """A list of names and their meanings."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Figure:
    """A drawn figure: ``png``, with an SVG of the same name beside it. ``alt`` replaces it for readers who cannot see it."""

    png: Path
    caption: str
    alt: str


@dataclass(frozen=True)
class TextPiece:
    """The text of a step's accepted drafts, or of its bonus token. Step 0 is the prefill."""

    text: str
    step: int
    bonus: bool


@dataclass(frozen=True)
class SampleAnswer:
    """One arm's output. The pieces concatenate to it; a single piece means that it is not cut into steps."""

    label: str
    note: str
    pieces: Sequence[TextPiece]

    @property
    def text(self) -> str:
        """The whole output."""
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class Sample:
    """One question with the answers of all arms. ``prompt`` is None if its text is not shown."""

    title: str
    prompt: str | None
    answers: Sequence[SampleAnswer]


Block = Heading | Paragraph | Bullets | Terms | TextTable | Figure | Sample

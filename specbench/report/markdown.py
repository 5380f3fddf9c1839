"""The report as GitHub's Markdown: plain text is escaped, the model's stands in fenced blocks."""

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from specbench.report.blocks import Answer, Block, Bullets, Figure, Heading, Paragraph, Sample, Terms
from specbench.util.table import TextTable
from specbench.util.text import escape, visible

BAR = "\N{BOX DRAWINGS LIGHT VERTICAL}"  # begins a step


def render(blocks: Sequence[Block], out: Path) -> str:
    """The whole file; figures are referred to by their paths relative to ``out``."""
    return "\n\n".join(_block(block, out) for block in blocks) + "\n"


def _block(block: Block, out: Path) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {escape(text)}"
        case Paragraph(text, warning):
            return f"**Note.** {escape(text)}" if warning else _line(text)
        case Bullets(items):
            return "\n".join(f"- {_line(item)}" for item in items)
        case Terms(items):
            return "\n".join(f"- **{escape(name)}**: {escape(meaning)}" for name, meaning in items)
        case TextTable():
            return f"{_line(block.title)}:\n\n{block.markdown()}"
        case Figure():
            return f"![{escape(block.caption)}]({block.png.relative_to(out).as_posix()})"
        case Sample():
            return _sample(block)


def _line(text: str) -> str:
    """Escaped text that does not open a heading, a quotation, a rule or a list either."""
    return re.sub(r"^(\d*)([#>+=.)-])", r"\1\\\2", escape(text))


def _sample(sample: Sample) -> str:
    prompt = [] if sample.prompt is None else ["Prompt:", _fenced(sample.prompt)]
    parts = [part for answer in sample.answers for part in (f"**{escape(answer.label)}** ({escape(answer.note)})", _fenced(_cut(answer)))]
    return "\n\n".join([f"#### {escape(sample.title)}", *prompt, *parts])


def _cut(answer: Answer) -> str:
    return BAR.join("".join(piece.text for piece in step) for _, step in groupby(answer.pieces, key=lambda piece: piece.step))


def _fenced(text: str) -> str:
    """Text as it is, in a fence longer than any run of backticks in it."""
    text = visible(text)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"

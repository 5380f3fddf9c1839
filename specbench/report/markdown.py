"""The report as GitHub Markdown: plain text is escaped, and outputs of models stand in fenced blocks."""

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from specbench.report.blocks import Block, Bullets, Figure, Heading, Paragraph, Sample, SampleAnswer, Terms
from specbench.util.text import TextTable, escape, visible

BAR = "\N{BOX DRAWINGS LIGHT VERTICAL}"  # begins a step


def render(blocks: Sequence[Block], out: Path) -> str:
    """Return the whole file. Figures are linked by their paths relative to ``out``."""
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
            return f"![{escape(block.alt)}]({block.png.relative_to(out).as_posix()})\n\n{_line(block.caption)}"
        case Sample():
            return _sample(block)


def _line(text: str) -> str:
    """Return escaped text that cannot begin a heading, a quotation, a rule, or a list."""
    return re.sub(r"^(\d*)([#>+=.)-])", r"\1\\\2", escape(text))


def _sample(sample: Sample) -> str:
    prompt = [] if sample.prompt is None else ["Prompt:", _fenced(sample.prompt)]
    parts = [
        part for answer in sample.answers for part in (f"**{escape(answer.label)}** ({escape(answer.note)})", _fenced(_with_bars(answer)))
    ]
    return "\n\n".join([f"#### {escape(sample.title)}", *prompt, *parts])


def _with_bars(answer: SampleAnswer) -> str:
    return BAR.join("".join(piece.text for piece in step) for _, step in groupby(answer.pieces, key=lambda piece: piece.step))


def _fenced(text: str) -> str:
    """Return text unchanged, in a fence longer than any run of backticks in it."""
    text = visible(text)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"

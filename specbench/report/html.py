"""The report as one self-contained HTML file: styles and figures are inside, and there is no script."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader

from specbench.report.blocks import Block, Heading
from specbench.util.text import visible


@dataclass(frozen=True)
class _Part:
    """A block with its kind, which selects the markup, and a unique id."""

    block: Block
    kind: str
    id: str


def render(blocks: Sequence[Block]) -> str:
    """Return the whole file. Every text is escaped."""
    page = Environment(
        loader=PackageLoader("specbench.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) else value,
    )
    page.globals |= {"embedded": _embedded}
    parts = [_Part(block, type(block).__name__, f"part-{number}") for number, block in enumerate(blocks)]
    sections = [part for part in parts if isinstance(part.block, Heading)]
    return page.get_template("report.html.j2").render(parts=parts, title=sections[0], sections=sections[1:]) + "\n"


def _embedded(png: Path) -> str:
    """Return the figure's SVG as a data URI, so that ids in two figures cannot clash."""
    return f"data:image/svg+xml;base64,{base64.b64encode(png.with_suffix('.svg').read_bytes()).decode()}"

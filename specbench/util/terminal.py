"""Everything that is written to the terminal: text from outside can neither control it nor forge a line."""

import json
import sys
import traceback
from collections.abc import Iterable
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from specbench.util.text import UNPRINTABLE, TextTable, visible


class Console(RichConsole):
    """A rich console that shows a replacement sign for every character that would control the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of a renderable, with their texts made visible."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def print_table(console: RichConsole, table: TextTable) -> None:
    """Print a table; one that is too wide for the terminal in parts, because rich would drop columns or digits."""
    for part in table.parts(console.width):
        console.print(part.rich(console.width), crop=False)


def tell(message: object) -> None:
    """Print one line on stderr: an error, a warning, or what to do next."""
    print(visible(" ".join(str(message).splitlines())), file=sys.stderr)


def print_traceback() -> None:
    """Print the traceback of the exception that is being handled on stderr."""
    print(visible(traceback.format_exc()), end="", file=sys.stderr)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout; NaN is an error. Characters that control a terminal are escaped as JSON does it."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    print(UNPRINTABLE.sub(lambda found: json.dumps(found[0])[1:-1], text))

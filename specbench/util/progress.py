"""Progress of countable work: a bar on a terminal, occasional lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

LINE_EVERY_S = 30.0  # seconds between progress lines where there is no terminal


@contextmanager
def show_progress(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total) that shows progress: a bar, or occasional lines without a terminal."""
    last_shown = time.perf_counter()

    def print_line(done: int, total: int) -> None:
        nonlocal last_shown
        if time.perf_counter() - last_shown >= LINE_EVERY_S:
            last_shown = time.perf_counter()
            console.print(f"{done}/{total} {what}", markup=False, highlight=False, soft_wrap=True)

    if not console.is_terminal:
        yield print_line
        return

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(what, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)

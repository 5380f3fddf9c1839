"""Progress of countable work: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

LINE_EVERY_S = 30.0  # between progress lines where there is no terminal


@contextmanager
def counted(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total) that shows progress: a bar, or without a terminal a line now and then."""
    shown = time.perf_counter()

    def line(done: int, total: int) -> None:
        nonlocal shown
        if time.perf_counter() - shown >= LINE_EVERY_S:
            shown = time.perf_counter()
            console.print(f"{done}/{total} {what}", markup=False, highlight=False, soft_wrap=True)

    if not console.is_terminal:
        yield line
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(what, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)

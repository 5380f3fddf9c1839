"""Progress displays: of a running measurement, with each arm's tokens/s and MAT so far, and of other countable work."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from specbench.store.records import Record
from specbench.util.terminal import Console

DRAW_EVERY_S = 0.25  # on a terminal
LINE_EVERY_S = 30.0  # seconds between progress lines where there is no terminal


class Sink(Protocol):
    """A receiver of finished records, such as a progress display."""

    def add(self, record: Record) -> None:
        """Take a record that is on disk."""
        ...


@dataclass
class Tally:
    """Running sums of one arm."""

    turns: int = 0
    failed: int = 0
    tokens: int = 0
    seconds: float = 0.0
    emitted: int = 0
    steps: int = 0

    def add(self, record: Record) -> None:
        """Add a record to the sums."""
        self.turns += 1
        self.failed += record.status != "ok"
        self.tokens += record.token_count
        self.seconds += record.total_s
        self.emitted += sum(record.steps.emitted)
        self.steps += len(record.steps.emitted)

    @property
    def speed(self) -> str:
        """Tokens per second as text, "-" without a turn."""
        return f"{self.tokens / self.seconds:.1f}" if self.seconds else "-"

    @property
    def mat(self) -> str:
        """Mean accepted tokens as text, "-" without a step."""
        return f"{self.emitted / self.steps:.2f}" if self.steps else "-"


def describe_failures(tallies: Mapping[str, Tally]) -> str:
    """Return how many turns failed, and in which arms, or "" if none did."""
    failed = {arm: tally for arm, tally in tallies.items() if tally.failed}
    if not failed:
        return ""
    count, total = (sum(getattr(tally, name) for tally in tallies.values()) for name in ("failed", "turns"))
    return f"{count} of {total} turns failed: {', '.join(f'{arm} {tally.failed} of {tally.turns}' for arm, tally in failed.items())}"


class RunProgress:
    """A progress display, used as a context manager. Call ``add`` after every turn.

    ``tallies`` holds each arm's sums. The display is drawn between turns only: a refresh thread would take the interpreter, and
    on a small machine a core, from the turn being timed. Without a terminal it prints a line every ``LINE_EVERY_S`` seconds instead.
    """

    def __init__(self, console: Console, arms: Sequence[str], total: int, done: Sequence[Record]):
        self._console, self._total, self._done_before = console, total, len(done)
        self.tallies = {arm: Tally() for arm in arms}
        for record in done:
            self.tallies[record.arm].add(record)
        self._started = self._shown = time.perf_counter()
        self._bar = Progress(TextColumn("turns"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), console=console)
        self._task = self._bar.add_task("", total=total)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def done(self) -> int:
        """Turns measured so far, with those of earlier starts."""
        return sum(tally.turns for tally in self.tallies.values())

    def add(self, record: Record) -> None:
        """Count a record, print its error if it has one, and redraw if it is time."""
        self.tallies[record.arm].add(record)
        if record.status != "ok":
            self._console.print(f"{record.arm}, question {record.question_id}, turn {record.turn + 1}: {record.error}", markup=False)

        now = time.perf_counter()
        if self._live is not None and now - self._shown >= DRAW_EVERY_S:
            self._shown = now
            self._bar.update(self._task, completed=self.done, description=self._time_left(now))
            self._live.update(Group(self._table(), self._bar), refresh=True)
        elif self._live is None and now - self._shown >= LINE_EVERY_S:
            self._shown = now
            self._console.print(self.line(now), markup=False, soft_wrap=True)

    def line(self, now: float) -> str:
        """Return the progress in one line. ``now`` is in seconds of ``time.perf_counter``."""
        arms = ", ".join(f"{name} {tally.speed} tokens/s MAT {tally.mat}" for name, tally in self.tallies.items())
        return f"{self.done}/{self._total} turns, {self._time_left(now)}: {arms}"

    def _time_left(self, now: float) -> str:
        measured = self.done - self._done_before
        if not measured:
            return ""
        seconds = round((now - self._started) / measured * (self._total - self.done))
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02} left"

    def _table(self) -> Table:
        table = Table("arm", "turns", "failed", "tokens/s", "MAT", box=None)
        for name, tally in self.tallies.items():
            table.add_row(name, str(tally.turns), str(tally.failed), tally.speed, tally.mat)
        return table


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

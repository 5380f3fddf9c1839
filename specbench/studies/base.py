"""Common parts of the studies: methods on a loaded target, conditions of a measurement, report files."""

import itertools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pandas as pd

from methods.core.acceptance import Sampling
from methods.core.clock import clock_for
from methods.core.decode import DecodeResult, decode
from methods.core.errors import WeightsError
from methods.core.target import Target
from methods.registry import Resolved, missing_weights_message
from specbench import suites
from specbench.config.options import RunConfig
from specbench.engines.own import OwnEngine
from specbench.measure.resolve import own_arms, resolve_methods
from specbench.report import markdown
from specbench.report.blocks import Block, Heading, Paragraph
from specbench.store import describe
from specbench.store.manifest import RunManifest
from specbench.suites import Question
from specbench.targets import Loaded, drafters
from specbench.targets.chat import Chat
from specbench.util.environment import Environment, GitState, environment, git_state
from specbench.util.files import atomic_write, write_text
from specbench.util.terminal import Console, print_table
from specbench.util.text import TextTable, number


@dataclass(frozen=True)
class Conditions:
    """The conditions of a measurement, as they are stored beside its numbers."""

    created: str
    argv: list[str]
    target: str  # its name, without the path of a local folder
    note: str  # a warning that belongs to the target's numbers, or ""
    parameters: int | None  # of the target; None for several targets
    dtype: str
    device: str  # its kind: cpu or cuda
    backend: str
    environment: Environment
    git: GitState

    @classmethod
    def of_target(cls, loaded: Loaded, config: RunConfig) -> Self:
        """Return the conditions of a measurement on a loaded target. ``config`` must be settled."""
        device = loaded.model.device
        return cls(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            argv=sys.argv[1:],
            target=describe.short_name(loaded.name, loaded.revision),
            note=loaded.note,
            parameters=loaded.parameters,
            dtype=config.dtype,
            device=device.type,
            backend=config.backend,
            environment=environment(device),
            git=git_state(),
        )

    @classmethod
    def of_run(cls, manifest: RunManifest) -> Self:
        """Return the conditions of a run, or of a session that was prepared as one."""
        settings, target = manifest.settings, manifest.target
        return cls(
            created=manifest.created,
            argv=manifest.argv,
            target=describe.target_name(manifest),
            note=target.note,
            parameters=target.parameters,
            dtype=settings.dtype,
            device=settings.device.partition(":")[0],
            backend=settings.backend,
            environment=manifest.environment,
            git=manifest.git,
        )

    @property
    def processor(self) -> str:
        """The name of the GPU or the CPU."""
        return self.environment.gpu or self.environment.cpu or "unknown processor"

    def sentence(self, *details: str) -> str:
        """Return the conditions in one line, followed by a study's own ``details``."""
        size = f" ({self.parameters / 1e6:,.0f} M parameters)" if self.parameters else ""
        threads = "" if self.environment.gpu else f", {self.environment.threads} threads"
        versions = f"torch {self.environment.torch}, transformers {self.environment.transformers}"
        subject = f"{self.target}{size}, {self.dtype}, back end {self.backend}"
        return "; ".join([subject, f"{self.processor}{threads}, {versions}", *details])

    def folder_name(self, study: str) -> str:
        """Return the default name of a study's output, as in ``roofline-tiny-160m-cpu-static``."""
        return f"{study}-{Path(self.target).name}-{self.device}-{self.backend}"


def own_methods(config: RunConfig, verb: str) -> dict[str, Resolved]:
    """Return vanilla and the methods of settled settings, resolved, by arm.

    Raises UserError for unknown names and options, and for another engine: ``verb`` says what a
    study cannot do to its steps.
    """
    return resolve_methods(own_arms(config, verb), config)


def with_weights(loaded: Loaded, methods: Iterable[Resolved], *, required: bool) -> list[Resolved]:
    """Return the methods that need no drafter weights or have them, and read those weights.

    Raises UserError for a method without weights if all are ``required``.
    """
    usable = []
    for method in methods:
        if method.method.weights and loaded.drafter_for(method) is None:
            if required:
                with drafters.with_next_step():
                    raise WeightsError(f"{method.name} {missing_weights_message(method.method)}", method.method.weights)
            continue
        usable.append(method)
    return usable


def engine_of(method: Resolved, loaded: Loaded, target: Target) -> OwnEngine:
    """Return a method ready to decode on the target. Raises UserError if its weights are missing."""
    return OwnEngine(method.arm, target, *loaded.build(method, target))


def decoded(engine: OwnEngine, prompt: list[int], sampling: Sampling) -> DecodeResult:
    """Return an engine's answer to a prompt, with the counts and times of its steps."""
    return decode(engine.target, engine.drafter, engine.accept, prompt, sampling, clock_for(engine.target.device))


def text_of(loaded: Loaded, tokens: int) -> list[int]:
    """Return a prompt of ``tokens`` real tokens, made of the warm-up questions repeated."""
    ids = [token for question in suites.warmup() for token in loaded.chat.encode(question.turns[:1], [])]
    return list(itertools.islice(itertools.cycle(ids), tokens))


def first_prompts(chat: Chat, questions: Iterable[Question]) -> list[list[int]]:
    """Return the token ids of each question's first prompt."""
    return [chat.encode(question.turns[:1], []) for question in questions]


def title_blocks(title: str, sentence: str, note: str) -> list[Block]:
    """Return the first blocks of a report: its title, its conditions, and the target's warning, if any."""
    return [Heading(1, title), Paragraph(sentence), *([Paragraph(note, warning=True)] if note else [])]


def table(title: str, rows: Sequence[Mapping[str, str]]) -> TextTable:
    """Return a table of finished cells. Each row maps header to cell; all have the same headers."""
    headers = list(rows[0]) if rows else []
    return TextTable(title, headers, [[row[header] for header in headers] for row in rows])


def ms(seconds: float, digits: int = 2) -> str:
    """Return seconds as a cell in milliseconds."""
    return number(1e3 * seconds, digits)


def write_report(folder: Path, name: str, blocks: Sequence[Block], rows: pd.DataFrame) -> None:
    """Write ``NAME.csv`` and ``NAME.md``. Raises UserError if they cannot be written."""
    with atomic_write(folder / f"{name}.csv") as file:
        rows.to_csv(file, index=False, float_format="%.6g")
    write_text(folder / f"{name}.md", markdown.render(blocks, folder))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file without NaN. Raises UserError if it cannot be written."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def show(console: Console, lines: Iterable[str], tables: Iterable[TextTable], written: str) -> None:
    """Print a study's lines and tables, and where its files are."""
    for line in filter(None, lines):
        console.print(line, markup=False)
    for one in tables:
        print_table(console, one)
    console.print(written, markup=False, soft_wrap=True)

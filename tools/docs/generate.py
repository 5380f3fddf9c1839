"""``python -m tools.docs.generate`` (part of ``make docs``): write the generated pages under docs/."""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer.main
from pydantic import TypeAdapter

from specbench.analysis import breakdown
from specbench.analysis.metrics import DEFINITIONS
from specbench.analysis.quantities import DRAFTING, MAT_RATIOS
from specbench.cli import app
from specbench.gate import baseline
from specbench.gate.baseline import StoredBaseline
from specbench.report.tables import COLUMNS
from specbench.store import manifest, records
from specbench.store.manifest import RunManifest
from specbench.store.records import Record
from specbench.util.exits import FAULT, TURNS_FAILED

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WIDTH = 110
NOTICE = "<!-- Written by `python -m tools.docs.generate`. Do not edit: change the code and run `make docs`. -->"
VALUES = {int: "N", float: "X", Path: "PATH", str: "NAME"}  # metavars of options that have none of their own

# The columns of comparison.csv that are not definitions of specbench/analysis/metrics.py.
OTHER_COLUMNS = {
    "arm": "Name of the arm, as given to `--method`.",
    "category": "Category of the questions, or `overall`.",
    "engine": "The program that decoded, in words. Empty for specbench's own decode loop.",
    "questions": "Questions compared.",
    "turns": "Turns compared, over all repeats.",
    "excluded_questions": "Questions left out of both arms, because a turn failed or because devices were mixed.",
    "mixed_questions": "Excluded questions whose turns ran on devices of different kinds.",
    "speedup_over_eager": "`speedup` with the arm `vanilla:backend=eager` as the baseline. Empty where that arm did not run.",
    "accounting_error": "True if a step costs less than a vanilla step, or a speedup exceeds MAT, beyond the interval. "
    "This is impossible at batch size 1 on one back end, so times or counts are wrong.",
    "tokens_per_s": "Output tokens per second, end to end: mean over questions and repeats.",
    "tokens_per_s_decode": "Emitted tokens per second of all steps, pooled. Excludes the prefill and its token.",
    "output_tokens": "Output tokens of all turns.",
    "stopped_by_length": "Share of turns that ended at the token limit, not at a stop token.",
    "peak_mib": "Peak memory in MiB: the allocator's on CUDA, the process's on a CPU. The weights of all arms are loaded.",
    "agreement": "Share of the comparable turns whose output equals vanilla's, token for token.",
    "comparable_turns": "Turns whose prompt equals vanilla's. After different first answers, second prompts differ too.",
    "diverging_turns": "Comparable turns whose output differs from vanilla's.",
    "first_divergence": "Mean index of the first differing output token, over the diverging turns.",
    "compared_by_text": "Comparable turns that were compared by text, because a server sent no token ids.",
    "repetition": "Mean share of 4-grams that occurred earlier in the same output. Loops are easy to draft and inflate MAT.",
}
TABLES = {
    "time_split.csv": breakdown.time_split,
    "acceptance.csv": breakdown.acceptance,
    "along_the_answer.csv": breakdown.along_the_answer,
}
FILES = {
    records.FILE: (Record, records.FORMAT, "one line a turn of a run: what was asked, answered and measured"),
    manifest.FILE: (RunManifest, manifest.FORMAT, "what a run was: everything needed to make it again"),
    "baselines/NAME.json": (StoredBaseline, baseline.FORMAT, "the numbers of a run that `specbench check` holds later runs against"),
}
FOLDERS = ("methods", "specbench", "tools")


def pages() -> dict[str, str]:
    """Return the text of every generated page, by its file name under docs/."""
    return {"cli.md": cli_page(), "metrics.md": metrics_page(), "files.md": files_page(), "modules.md": modules_page()}


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every command of a Typer group with its full name."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path}{name} ")
        else:
            yield path + name, command


def cli_page() -> str:
    """Return cli.md: every command with its help, arguments, options and exit codes."""
    blocks = [
        "# Command line",
        NOTICE,
        "`specbench COMMAND --help` prints the same in a terminal. `python -m specbench` is the same program.",
        "Errors that you can fix are one line on stderr, with exit code 2. An unknown option gets a usage box, also with exit code 2. "
        f"Exit code {FAULT}, with a traceback, is a bug in specbench: please report it. "
        f"Exit code {TURNS_FAILED}, of `run` and `resume`, means that the run is complete but turns of it failed. "
        "A command without exit codes below ends with 0 on success.",
    ]
    for name, command in commands(typer.main.get_command(app.app)):
        blocks += _command(name, command)
    return _joined(blocks)


def _command(name: str, command: Any) -> list[str]:
    signature = inspect.signature(command.callback, eval_str=True)
    hints = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    usage = ["specbench", name, *(each.metavar or each.name.upper() for each in arguments), *(["[OPTIONS]"] if options else [])]
    blocks = [f"## specbench {name}", f"```text\n{' '.join(usage)}\n```"]
    blocks += [_plain(paragraph) for paragraph in inspect.cleandoc(command.help or "").split("\n\n")]
    blocks += [_entry(f"`{each.metavar or each.name.upper()}`", _plain(each.help)) for each in arguments]
    blocks += [_entry(f"`{_spelled(each, hints)}`", f"{_plain(each.help)}{_default(each)}") for each in options]
    return blocks


def _spelled(option: Any, hints: dict[str, Any]) -> str:
    """Return an option with the name of its value: ``--limit N``."""
    flags = ", ".join(option.opts)
    return flags if option.is_flag else f"{flags} {option.metavar or VALUES.get(_value_type(hints.get(option.name)), 'VALUE')}"


def _value_type(hint: Any) -> Any:
    """Return the type of one value: ``int`` for ``Annotated[list[int] | None, ...]``."""
    while get_origin(hint) in (Annotated, Union, UnionType, list):
        hint = next(each for each in get_args(hint) if each is not type(None))
    return hint


def _default(option: Any) -> str:
    if option.required:
        return " Required."
    shown = option.show_default if isinstance(option.show_default, str) else option.default
    return "" if shown is None or option.is_flag or option.multiple else f" Default: `{shown}`."


def metrics_page() -> str:
    """Return metrics.md: the definitions and the columns of the report's tables."""
    blocks = [
        "# Metrics",
        NOTICE,
        "`specbench report` writes its tables as CSV and Parquet. This page lists their columns. "
        "[How we measure](how-we-measure.md) explains the ideas behind them.",
        "Every definition below is a function of that name in `specbench/analysis/metrics.py`. The columns `NAME_low` and `NAME_high` hold "
        "its 95 % bootstrap interval over questions, stratified by category. A number that cannot be formed is empty.",
        "## Definitions",
        *(_entry(f"`{name}`", _doc(each)) for name, each in DEFINITIONS.items()),
        "## Ratios for claims",
        "A [claim](add-a-claim.md) that is no speedup is judged by one of these, from `specbench/analysis/quantities.py`. They compare an "
        "arm with a reference, which may be any arm of the run, and are in no table.",
        *(_entry(f"`{each.__name__}`", _doc(each)) for each in (*MAT_RATIOS, *DRAFTING)),
        "## Other columns of comparison.csv",
        "One row per arm and category; the last category is `overall`.",
        *(_entry(f"`{name}`", _plain(text)) for name, text in OTHER_COLUMNS.items()),
        "## Other tables",
        *(_entry(f"`{name}`", _capitalized(_doc(table).removeprefix("Return "))) for name, table in TABLES.items()),
        "## Columns as the report shows them",
        *(_entry(title, _plain(text)) for title, text in COLUMNS),
    ]
    return _joined(blocks)


def files_page() -> str:
    """Return files.md: the JSON schemas of the stored files."""
    blocks = [
        "# Files",
        NOTICE,
        "The JSON schemas of three kinds of file that specbench writes and reads again. A file is held against its schema whenever it "
        "is read; a field of another type is an error of one line that names it. Every file has a field `schema` besides, its version.",
    ]
    for name, (kind, form, what) in FILES.items():
        schema = json.dumps(TypeAdapter(kind).json_schema(), indent=1)
        blocks += [f"## {name}", f"A {form.name}, version {form.schema}: {what}.", f"```json\n{schema}\n```"]
    return _joined(blocks)


def modules_page() -> str:
    """Return modules.md: every module with the first paragraph of its docstring."""
    blocks = [
        "# Modules",
        NOTICE,
        "The first paragraph of every module's docstring. [Architecture](architecture.md) explains how the folders fit together.",
    ]
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("__init__.py")):
            modules = sorted(file for file in path.parent.glob("*.py") if not file.name.startswith("__"))
            blocks.append(f"## {path.parent.relative_to(ROOT)}")
            blocks += [_plain(text) for text in [_summary(path)] if text]
            blocks += [_entry(f"`{file.name}`", _plain(_summary(file))) for file in modules]
    return _joined(blocks)


def _summary(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]


def _doc(function: object) -> str:
    return _plain(inspect.getdoc(function) or "")


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _plain(text: str) -> str:
    """Return help text as Markdown: one line, code in single backticks, nothing else taken for markup."""
    line = " ".join(text.replace("``", "`").split())
    return "".join(part if code else re.sub(r"([<*\[\]])", r"\\\1", part) for part, code in _code(line))


def _code(line: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a line, and whether each is code in backticks."""
    for place, part in enumerate(re.split(r"(`[^`]*`)", line)):
        yield part, place % 2 == 1


def _entry(term: str, text: str) -> str:
    """Return one entry of a Markdown definition list."""
    return f"{term}\n{_wrapped(':   ' + text, '    ')}"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _joined(blocks: list[str]) -> str:
    whole = [block if block.startswith(("#", "<!--", "```")) or "\n" in block else _wrapped(block) for block in blocks]
    return "\n\n".join(whole) + "\n"


def main() -> None:
    """Write every generated page."""
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""The table of other engines: programs that answer the same prompts beside specbench's own arms, as reference rows.

They are timed by the same clock and their tokens are counted by the same counter. How they decode is up to them, and every
table of a report marks them as a different engine.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from methods.core.errors import UserError, unknown
from methods.registry import parse_option
from specbench.config.arm import Arm
from specbench.config.options import RunConfig
from specbench.engines.base import BuiltEngine, ResolvedEngine

if TYPE_CHECKING:
    from methods.core.target import Target
    from specbench.targets import Loaded


@dataclass(frozen=True)
class EngineRow:
    """A row of the table: an engine's module, its options class in that module, and what it needs beside the target.

    The module has ``check(engine, config)`` and ``build(engine, loaded, target, config)``, which the functions of the same
    names below call.
    """

    title: str
    module: str
    options: str
    needs: str = "nothing"
    drafter: bool = False  # whether --drafter can name a draft model for it


ENGINES = {
    "hf-generate": EngineRow("generate", "specbench.engines.hf_generate", "PlainOptions"),
    "hf-pld": EngineRow("generate, prompt lookup", "specbench.engines.hf_generate", "LookupOptions"),
    "hf-assisted": EngineRow(
        "generate, assisted",
        "specbench.engines.hf_generate",
        "AssistedOptions",
        "a draft model: --drafter hf-assisted=FOLDER|HUB_ID",
        drafter=True,
    ),
    "endpoint": EngineRow("Endpoint", "specbench.engines.endpoint.engine", "EndpointOptions", "a server: --base-url URL"),
}


def options(name: str) -> dict[str, Any]:
    """Return the type of each option of one engine, by key."""
    return {f.name: f.type for f in fields(_options_class(name))}


def resolve(arm: Arm) -> ResolvedEngine:
    """Return an engine's arm with its options settled: those in the arm's name, else defaults. ``--set`` does not apply.

    Raises UserError for unknown options and bad values.
    """
    known = options(arm.method)
    for key in arm.options:
        if key not in known:
            raise unknown(f"option of {arm.method}", key, known)

    values = {key: parse_option(arm.method, key, text, known[key]) for key, text in arm.options.items()}
    row = ENGINES[arm.method]
    return ResolvedEngine(arm.name, arm.method, row.title + arm.variant, _options_class(arm.method)(**values), row.drafter)


def check(engines: Sequence[ResolvedEngine], config: RunConfig) -> None:
    """Raise UserError for what would only fail after the target is loaded: no server, no draft model."""
    if config.base_url and not any(engine.name == "endpoint" for engine in engines):
        raise UserError("--base-url names a server that no arm asks; add --method endpoint")
    for engine in engines:
        importlib.import_module(ENGINES[engine.name].module).check(engine, config)


def build(engine: ResolvedEngine, loaded: "Loaded", target: "Target", config: RunConfig) -> BuiltEngine:
    """Return the engine, ready to answer with the target's context and stop ids. Raises UserError if something is missing."""
    built: BuiltEngine = importlib.import_module(ENGINES[engine.name].module).build(engine, loaded, target, config)
    return built


def _options_class(name: str) -> type:
    row = ENGINES[name]
    options_class: type = getattr(importlib.import_module(row.module), row.options)
    return options_class

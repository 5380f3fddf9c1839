"""The common parts of commands: options from ``RunConfig``, default folders, and the console."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from specbench.config.options import Option, RunConfig
from specbench.util.terminal import Console

RESULTS = Path("results")

console = Console()
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]


def configured(
    *names: str, defaults: Mapping[str, Any] | None = None, helps: Mapping[str, str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these ``RunConfig`` fields (of all, if none are named) as its argument ``config``.

    ``defaults`` and ``helps`` replace a field's default and help text for this command.
    """
    chosen = [field for field in fields(RunConfig) if not names or field.name in names]
    assert {field.name for field in chosen} >= set(names), "every name is a field of RunConfig"

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def called(**given: Any) -> None:
            values = {field.name: _parsed(field, given.pop(field.name)) for field in chosen}
            command(config=RunConfig(**values), **given)

        shared = [_parameter(field, defaults or {}, helps or {}) for field in chosen]
        own = [parameter for parameter in inspect.signature(command).parameters.values() if parameter.name != "config"]
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*shared, *own)]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # Typer reads the options from it
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return called

    return decorate


def _parameter(field: Field[Any], defaults: Mapping[str, Any], helps: Mapping[str, str]) -> inspect.Parameter:
    """Return the parameter of a command from which Typer makes the field's option."""
    option: Option = field.metadata["option"]
    info = typer.Option(option.flag, metavar=option.metavar, help=helps.get(field.name, option.help))
    default = defaults.get(field.name, None if option.parse or field.default is MISSING else field.default)
    given: Any = option.given or field.type
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[given, info])


def _parsed(field: Field[Any], given: Any) -> Any:
    option: Option = field.metadata["option"]
    return option.parse(option.flag, given) if option.parse else given

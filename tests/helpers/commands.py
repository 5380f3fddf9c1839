"""Run a single command of specbench with its arguments as text, letting its errors through."""

from collections.abc import Callable

import typer


def call(command: Callable[..., None], *arguments: object) -> None:
    """Run the command; a UserError is raised, not printed."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app(args=[str(argument) for argument in arguments], standalone_mode=False)

"""The Typer app every command joins, and how errors end: one clear line, exit code 2."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console

from ..errors import OnnxAttnError

app = typer.Typer(
    name="onnx-attn",
    help="tf.keras.layers.Attention as portable ONNX files, run by ONNX Runtime.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()
errors = Console(stderr=True)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def command(
    name: str, *examples: str, group: typer.Typer = app
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Register a function as `onnx-attn NAME`; `examples` are shown in its --help.

    An OnnxAttnError ends the command with one line on stderr and exit code 2.
    """
    shown = "\n\n".join(
        f"[bold]$[/bold] {example.replace('[', chr(92) + '[')}" for example in examples
    )
    epilog = f"Examples:\n\n{shown}" if examples else None

    def register(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            try:
                return function(*args, **kwargs)
            except OnnxAttnError as error:
                errors.print(
                    f"[bold red]error:[/bold red] {_plain(error)}", highlight=False, soft_wrap=True
                )
                raise typer.Exit(2) from error

        group.command(name, epilog=epilog)(guarded)
        return function

    return register


def _plain(error: Exception) -> str:
    return " ".join(str(error).split()).replace("[", r"\[")

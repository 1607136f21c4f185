"""The Typer app every command joins, its help, and how errors end: one clear line, exit code 2."""

from __future__ import annotations

import functools
import io
import json
import math
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ParamSpec, TypeVar, cast

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from ..errors import OnnxAttnError
from ..version import __version__

console = Console()
errors = Console(stderr=True)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Command(TyperCommand):
    """A command whose help is plain text: options in groups, no name of one cut, examples whole."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The options by their panels, in the order in which those first appear."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panel = getattr(parameter, "rich_help_panel", None) or kind
                groups.setdefault(panel, []).append(record)
        for panel, records in groups.items():
            with formatter.section(panel):
                formatter.write_dl(
                    [(_names(names, formatter.width), about) for names, about in records]
                )

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples, a line each, as they can be typed."""
        del ctx
        if self.epilog:
            with formatter.section("Examples"):
                indent = formatter.current_indent * " "
                for example in self.epilog.splitlines():
                    lines = textwrap.wrap(
                        example,
                        formatter.width - len(" \\"),
                        initial_indent=indent,
                        subsequent_indent=2 * indent,
                        break_long_words=False,
                        break_on_hyphens=False,
                    )
                    formatter.write(" \\\n".join(lines) + "\n")


class Group(TyperGroup):
    """Commands under one name. A wrong call of any of them ends as `error: ...`, exit code 2."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The commands and the first sentence about each, whole."""
        names = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, found.get_short_help_str(1000)) for name, found in names if found]
            )

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        """Run the command that the arguments name."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **kwargs)
        for stream in (sys.stdout, sys.stderr):
            # What a terminal cannot show is a question mark, not a traceback.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            code = super().main(*args, standalone_mode=False, **kwargs)
        except typer.Abort:
            _say("stopped")
            sys.exit(130)
        except _USAGE as error:
            _say(_one_line(error.format_message()))
            sys.exit(error.exit_code)
        sys.exit(code if isinstance(code, int) else 0)


# click's ClickException, over UsageError; newer Typers bring a copy of click of their own.
_USAGE: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="onnx-attn",
    cls=Group,
    help="tf.keras.layers.Attention as portable ONNX files, run by ONNX Runtime.",
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def group(name: str, about: str) -> typer.Typer:
    """Register `onnx-attn NAME`, a group of commands of its own."""
    made = typer.Typer(help=about, cls=Group, invoke_without_command=True, rich_markup_mode=None)
    made.callback()(_help_without_command)
    app.add_typer(made, name=name)
    return made


def command(
    name: str, *examples: str, group: typer.Typer = app
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Register a function as `onnx-attn NAME`; `examples` are shown in its --help.

    An OnnxAttnError ends the command with one line on stderr and exit code 2.
    """
    shown = "\n".join(f"$ {example}" for example in examples)

    def register(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            try:
                return function(*args, **kwargs)
            except OnnxAttnError as error:
                _say(_one_line(str(error)))
                raise typer.Exit(2) from error

        group.command(name, cls=Command, epilog=shown or None)(guarded)
        return function

    return register


def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"onnx-attn {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    del version
    _help_without_command(context)


def _names(names: str, width: int) -> str:
    """An option's names; yes and no on a line each where they are long."""
    return names if len(names) < width - 2 else names.replace(" / ", " /\n  ")


def write_json(value: object) -> None:
    """Print JSON that every reader takes: NaN and infinity as protobuf's JSON writes them."""
    typer.echo(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in cast("Mapping[str, object]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in cast("Sequence[object]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _say(line: str) -> None:
    errors.print("error:", style="bold red", end=" ", highlight=False)
    errors.print(line, highlight=False, markup=False, soft_wrap=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())

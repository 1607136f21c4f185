"""`onnx-attn tools`: the files in company, a table of tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, TextColumn

from ..configuration import one_of
from ..errors import InputError
from .app import command, console

if TYPE_CHECKING:
    from ..verify.tools.table import Table

PAGE = Path("docs", "tools.md")


@command(
    "tools",
    "onnx-attn tools",
    "onnx-attn tools --check --write",
    "onnx-attn tools --tool onnxslim --file 'auto masks causal'",
)
def tools(
    check: Annotated[
        bool,
        typer.Option("--check", help='Exit code 1 if a "no" is not listed, or a listed one works.'),
    ] = False,
    write: Annotated[bool, typer.Option("--write", help=f"Write {PAGE.as_posix()}.")] = False,
    tool: Annotated[
        list[str] | None, typer.Option(help="Only this tool. May be given several times.")
    ] = None,
    file: Annotated[
        list[str] | None, typer.Option(help="Only this file. May be given several times.")
    ] = None,
) -> None:
    """Let other tools go over exported files and show the largest error of each, or why not.

    Needs the extra "tools". Takes about 3 minutes on two cores.
    """
    from ..file.disk import write_file
    from ..verify.tools.cases import case_names
    from ..verify.tools.expected import LIMITS
    from ..verify.tools.registry import TOOLS, require
    from ..verify.tools.table import differences, markdown, measure_table, unknown_limits

    names, files = [entry.name for entry in TOOLS], case_names()
    for name in tool or ():
        one_of("--tool", name, tuple(names))
    for name in file or ():
        one_of("--file", name, tuple(files))
    if write and (tool or file):
        raise InputError("--write writes the whole table: leave --tool and --file out")
    if write and not PAGE.parent.is_dir():
        raise InputError(
            f"--write writes {PAGE.as_posix()}: start it in the project's folder, "
            f"there is no {PAGE.parent} here"
        )
    chosen = tuple(entry for entry in TOOLS if not tool or entry.name in tool)
    require(chosen)
    with Progress(TextColumn("{task.description}"), console=console, transient=True) as progress:
        task = progress.add_task("")

        def report(done: int, total: int) -> None:
            progress.update(task, description=f"{done} of {total} cells")

        table = measure_table(chosen, file or files, report)
    if write:
        write_file(PAGE, markdown(table, LIMITS).encode())
    _show(table)
    found = [*unknown_limits(LIMITS, names, files), *differences(table, LIMITS)]
    for line in found:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if check and found:
        raise typer.Exit(1)


def _show(table: Table) -> None:
    from ..verify.tools.expected import LIMITS
    from ..verify.tools.table import markdown

    console.print(markdown(table, LIMITS), markup=False, highlight=False, soft_wrap=True)

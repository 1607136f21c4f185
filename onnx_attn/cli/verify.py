"""`onnx-attn verify`: models against their test vectors, in any runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from ..configuration import one_of
from ..errors import InputError, OnnxAttnError
from ..file.disk import read_text, write_text
from .app import command, console, write_json

if TYPE_CHECKING:
    from ..verify.run import Verification

ALL = "all"
DEFAULT = ("onnxruntime", "reference")
COLOURS = {"pass": "green", "miss": "red", "failed": "red", "limit": "yellow", "missing": "dim"}


@command(
    "verify",
    "onnx-attn verify models/",
    "onnx-attn verify models/causal models/masked --runtime node --runtime browser",
    "onnx-attn verify --runtime all models/ --write-table",
)
def verify(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="Models with test_data_set_K beside them, or folders of those."
        ),
    ],
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="onnxruntime, reference (the two by default), oldest-onnxruntime, openvino, "
            "node, web, browser, c, cpp, java, rust, go, tract, or all. May be given several times."
        ),
    ] = None,
    install: Annotated[
        bool,
        typer.Option(
            help="Install what a runtime needs and is not there yet (a virtual environment, npm "
            "packages, a program, which its language's own tools build) in the folder "
            "ONNX_ATTN_CACHE, by default in this user's cache. The browser is Chromium from the "
            "PATH, or ONNX_ATTN_CHROMIUM; ONNX Runtime's library for other languages is the "
            "installed wheel's, or ORT_DYLIB_PATH, its headers those of the system, or in the "
            "folder ONNXRUNTIME_INCLUDE."
        ),
    ] = True,
    write_table: Annotated[
        bool, typer.Option("--write-table", help="Write the table into PATH/README.md.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Run models on their test vectors and show the largest error of each, in each runtime.

    Exit code 0: all within tolerance. 1: a number is off, or a runtime fails on a file. 2: files
    are missing, damaged or not those of SHA256SUMS, or a runtime asked for by name is not there.
    """
    from ..verify.run import find_models, load_model, to_json
    from ..verify.run import verify as run
    from ..verify.runtimes import RUNTIMES

    names = list(runtime or DEFAULT)
    for name in names:
        one_of("--runtime", name, (*RUNTIMES, ALL))
    table_file = _table_file(paths, names) if write_table else None
    wanted = list(RUNTIMES) if ALL in names else list(dict.fromkeys(names))
    models = [load_model(path) for path in find_models(paths)]
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("")

        def report(doing: str, model: str | None) -> None:
            progress.update(task, description=f"{doing} {model or ''}")

        result = run(models, [RUNTIMES[name] for name in wanted], install, report)
    for name, why in result.missing.items():
        if name in names:
            raise OnnxAttnError(f"--runtime {name}: {why}")
    if table_file is not None:
        _write(table_file, result)
    if as_json:
        write_json(to_json(result))
    else:
        _show(result)
    if not result.passed:
        raise typer.Exit(1)


def _table_file(paths: Sequence[Path], names: Sequence[str]) -> Path:
    if ALL not in names:
        raise InputError("--write-table writes a column for each runtime: add --runtime all")
    if len(paths) != 1 or not (paths[0] / "README.md").is_file():
        raise InputError(
            "--write-table writes into PATH/README.md: give one PATH, a folder that "
            "onnx-attn models build has written"
        )
    return paths[0] / "README.md"


def _write(file: Path, result: Verification) -> None:
    from ..catalogue.readme import section, with_section
    from ..verify.report import results_markdown, versions_markdown

    text = with_section(read_text(file), "results", results_markdown(result))
    versions = versions_markdown(result, section(text, "versions"))
    write_text(file, with_section(text, "versions", versions))


def _show(result: Verification) -> None:
    from ..verify.report import make_table

    made = make_table(result)
    table = Table(box=None, header_style="bold")
    for runtime in ("model", *result.runtimes):
        name = runtime if isinstance(runtime, str) else runtime.name
        version = result.versions.get(name, "").replace(", ", "\n")
        table.add_column("\n".join([*name.split("-"), version]), no_wrap=True)
    table.add_column("rtol, atol", no_wrap=True)
    for row, cells in zip(made.rows, made.cells, strict=True):
        texts = [
            f"[{COLOURS[cell.status]}]{text}[/]"
            for text, cell in zip(row[1:-1], cells, strict=True)
        ]
        table.add_row(row[0], *texts, row[-1].replace("rtol ", "").replace("atol ", ""))
    # A table cut to the window's width would lose digits.
    needed = Console(width=1000).measure(table).maximum
    whole = Console(width=max(console.width, needed))
    whole.print(table)
    for note in made.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    sets = sum(len(model.sets) for model in result.models)
    words = "[green]all within tolerance[/]" if result.passed else "[red]not all right[/]"
    console.print(f"{len(result.models)} models, {sets} test sets: {words}")

"""`onnx-attn rewrite`: anybody's model, its attention without score matrices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from ..errors import InputError
from .app import command, console
from .npz import read_npz

NOTHING_TO_REWRITE = 3


@command(
    "rewrite",
    "onnx-attn rewrite model.onnx -o faster.onnx",
    "onnx-attn rewrite model.onnx -o faster.onnx --at batch=8,seq=512 --report report.json",
    "onnx-attn rewrite model.onnx -o faster.onnx --inputs feeds.npz --keep-all",
    "onnx-attn rewrite model.onnx --dry-run",
)
def rewrite(
    file: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="Any ONNX model.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="OUT.onnx", help="File to write.")
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="FEEDS.npz", help="Arrays by input name to prove it on."),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIM=SIZE", help="Sizes of the race, like batch=8,seq=512; may be repeated."
        ),
    ] = None,
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="Rewrite all that can be proven, without a race.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Find, prove and race, but write no model.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="REPORT.json", help="Write the report as JSON.")
    ] = None,
    max_difference: Annotated[
        float,
        typer.Option(help="Largest difference, relative to an output's largest magnitude."),
    ] = 1e-4,
) -> None:
    """Put walks over blocks in the place of a model's attention, and prove the numbers.

    Exit code 0: written; 3: nothing worth rewriting, nothing written; 2: an error.
    """
    from ..file.disk import write_file
    from ..rewrite import rewrite_model
    from ..rewrite.external import check_target, write_result

    if out is None and not dry_run:
        raise InputError("-o OUT.onnx is missing: where to write the model (or --dry-run)")
    if out is not None:
        check_target(file, out)
    sizes: dict[str, int] = {}
    for text in at or []:
        sizes |= _sizes(text)
    feeds = None if inputs is None else dict(read_npz(inputs))
    result = rewrite_model(
        file,
        inputs=feeds,
        at=sizes or None,
        keep_all=keep_all,
        max_difference=max_difference,
    )
    if report is not None:
        write_file(report, (json.dumps(result.report(), indent=2) + "\n").encode())
    _show(file, result)
    if result.model is None:
        console.print("nothing worth rewriting: nothing was written")
        raise typer.Exit(NOTHING_TO_REWRITE)
    if out is not None and not dry_run:
        write_result(result.model, file, out)
        console.print(f"[green]wrote[/green] {out}", highlight=False)


def _sizes(text: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in text.split(","):
        dim, equals, size = part.rpartition("=")
        if not equals or not dim.strip() or not size.strip().isdecimal() or int(size) < 1:
            raise InputError(f"--at must look like batch=8,seq=512; received {text!r}")
        sizes[dim.strip()] = int(size)
    return sizes


def _show(file: Path, result: Any) -> None:
    table = Table(
        Column("attention", overflow="fold"),
        Column("mask", overflow="fold"),
        Column("rewritten", overflow="fold"),
        title=file.name,
    )
    for site in result.sites:
        table.add_row(
            site.name.replace("[", "\\["),
            site.mask or "",
            "yes" if site.rewritten else f"no: {site.reason}".replace("[", "\\["),
        )
    console.print(table)
    for note in result.notes:
        console.print(note, highlight=False, markup=False)
    if result.proof is not None:
        console.print(f"proven: {result.proof}", highlight=False, markup=False)

"""`onnx-attn models`: the catalogue of models with test vectors."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from .app import command, console, group

models = group("models", "The catalogue: models with test vectors.")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the catalogue.")]


@command("build", "onnx-attn models build models", group=models)
def build(folder: Folder) -> None:
    """Write the catalogue: models, test vectors, checksums and README."""
    from ..catalogue.build import build
    from ..catalogue.entries import CATALOGUE

    with _progress(len(CATALOGUE)) as report:
        build(folder, report)
    console.print(f"{len(CATALOGUE)} models in {folder}")


@command("check", "onnx-attn models check models", group=models)
def check(folder: Folder) -> None:
    """Whether DIR is what build would write: all by byte, expected outputs by tolerance."""
    from ..catalogue.build import differences
    from ..catalogue.entries import CATALOGUE

    with _progress(len(CATALOGUE)) as report:
        found = differences(folder, report)
    for difference in found:
        console.print(difference, markup=False, highlight=False, soft_wrap=True)
    if found:
        console.print(f"{len(found)} differences: onnx-attn models build {folder}", style="red")
        raise typer.Exit(1)
    console.print(f"{len(CATALOGUE)} models in {folder} are what this version builds")


@contextmanager
def _progress(total: int) -> Generator[Callable[[str], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("models", total=total)
        yield lambda name: progress.update(bar, description=name, advance=1)

"""`onnx-attn inspect`: the contract of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from .app import command, console, write_json


@command(
    "inspect",
    "onnx-attn inspect attention.onnx",
    "onnx-attn inspect attention.onnx --json",
    "onnx-attn inspect model.keras",
)
def inspect(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A file of onnx-attn, or a saved Keras model.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    config: Annotated[
        Path | None, typer.Option(help="Model config for a .weights.h5 file.")
    ] = None,
) -> None:
    """Show what a file takes, gives and holds."""
    from ..file.inspection import describe_file
    from ..keras.files import is_keras_file

    if is_keras_file(file):
        from ..keras import describe_layers

        rows = describe_layers(file, config)
        if as_json:
            write_json(rows)
        else:
            _print_layers(file, rows)
        return
    facts = describe_file(file)
    if as_json:
        write_json(facts)
        return
    _print_contract(file, facts)


def _print_contract(file: Path, facts: dict[str, Any]) -> None:
    table = Table(
        Column("tensor", no_wrap=True),
        Column("dtype", no_wrap=True),
        "shape",
        Column("when left out", no_wrap=True),
        title=file.name,
    )
    for tensor in facts["inputs"]:
        shape = _shape(tensor["shape"])
        table.add_row(tensor["name"], tensor["dtype"], shape, tensor["when_left_out"])
    table.add_section()
    for tensor in facts["weights"]:
        value = tensor["value"]
        shown = f"= {value:.6g}" if isinstance(value, float) else f"= {len(value)} numbers"
        table.add_row(tensor["name"], tensor["dtype"], _shape(tensor["shape"]), shown)
    table.add_section()
    for tensor in facts["outputs"]:
        table.add_row(tensor["name"], tensor["dtype"], _shape(tensor["shape"]), "")
    console.print(table)
    if any(tensor["when_left_out"].endswith("*") for tensor in facts["inputs"]):
        console.print("* filled in by AttentionSession; other runtimes must feed it")
    config = ", ".join(f"{k}={v!r}" for k, v in facts["config"].items() if k != "layer")
    console.print(f"{facts['config']['layer']}({config})", highlight=False, markup=False)
    options = ", ".join(f"{k}={v!r}" for k, v in facts["export"].items())
    console.print(f"exported with {options}", highlight=False, markup=False)
    console.print(
        f"format {facts['format']}, opset {facts['opset']}, IR {facts['ir_version']}, "
        f"{facts['producer']}, {facts['bytes']:,} bytes",
        highlight=False,
    )
    console.print(f"graph: {facts['graph']}", highlight=False, markup=False)
    for difference in facts["differences"]:
        console.print(difference, highlight=False, markup=False)
    console.print(f"runs in: {facts['runs_in']}", highlight=False, markup=False)


def _shape(dims: list[str | int]) -> str:
    return f"\\[{', '.join(map(str, dims))}]"


def _print_layers(file: Path, rows: list[dict[str, Any]]) -> None:
    console.print(f"{file.name}: {len(rows)} attention layers", highlight=False, markup=False)
    for row in rows:
        arguments = {k: v for k, v in row["config"].items() if k != "name"}
        console.print()
        console.print(Text(row["layer"], "bold"))
        for line in (
            f"{row['class']}({_words(arguments)})",
            f"weights: {_words(row['weights']) or 'none'}",
            f"exported with: {_words(row['export_defaults']) or 'the defaults'}",
        ):
            console.print(Padding(Text(line), (0, 0, 0, 2)))


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"<{len(cast('list[float]', value))} numbers>"
    return f"{value:.6g}" if isinstance(value, float) else repr(value)

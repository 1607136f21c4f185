"""`onnx-attn run`: a file on arrays from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from ..arrays import Array
from ..errors import InputError
from ..session.session import AttentionSession
from .app import command, console
from .npz import read_npy, read_npz, write_npz


@command(
    "run",
    "onnx-attn run attention.onnx inputs.npz -o outputs.npz",
    "onnx-attn run attention.onnx --query q.npy --value v.npy --value-mask mask.npy -o out.npz",
    "onnx-attn run attention.onnx inputs.npz -o outputs.npz --plot scores.png",
)
def run(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="File to run.")],
    inputs: Annotated[
        Path | None,
        typer.Argument(metavar="INPUTS.npz", help="Arrays by the file's input names."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="OUT.npz", help="Write the outputs.")
    ] = None,
    query: Annotated[Path | None, typer.Option(metavar="Q.npy")] = None,
    value: Annotated[Path | None, typer.Option(metavar="V.npy")] = None,
    key: Annotated[Path | None, typer.Option(metavar="K.npy")] = None,
    query_mask: Annotated[Path | None, typer.Option(metavar="M.npy")] = None,
    value_mask: Annotated[Path | None, typer.Option(metavar="M.npy")] = None,
    bias: Annotated[Path | None, typer.Option(metavar="B.npy")] = None,
    scale: Annotated[
        str | None, typer.Option(help="A number or .npy, where the file takes it.")
    ] = None,
    concat_score_weight: Annotated[
        float | None, typer.Option(help="A number, where the file takes it.")
    ] = None,
    training: Annotated[
        bool | None, typer.Option("--training/--no-training", help="Where the file takes it.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="HEATMAP.png", help="Draw the first attention_scores."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
) -> None:
    """Run an attention file on arrays and show what came out.

    Arrays must have the file's dtype: nothing is cast.
    """
    if plot is not None:
        from ..plot import require_matplotlib

        require_matplotlib("--plot")
    session = AttentionSession(file, device=device)
    feeds: dict[str, Any] = {} if inputs is None else dict(read_npz(inputs))
    arrays = {
        "query": query,
        "value": value,
        "key": key,
        "query_mask": query_mask,
        "value_mask": value_mask,
        "bias": bias,
    }
    feeds.update({name: read_npy(path) for name, path in arrays.items() if path is not None})
    if scale is not None:
        feeds["scale"] = _number(scale)
    if concat_score_weight is not None:
        feeds["concat_score_weight"] = concat_score_weight
    if training is not None:
        feeds["training"] = training
    if plot is not None and "attention_scores" not in session.outputs:
        raise InputError(
            f"--plot draws attention_scores, and {file} does not return them: export it with "
            "--scores"
        )
    results = session.run(feeds)
    if out is not None:
        write_npz(out, results)
    console.print(_summary(feeds, results, f"{file.name} on {session.device}"))
    if out is not None:
        console.print(f"[green]wrote[/green] {out}", highlight=False)
    if plot is not None:
        from ..plot import save_heatmap

        scores = results["attention_scores"]
        if not scores.size:
            raise InputError("--plot: attention_scores is empty, there is nothing to draw")
        first = scores.reshape(-1, *scores.shape[-2:])[0]
        save_heatmap(first.astype(np.float32), plot)
        console.print(f"[green]wrote[/green] {plot}", highlight=False)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return read_npy(Path(text))


def _summary(feeds: dict[str, Any], results: dict[str, Array], title: str) -> Table:
    table = Table("tensor", "dtype", "shape", "min", "mean", "max", title=title)
    for name, array in feeds.items():
        _row(table, name, np.asarray(array))
    table.add_section()
    for name, array in results.items():
        _row(table, f"[bold]{name}[/bold]", array)
    return table


def _row(table: Table, name: str, array: Array) -> None:
    numbers = array.astype(np.float64)
    stats = (
        [f"{s:.4g}" for s in (numbers.min(), numbers.mean(), numbers.max())] if array.size else []
    )
    shape = " x ".join(map(str, array.shape)) or "scalar"
    table.add_row(name, array.dtype.name, shape, *stats)

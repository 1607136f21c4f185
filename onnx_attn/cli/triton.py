"""`onnx-attn triton`: a file as a model of NVIDIA Triton."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import command, console


@command(
    "triton",
    "onnx-attn triton attention.onnx --out models",
    "onnx-attn triton attention.onnx --out models --name attention --instances 2 --threads 1",
    "onnx-attn triton attention.onnx --out models --max-batch-size 32",
)
def triton(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="File to serve.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="REPOSITORY", help="Triton's model repository."),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the model; the file's if not given.")
    ] = None,
    instances: Annotated[int, typer.Option(help="Sessions that answer at the same time.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads inside an operator, each instance.")] = 1,
    max_batch_size: Annotated[
        int,
        typer.Option(
            help="Most rows that the server joins from requests of equal shapes; 0: it joins "
            "nothing, a request brings its own batch."
        ),
    ] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Write REPOSITORY/NAME/config.pbtxt and 1/model.onnx for NVIDIA Triton or KServe."""
    from ..triton import write_repository

    served = write_repository(
        file,
        out,
        name,
        instances=instances,
        threads=threads,
        max_batch_size=max_batch_size,
        device=device,
    )
    folder = out / served.name
    console.print(f"[green]wrote[/green] {folder}/config.pbtxt and 1/model.onnx", highlight=False)
    for note in served.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)

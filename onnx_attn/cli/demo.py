"""`onnx-attn demo`: attention between the words of two sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..demo.show import run_demo
from .app import command, console


@command("demo", "onnx-attn demo", "onnx-attn demo --directory out")
def demo(
    directory: Annotated[
        Path, typer.Option(help="Where the .onnx, .npz and .png files go.")
    ] = Path(),
) -> None:
    """Export the layer, run it on real word embeddings, show who looks at whom."""
    run_demo(directory, console)

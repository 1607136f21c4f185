"""What a tool is given, what it makes, and how that is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]
Run = Callable[[Path, Sequence[Arrays]], list[list[Array]]]


@dataclass(frozen=True)
class Call:
    """Inputs by name and the outputs (float64) that the reference computes from them."""

    feeds: Arrays
    wanted: tuple[Array, ...]


@dataclass(frozen=True)
class Case:
    """One exported file and its calls: the first small and of fixed sizes, the second long."""

    name: str
    path: Path
    causal: bool
    sizes: Mapping[str, int]
    calls: tuple[Call, ...]

    def load(self) -> onnx.ModelProto:
        """The file, read anew."""
        return onnx.load(self.path)


def run_onnxruntime(path: Path, feeds: Sequence[Arrays]) -> list[list[Array]]:
    """Outputs of each call in plain ONNX Runtime, floats cast to the type the file asks for."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    halves = {spec.name for spec in session.get_inputs() if spec.type == "tensor(float16)"}
    return [
        cast(
            "list[Array]",
            session.run(
                None,
                {
                    name: array.astype(np.float16) if name in halves else array
                    for name, array in feed.items()
                },
            ),
        )
        for feed in feeds
    ]


@dataclass(frozen=True)
class Product:
    """What a tool made: a model or its file, the calls it must answer, and what runs it."""

    model: onnx.ModelProto | Path
    calls: tuple[Call, ...]
    run: Run = run_onnxruntime

    def path(self, folder: Path) -> Path:
        """The file to run, written to `folder` if the tool gave a model."""
        if isinstance(self.model, Path):
            return self.model
        made = folder / "made.onnx"
        onnx.save(self.model, made)
        return made


Apply = Callable[[Case, Path], Product]


@dataclass(frozen=True)
class Tool:
    """A tool: `apply` turns a case into a product, in a scratch folder.

    `apply` goes to a child process by name: a function of a module, or a partial of one.
    A result further than `tolerance` from the reference (absolute) is a "no".
    `needs` are the modules of the extra `tools` that it imports.
    """

    name: str
    apply: Apply
    tolerance: float = 1e-5
    needs: tuple[str, ...] = ()

"""The facts of a file, as `onnx-attn inspect` shows them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx

from ..configuration import FORMAT, contract
from ..errors import ModelError
from .export import read_model

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ZIP_MAGIC = b"PK\x03\x04"

EVERYWHERE = "any runtime with opset {opset}"
OVERRIDABLE = (
    "ONNX Runtime in C, C++, C#, Python, Rust, Go. Left-out inputs are overridable initializers: "
    "Node ignores an override, web and Java refuse it, OpenVINO freezes the default"
)


def is_keras_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a zip or HDF5, as saved Keras models are.

    Raises ModelError if it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise ModelError(f"{os.fspath(path)} cannot be read: {error.strerror or error}") from error
    return start == HDF5_MAGIC or start.startswith(ZIP_MAGIC)


def describe_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Inputs, outputs, weights, configuration and versions of a file that onnx_attn wrote.

    Everything in it is JSON. Raises ModelError as `Attention.load` does.
    """
    config, options, weights = read_model(path)
    model = onnx.load(path)
    tensors = contract(config, options)
    inputs = [
        {
            "name": spec.name,
            "dtype": spec.dtype,
            "shape": list(spec.dims),
            "optional": spec.optional,
            "when_left_out": _when_left_out(spec.name, spec.optional),
        }
        for spec in tensors.inputs.values()
    ]
    some_optional = any(spec.optional for spec in tensors.inputs.values())
    return {
        "file": os.fspath(path),
        "format": FORMAT,
        "inputs": inputs,
        "outputs": [
            {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.dims)}
            for spec in tensors.outputs.values()
        ],
        "weights": [
            {
                "name": name,
                "dtype": weight.dtype.name,
                "shape": list(weight.shape),
                "value": weight.astype(float).tolist(),
            }
            for name, weight in weights.items()
        ],
        "config": dict(vars(config)),
        "export": dict(vars(options)),
        "opset": options.opset,
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}",
        "bytes": Path(path).stat().st_size,
        "runs_in": OVERRIDABLE if some_optional else EVERYWHERE.format(opset=options.opset),
    }


def _when_left_out(name: str, optional: bool) -> str:
    default = {
        "key": "value",
        "query_mask": "no mask",
        "value_mask": "no mask",
        "scale": "the trained value",
        "concat_score_weight": "the trained value",
        "training": "False",
    }.get(name)
    if default is None:
        return "error"
    return default if optional else f"{default}*"

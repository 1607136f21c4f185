"""The facts of a file, as `onnx-attn inspect` shows them."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator
from typing import Any

import onnx

from .description import Found, as_found, when_left_out, where_it_runs
from .export import find_model, graph_weights
from .metadata import FORMAT

STATES = {
    True: "as exported",
    False: "changed by another tool since",
    None: "unknown: written before files had a digest",
}


def describe_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Inputs, outputs, weights, configuration and versions of a file that onnx_attn wrote.

    Everything in it is JSON. `graph` says whether the graph is the exported one; where it is not,
    `differences` lists what is not as the metadata promises.

    Raises ModelError if the file is missing, no ONNX file, not ours, newer or damaged.
    """
    found = find_model(path)
    said, graph = found.said, found.proto.graph
    weights = {**said.weights, **graph_weights(found)}
    defaults = {tensor.name for tensor in graph.initializer}
    takes = _tensors(graph.input, defaults)
    inputs, wrong = as_found(said.contract.inputs, takes, "input")
    outputs, wrong_outputs = as_found(said.contract.outputs, _tensors(graph.output, ()), "output")
    return {
        "file": os.fspath(path),
        "format": FORMAT,
        "graph": STATES[found.as_exported],
        "differences": [f"the metadata promises {line}" for line in wrong + wrong_outputs],
        "inputs": [
            {
                "name": spec.name,
                "dtype": spec.dtype,
                "shape": list(spec.dims),
                "optional": spec.optional,
                "when_left_out": when_left_out(spec),
            }
            for spec in inputs.values()
        ],
        "outputs": [
            {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.dims)}
            for spec in outputs.values()
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
        "config": dict(vars(said.config)),
        "export": dict(vars(said.options)),
        "opset": opset_of(found.proto),
        "ir_version": found.proto.ir_version,
        "producer": f"{found.proto.producer_name} {found.proto.producer_version}",
        "bytes": len(found.data),
        "runs_in": where_it_runs(said),
    }


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model imports; 0 where it imports none."""
    versions = (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return next(versions, 0)


def operators(graph: onnx.GraphProto) -> Iterator[str]:
    """The operators of a graph and its subgraphs, those that are not ONNX's as domain.Name."""
    for node in graph.node:
        yield (
            f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        )
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from operators(attribute.g)


def _tensors(entries: Iterable[onnx.ValueInfoProto], optional: Container[str]) -> dict[str, Found]:
    found: dict[str, Found] = {}
    for entry in entries:
        tensor = entry.type.tensor_type
        dims = tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in tensor.shape.dim
        )
        dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        names = {"float": "float32", "double": "float64"}
        found[entry.name] = Found(names.get(dtype, dtype), dims, entry.name not in optional)
    return found

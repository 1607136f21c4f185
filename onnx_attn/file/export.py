"""Layer to file and back: the model proto with its texts and metadata, written atomically."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from ..configuration import (
    Contract,
    ExportOptions,
    LayerConfig,
    contract,
    numpy_dtype,
    read_metadata,
    write_metadata,
)
from ..errors import InputError, ModelError
from ..graph.model import build_model
from ..version import __version__
from .disk import read_file, write_file

Weights = Mapping[str, np.ndarray[Any, Any]]


def make_model(config: LayerConfig, options: ExportOptions, weights: Weights) -> onnx.ModelProto:
    """The ONNX model of a layer: flat, self-describing, the same bytes for the same arguments.

    Raises InputError where `options` contradict `config`.
    """
    options.check_against(config)
    for name, weight in weights.items():
        sizes = [options.dims.get("dim", size) if options.dims else size for size in weight.shape]
        if list(weight.shape) != sizes:
            raise InputError(
                f"dims: dim={sizes[0]}, but the layer's {name} has length {weight.shape[0]}"
            )
    model = ir.to_proto(build_model(config, options, weights))
    # Tools that edit the graph would have to keep inferred types in step: leave them out.
    del model.graph.value_info[:]
    model.producer_name = "onnx_attn"
    model.producer_version = __version__
    model.doc_string = model.graph.doc_string = describe(config, options)
    plain_inputs = {
        name: weight
        for name, weight in weights.items()
        if options.scale == "input" and options.inputs == "required"
    }
    for name, text in sorted(write_metadata(config, options, plain_inputs).items()):
        model.metadata_props.add(key=name, value=text)
    return model


def describe(config: LayerConfig, options: ExportOptions) -> str:
    """The file's contract for a human who opens it in a viewer."""
    specs: Contract = contract(config, options)
    words = [f"tf.keras.layers.{config.layer} as written by onnx_attn {__version__}."]
    if config.layer == "AdditiveAttention":
        words.append("scores = sum_d scale_d * tanh(query + key)")
    elif config.score_mode == "concat":
        words.append("scores = concat_score_weight * sum_d tanh(scale * (query + key))")
    else:
        words.append(f"scores = {'scale * ' if config.use_scale else ''}query @ key^T")
    rules = ["value_mask"] if "value_mask" in specs.inputs else []
    rules += ["causal (key j <= query i)"] if config.causal else []
    if rules:
        words.append(f"where not ({' and '.join(rules)}): score - 1e9, once")
    words.append("weights = softmax(scores) over the keys; output = weights @ value")
    if "query_mask" in specs.inputs:
        words.append("where query_mask is False the output row is 0")
    if options.training:
        words.append(f"training = True drops weights at rate {config.dropout:g}")
    if not options.key:
        words.append("value is also the key")
    if config.floats.compute != config.floats.tensor:
        words.append(f"computed in {config.floats.compute}")
    if options.needs_onnxruntime:
        words.append("needs ONNX Runtime, for its operator com.microsoft.MultiHeadAttention")
    words.append("inputs: " + "; ".join(str(spec) for spec in specs.inputs.values()))
    words.append("outputs: " + "; ".join(str(spec) for spec in specs.outputs.values()))
    if {"query_mask", "value_mask"} & set(specs.inputs):
        words.append(
            "a mask is [batch or 1, length or 1], True where a position counts; "
            "[[True]] means no mask"
        )
    if options.inputs == "optional" and any(spec.optional for spec in specs.inputs.values()):
        names = ", ".join(spec.name for spec in specs.inputs.values() if spec.optional)
        words.append(
            f"{names} may be left out where the binding knows overridable initializers: "
            "C, C++, C#, Python, Rust, Go; not Node, web, Java, OpenVINO, Triton"
        )
    return "\n".join(words)


def write_model(model: onnx.ModelProto, path: str | os.PathLike[str]) -> Path:
    """Write `model` to `path`, whole or not at all; returns the path.

    Raises ModelError if it cannot be written.
    """
    return write_file(path, model.SerializeToString(deterministic=True))


class SavedLayer(NamedTuple):
    """What a file of ours holds."""

    config: LayerConfig
    options: ExportOptions
    weights: dict[str, np.ndarray[Any, Any]]


def read_model(path: str | os.PathLike[str]) -> SavedLayer:
    """Configuration, export options and weights of a file that this package wrote.

    Raises ModelError if `path` is missing, is no ONNX file, is not ours, is newer or damaged.
    """
    data, where = read_file(path), os.fspath(path)
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError(f"{where} is not an ONNX file, or is cut short") from error
    properties = {entry.key: entry.value for entry in model.metadata_props}
    config, options, weights = read_metadata(properties, where)
    dtype = numpy_dtype(config.floats.weight)
    for tensor in model.graph.initializer:
        if tensor.name in config.weight_names:
            weight = onnx.numpy_helper.to_array(tensor)
            if weight.dtype != dtype or weight.ndim != len(config.weight_dims(tensor.name)):
                raise ModelError(
                    f"{where} is damaged: weight {tensor.name} is "
                    f"{weight.dtype}{list(weight.shape)}"
                )
            weights[tensor.name] = weight
    missing = [name for name in config.weight_names if name not in weights]
    if missing:
        raise ModelError(f"{where} is damaged: it holds no weight {', '.join(missing)}")
    return SavedLayer(config, options, weights)

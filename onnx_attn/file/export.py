"""Layer to file and back: the model proto with its texts and metadata, and what one holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from ..arrays import Array
from ..contract import LayerFile
from ..errors import InputError, ModelError
from ..graph.model import build_model
from ..version import __version__
from .description import describe
from .disk import read_file, write_file
from .metadata import DIGEST_KEY, read_metadata, write_metadata
from .protobuf import graph_digest, metadata_of, refuse_external_files


def make_model(file: LayerFile) -> onnx.ModelProto:
    """The ONNX model of a layer: flat, self-describing, the same bytes for the same arguments.

    Raises InputError where a weight is missing.
    """
    missing = [name for name in file.config.weight_names if name not in file.weights]
    if missing:
        raise InputError(f"{', '.join(missing)}: a file needs the layer's weights")
    model = ir.to_proto(build_model(file))
    # Tools that edit the graph would have to keep inferred types in step: leave them out.
    del model.graph.value_info[:]
    model.producer_name = "onnx_attn"
    model.producer_version = __version__
    model.doc_string = model.graph.doc_string = describe(file)
    metadata = write_metadata(file)
    metadata[DIGEST_KEY] = graph_digest(model.SerializeToString(deterministic=True), "the model")
    for name, text in sorted(metadata.items()):
        model.metadata_props.add(key=name, value=text)
    return model


def write_model(model: onnx.ModelProto, path: str | os.PathLike[str]) -> Path:
    """Write `model` to `path`, whole or not at all; returns the path.

    Raises ModelError if it cannot be written.
    """
    return write_file(path, model.SerializeToString(deterministic=True))


class FoundModel(NamedTuple):
    """A file of ours as it lies on disk.

    `said` is what its metadata says: the weights of the graph are not in it. `as_exported` is
    whether the graph is the exported one, None where an older version wrote no digest.
    """

    data: bytes
    proto: onnx.ModelProto
    said: LayerFile
    as_exported: bool | None


def find_model(path: str | os.PathLike[str]) -> FoundModel:
    """The file at `path`, its metadata read and its graph compared with its digest.

    Raises ModelError if `path` is missing, is no ONNX file, is not ours, is newer or damaged.
    """
    data, where = read_file(path, "Write it with Attention(...).export(path)"), os.fspath(path)
    properties = metadata_of(data, where)
    said = read_metadata(properties, where)
    refuse_external_files(data, where)
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError(f"{where} is not an ONNX file, or is cut short or damaged") from error
    written = properties.get(DIGEST_KEY)
    same = None if written is None else written == graph_digest(data, where)
    return FoundModel(data, proto, said, same)


def read_model(path: str | os.PathLike[str]) -> LayerFile:
    """Configuration, export options and weights of a file that this package wrote.

    Raises ModelError as `find_model`, and if the graph is not the exported one.
    """
    found, where = find_model(path), os.fspath(path)
    if found.as_exported is False:
        raise ModelError(
            f"{where} was changed by another tool since its export (its graph has not the digest "
            "in its metadata), so its layer would be a guess. Load the file as it was exported; "
            "AttentionSession runs this one"
        )
    config, options = found.said.config, found.said.options
    weights = {**found.said.weights, **graph_weights(found)}
    missing = [name for name in config.weight_names if name not in weights]
    if missing:
        raise ModelError(
            f"{where} holds no weight {', '.join(missing)}: it is damaged, or another tool "
            "changed it. Export it again"
        )
    try:
        return LayerFile(config, options, weights)
    except InputError as error:
        raise ModelError(
            f"{where} is damaged, or another tool changed it. Its weight {error}"
        ) from error


def graph_weights(found: FoundModel) -> dict[str, Array]:
    """The layer's weights that the graph holds as initializers, by name."""
    names = found.said.config.weight_names
    return {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in found.proto.graph.initializer
        if tensor.name in names
    }

"""Whole models without their weights: small enough to keep, the same each time they are drawn."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from ...arrays import Array

# Shorter tensors, and those with infinities or penalties of masks in them, are kept.
LONGEST_KEPT = 16
LARGEST_WEIGHT = 1e3


def pack(model: onnx.ModelProto, path: Path) -> None:
    """Write a model without its float32 weights: of each its shape, mean and spread are left."""
    source, model = model, onnx.ModelProto()
    model.CopyFrom(source)
    for tensor in model.graph.initializer:
        tensor.doc_string = ""
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        weights: Array = numpy_helper.to_array(tensor)
        if weights.size > LONGEST_KEPT and np.abs(weights).max() < LARGEST_WEIGHT:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
            tensor.doc_string = f"{weights.mean():.6g} {weights.std():.6g}"
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in model.graph.value_info:
        del value.metadata_props[:]
    # mtime=0: the same bytes each time.
    path.write_bytes(gzip.compress(model.SerializeToString(), 9, mtime=0))


def draw(path: Path) -> onnx.ModelProto:
    """The model that `pack` wrote, its weights normally distributed about their means."""
    model = onnx.ModelProto.FromString(gzip.decompress(path.read_bytes()))
    for tensor in model.graph.initializer:
        if tensor.doc_string:
            mean, spread = (float(word) for word in tensor.doc_string.split())
            random = np.random.default_rng(zlib.crc32(tensor.name.encode()))
            drawn = random.standard_normal(list(tensor.dims), np.float32)
            tensor.raw_data = (mean + spread * drawn).astype(np.float32).tobytes()
            tensor.doc_string = ""
    return model

"""What a file says of itself: the metadata_props with which layer and file can be made again.

Format 1: `onnx_attn.config` and `onnx_attn.export` are JSON objects with the fields of LayerConfig
and ExportOptions. Options that came later are written only where they are used and read as unused
where they are missing, so that old files load here and plain new ones load in older versions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, cast

import numpy as np

from ..arrays import Array
from ..configuration import ExportOptions, LayerConfig, numpy_dtype
from ..contract import LayerFile
from ..errors import ModelError

FORMAT = 1
FORMAT_KEY = "onnx_attn.format"
CONFIG_KEY = "onnx_attn.config"
RUNTIME_KEY = "onnx_attn.runtime"
EXPORT_KEY = "onnx_attn.export"
WEIGHTS_KEY = "onnx_attn.weights"
DIGEST_KEY = "onnx_attn.digest"
METADATA_DIGEST_KEY = "onnx_attn.metadata_digest"

# The fields that every file of format 1 states.
FIRST_FIELDS: dict[type[LayerConfig] | type[ExportOptions], list[str]] = {
    LayerConfig: ["layer", "use_scale", "score_mode", "causal", "dropout", "seed", "dtype", "name"],
    ExportOptions: [
        *("key", "masks", "inputs", "scale", "return_attention_scores"),
        *("training", "schedule", "opset", "dims"),
    ],
}


def write_metadata(file: LayerFile) -> dict[str, str]:
    """The metadata_props of a file, but for the digest of its graph.

    Weights that the graph takes as plain inputs are kept here: it has no initializer for them.
    """
    options = file.options
    metadata = {
        FORMAT_KEY: str(FORMAT),
        CONFIG_KEY: _json_of(file.config),
        EXPORT_KEY: _json_of(options),
    }
    if options.needs_onnxruntime:
        metadata[RUNTIME_KEY] = f"onnxruntime, computes in {file.config.floats.compute}"
    if file.weights and options.scale == "input" and options.inputs == "required":
        numbers = {name: _in_json(weight) for name, weight in file.weights.items()}
        metadata[WEIGHTS_KEY] = json.dumps(numbers, sort_keys=True, allow_nan=False)
    metadata[METADATA_DIGEST_KEY] = _digest(metadata)
    return metadata


def read_metadata(properties: Mapping[str, str], where: str) -> LayerFile:
    """Configuration, export options and input weights from a file's metadata_props.

    Raises ModelError, naming `where`, if the file is not ours, is newer, or is damaged, or if its
    metadata is not what was written.
    """
    if FORMAT_KEY not in properties:
        raise ModelError(
            f"{where} is an ONNX file, but not one that onnx_attn wrote: it has no metadata "
            f"'{FORMAT_KEY}'. Export one with Attention(...).export(path)"
        )
    written = properties[FORMAT_KEY]
    if written != str(FORMAT):
        if written.isascii() and written.isdigit() and int(written) > FORMAT:
            raise ModelError(
                f"{where} has format {written}; this onnx_attn reads format {FORMAT}. "
                "Update onnx_attn, or export the file again with this version"
            )
        raise ModelError(f"{where} is damaged: metadata '{FORMAT_KEY}' is {written!r}")
    # Files of before the digests have none.
    if properties.get(METADATA_DIGEST_KEY, wanted := _digest(properties)) != wanted:
        raise ModelError(
            f"{where}: its onnx_attn metadata was changed since the export, and may say what its "
            "graph does not do. Export it again"
        )
    try:
        config = LayerConfig(**_fields(LayerConfig, properties[CONFIG_KEY], where))
        options = ExportOptions(**_fields(ExportOptions, properties[EXPORT_KEY], where))
        weights = _weights(config, properties.get(WEIGHTS_KEY, "{}"))
        return LayerFile(config, options, weights)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{where} is damaged: its onnx_attn metadata cannot be read") from error


def _digest(properties: Mapping[str, str]) -> str:
    stated = {
        key: text
        for key, text in properties.items()
        if key in (FORMAT_KEY, CONFIG_KEY, EXPORT_KEY, RUNTIME_KEY, WEIGHTS_KEY)
    }
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


def _json_of(stated: LayerConfig | ExportOptions) -> str:
    unused = {f.name for f in fields(stated) if getattr(stated, f.name) == f.default}
    first = FIRST_FIELDS[type(stated)]
    values = {
        name: value for name, value in asdict(stated).items() if name in first or name not in unused
    }
    return json.dumps(values, sort_keys=True)


def _fields(kind: type[LayerConfig] | type[ExportOptions], text: str, where: str) -> dict[str, Any]:
    values = json.loads(text)
    if not isinstance(values, dict):
        raise TypeError(f"expected a JSON object; found {values!r}")
    stated = cast("dict[str, Any]", values)
    unknown = sorted(stated.keys() - {f.name for f in fields(kind)})
    if unknown:
        raise ModelError(
            f"{where} uses {', '.join(map(repr, unknown))}, which this onnx_attn does not know: a "
            "newer version wrote it. Update onnx_attn, or export the file again with this version"
        )
    return {name: stated[name] for name in dict.fromkeys((*FIRST_FIELDS[kind], *stated))}


def _in_json(weight: Array) -> Any:
    """A weight as a number or a list; JSON has no number that is not finite: "NaN", "Infinity"."""
    exact = weight.astype(np.float64)
    named = np.where(np.isnan(exact), "NaN", np.where(exact > 0, "Infinity", "-Infinity"))
    return np.where(np.isfinite(exact), exact.astype(object), named).tolist()


def _weights(config: LayerConfig, text: str) -> dict[str, Array]:
    values = cast("dict[str, Any]", json.loads(text))
    dtype = numpy_dtype(config.floats.weight)
    return {name: np.array(value, np.float64).astype(dtype) for name, value in values.items()}

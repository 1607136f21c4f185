"""The catalogue `models/`: files that people deploy, and the inputs that test each of them.

Inputs come from raw 64-bit draws of PCG64, a stream NumPy promises never to change, and are
multiples of 1/1024 that every float type here holds exactly: the same bytes on every machine.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx

from ..arrays import Array
from ..configuration import ExportOptions, LayerConfig, numpy_dtype, with_options
from ..contract import LayerFile, TensorSpec
from ..file.export import make_model
from ..reference import attention
from ..verify.vectors import TOLERANCES, Tolerance

Mask = Literal["open", "tails", "front", "hidden"]

DIM, VALUE_DIM = 16, 12
# float32 near -1e9 keeps multiples of 64: only scores beyond that leave a mark in a row whose
# keys are all masked. Sums of 16 products of integers up to 8 reach several hundred, exactly.
LARGE_INTEGER = 8


@dataclass(frozen=True)
class Case:
    """The inputs of one test_data_set_K.

    Masks: "open" is [[True]], no mask; "tails" cuts each batch row's end; "front" pads each row's
    front; "hidden" hides the whole first row and the tails of the others.
    """

    what: str
    batch: int
    Tq: int
    Tv: int
    query_mask: Mask = "open"
    value_mask: Mask = "open"
    dim: int = DIM
    value_dim: int = VALUE_DIM
    large: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class Entry:
    """One model: a layer's configuration, its weights, the export options, and its cases."""

    name: str
    what: str
    config: LayerConfig
    cases: tuple[Case, ...]
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    weights: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict[str, float])

    @property
    def export_options(self) -> ExportOptions:
        """The options of the export, defaults included."""
        return with_options(ExportOptions(), self.options)

    @property
    def weight_arrays(self) -> dict[str, Array]:
        """The weights in the type the file keeps them in."""
        dtype = numpy_dtype(self.config.floats.weight)
        return {name: np.array(weight, dtype) for name, weight in self.weights.items()}

    @property
    def file(self) -> LayerFile:
        """Configuration, options and weights."""
        return LayerFile(self.config, self.export_options, self.weight_arrays)

    @property
    def inputs(self) -> dict[str, TensorSpec]:
        """The file's inputs, in order, by name."""
        return self.file.contract.inputs

    @property
    def outputs(self) -> dict[str, TensorSpec]:
        """The file's outputs, in order, by name."""
        return self.file.contract.outputs

    @property
    def tolerance(self) -> Tolerance:
        """How far a runtime's numbers may lie from the expected ones."""
        return TOLERANCES[self.config.floats.tensor]

    def model(self) -> onnx.ModelProto:
        """The ONNX model."""
        return make_model(self.file)


ONE = Case("length 1", 1, 1, 1)
PLAIN = (
    Case("ordinary", 2, 8, 8),
    Case("Tq < Tv", 2, 5, 9),
    Case("Tq > Tv, one key", 3, 4, 1),
    ONE,
)
CAUSAL = (
    Case("ordinary", 2, 8, 8),
    Case("Tq < Tv", 2, 5, 9),
    Case("Tq > Tv", 2, 9, 5),
    ONE,
    Case("long enough for blocks", 1, 1024, 1024, dim=12, value_dim=3),
)
TAILS = Case("padded tails", 2, 8, 8, "tails", "tails")
NO_MASK = Case("no mask: [[True]], Tq < Tv", 2, 5, 9)
HIDDEN = Case("rows without any key", 3, 8, 8, "front", "hidden")
HIDDEN_LARGE = Case(
    "rows without any key, scores in the hundreds", 3, 8, 8, "open", "hidden", large=True
)
FRONT = Case("front padding: with causal the first rows have no key", 3, 8, 8, "front", "front")
FRONT_LARGE = Case("front padding, scores in the hundreds", 3, 9, 7, "tails", "front", large=True)
ONE_HIDDEN = Case("length 1, its key masked", 1, 1, 1, "open", "hidden")
MASKED = (
    TAILS,
    HIDDEN,
    HIDDEN_LARGE,
    NO_MASK,
    ONE_HIDDEN,
    Case("long and ragged", 2, 768, 256, "open", "tails", dim=8, value_dim=3),
)
CAUSAL_MASKED = (TAILS, FRONT, FRONT_LARGE, NO_MASK, ONE_HIDDEN)


def _scaled(cases: tuple[Case, ...], *scales: float) -> tuple[Case, ...]:
    return tuple(replace(case, scale=scale) for case, scale in zip(cases, scales, strict=True))


def _dims(cases: tuple[Case, ...], dim: int, value_dim: int) -> tuple[Case, ...]:
    return tuple(replace(case, dim=dim, value_dim=value_dim) for case in cases)


# The scale AdditiveAttention has learned: one number per feature.
ADDITIVE_SCALE = (0.75, -0.5, 0.25, 1.0, -0.125, 0.5, 0.875, -0.25)

CATALOGUE = (
    Entry(
        "plain",
        "softmax(query @ key^T) @ value, without masks",
        LayerConfig(),
        PLAIN,
        {"masks": "none"},
    ),
    Entry(
        "plain_dense",
        "as plain, dense schedule: for tools beside ONNX Runtime",
        LayerConfig(),
        PLAIN,
        {"masks": "none", "schedule": "dense"},
    ),
    Entry(
        "scaled",
        "a trained scale of 0.125 in the file",
        LayerConfig(use_scale=True),
        PLAIN,
        {"masks": "none"},
        {"scale": 0.125},
    ),
    Entry(
        "causal", "position i sees keys 0 to i", LayerConfig(causal=True), CAUSAL, {"masks": "none"}
    ),
    Entry("masked", "masks of padded queries and values", LayerConfig(), MASKED),
    Entry(
        "causal_masked_scores",
        "causal, masks, and the attention scores as an output",
        LayerConfig(causal=True),
        CAUSAL_MASKED,
        {"return_attention_scores": True},
    ),
    Entry(
        "causal_masked_dense",
        "as causal_masked_scores, dense schedule: for tools beside ONNX Runtime",
        LayerConfig(causal=True),
        CAUSAL_MASKED,
        {"return_attention_scores": True, "schedule": "dense"},
    ),
    Entry(
        "scale_input",
        "the scale as an input, masks, scores",
        LayerConfig(use_scale=True),
        _scaled((TAILS, HIDDEN, NO_MASK), 0.5, -2.0, 0.0),
        {"scale": "input", "return_attention_scores": True},
        {"scale": 1.0},
    ),
    Entry(
        "causal_scale_input",
        "as scale_input, causal",
        LayerConfig(use_scale=True, causal=True),
        _scaled((TAILS, FRONT, NO_MASK), 0.5, -2.0, 0.0),
        {"scale": "input", "return_attention_scores": True},
        {"scale": 1.0},
    ),
    Entry(
        "no_key",
        "two inputs: value is also the key",
        LayerConfig(),
        _dims((TAILS, HIDDEN, NO_MASK), DIM, DIM),
        {"key": False},
    ),
    Entry(
        "optional_inputs",
        "masks and scale may be left out, where the binding allows it",
        LayerConfig(use_scale=True, causal=True),
        _scaled((TAILS, FRONT, NO_MASK), 0.25, 2.0, 0.5),
        {"inputs": "optional", "scale": "input"},
        {"scale": 0.25},
    ),
    Entry(
        "float16",
        "float16 tensors, computed in float32",
        LayerConfig(use_scale=True, causal=True, dtype="float16"),
        CAUSAL_MASKED,
        {},
        {"scale": 0.25},
    ),
    Entry(
        "float64",
        "float64 throughout",
        LayerConfig(use_scale=True, causal=True, dtype="float64"),
        CAUSAL_MASKED,
        {},
        {"scale": 0.25},
    ),
    Entry(
        "training",
        "drops attention weights at rate 0.25 while the input training is True",
        LayerConfig(dropout=0.25),
        (TAILS, HIDDEN, NO_MASK),
        {"training": True, "return_attention_scores": True},
    ),
    Entry(
        "concat",
        'score_mode="concat"',
        LayerConfig(use_scale=True, score_mode="concat"),
        (TAILS, HIDDEN, NO_MASK),
        {"return_attention_scores": True},
        {"scale": 0.75, "concat_score_weight": 0.5},
    ),
    Entry(
        "additive",
        "AdditiveAttention, a trained scale of 8 numbers",
        LayerConfig("AdditiveAttention", use_scale=True, causal=True),
        _dims((TAILS, FRONT, NO_MASK), len(ADDITIVE_SCALE), VALUE_DIM),
        {"return_attention_scores": True},
        {"scale": ADDITIVE_SCALE},
    ),
)


def case_inputs(entry: Entry, number: int) -> dict[str, Array]:
    """What set `number` of `entry` feeds: every input of the file, in its order."""
    case = entry.cases[number]
    draw = np.random.PCG64([zlib.crc32(entry.name.encode()), number]).random_raw

    def numbers(*shape: int) -> Array:
        raw = draw(int(np.prod(shape))).reshape(shape)
        if case.large:
            return (raw % (2 * LARGE_INTEGER + 1)).astype(np.float64) - LARGE_INTEGER
        return (raw % 4097).astype(np.float64) / 1024 - 2

    # Always drawn: leaving key out of a file must not move the numbers of its value.
    query = numbers(case.batch, case.Tq, case.dim)
    value = numbers(case.batch, case.Tv, case.value_dim)
    key = numbers(case.batch, case.Tv, case.dim)
    arrays = {
        "query": query,
        "value": value,
        "key": key,
        "query_mask": make_mask(case.query_mask, case.batch, case.Tq),
        "value_mask": make_mask(case.value_mask, case.batch, case.Tv),
        "scale": np.array(case.scale),
        "training": np.array(False),
    }
    return {
        name: np.ascontiguousarray(arrays[name], numpy_dtype(spec.dtype)).reshape(
            arrays[name].shape
        )
        for name, spec in entry.inputs.items()
    }


def make_mask(kind: Mask, batch: int, length: int) -> Array:
    """bool[batch, length], or [[True]] for "open"."""
    if kind == "open":
        return np.ones((1, 1), np.bool_)
    row, position = np.arange(batch)[:, None], np.arange(length)[None, :]
    tails = position < length - row * length // (batch + 1)
    if kind == "tails":
        return tails
    if kind == "hidden":
        return tails & (row > 0)
    return position >= (row + 1) * length // (batch + 1)


def expected_outputs(entry: Entry, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What `inputs` must give, computed in float64 and rounded to the file's type."""
    weights = {**entry.weight_arrays, **{k: inputs[k] for k in entry.weights if k in inputs}}
    additive = entry.config.layer == "AdditiveAttention"
    output, scores = attention(
        inputs["query"],
        inputs["value"],
        inputs.get("key"),
        query_mask=inputs.get("query_mask"),
        value_mask=inputs.get("value_mask"),
        score_mode="additive" if additive else entry.config.score_mode,
        scale=weights.get("scale"),
        concat_score_weight=weights.get("concat_score_weight", 1.0),
        causal=entry.config.causal,
        compute=entry.config.floats.compute,
    )
    arrays = {"output": output, "attention_scores": scores}
    return {
        name: arrays[name].astype(numpy_dtype(spec.dtype)) for name, spec in entry.outputs.items()
    }

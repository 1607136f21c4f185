"""What a layer is and how it becomes a file: plain data, shared by layer, graph, file, session.

Nothing here imports onnx, so that a session can say what a file holds without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, TypedDict, get_args

import numpy as np

from .errors import InputError

LayerClass = Literal["Attention", "AdditiveAttention"]
ScoreMode = Literal["dot", "concat"]
Masks = Literal["both", "value", "query", "none"]
Inputs = Literal["required", "optional"]
Scale = Literal["constant", "input"]
Schedule = Literal["auto", "dense", "tiled", "fused"]

# What Keras adds to the score of a masked key, once: finite, so that a row without any key is
# still a softmax (keras/src/layers/attention/attention.py, `_apply_scores`).
HIDDEN = -1e9

OLDEST_OPSET, NEWEST_OPSET = 17, 21
# ONNX Runtime 1.12, the first with opset 17, reads IR 8; opset 19 and 21 came with IR 9 and 10.
IR_OF_OPSET = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10}


class FloatType(NamedTuple):
    """The three float types of a layer dtype, by NumPy name."""

    tensor: str
    weight: str
    compute: str


DTYPES = {
    "float16": FloatType("float16", "float16", "float32"),
    "bfloat16": FloatType("bfloat16", "bfloat16", "float32"),
    "float32": FloatType("float32", "float32", "float32"),
    "float64": FloatType("float64", "float64", "float64"),
    "mixed_float16": FloatType("float16", "float32", "float32"),
    "mixed_bfloat16": FloatType("bfloat16", "float32", "float32"),
}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype called `name`; "bfloat16" is the one of ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def one_of(what: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise InputError unless `value` is one of `choices`."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise InputError(f"{what} must be one of {listed}; received {value!r}")


def _true_or_false(what: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InputError(f"{what} must be True or False; received {value!r}")


@dataclass(frozen=True)
class LayerConfig:
    """The configuration of one attention layer, in Keras's words.

    Raises InputError where a value is not one Keras would take.
    """

    layer: LayerClass = "Attention"
    use_scale: bool = False
    score_mode: ScoreMode = "dot"
    causal: bool = False
    dropout: float = 0.0
    seed: int | None = None
    dtype: str = "float32"
    name: str | None = None

    def __post_init__(self) -> None:
        one_of("layer", self.layer, get_args(LayerClass))
        if self.score_mode not in get_args(ScoreMode):
            raise InputError(
                f"Invalid value for argument score_mode. Expected one of {{'dot', 'concat'}}. "
                f"Received: score_mode={self.score_mode}"
            )
        _true_or_false("use_scale", self.use_scale)
        _true_or_false("causal", self.causal)
        if (
            isinstance(self.dropout, bool)
            or not isinstance(self.dropout, int | float)  # pyright: ignore[reportUnnecessaryIsInstance]
            or not (0 <= self.dropout < 1)
        ):
            raise InputError(
                "dropout is the fraction of attention weights to drop: expected 0 <= dropout < 1; "
                f"received {self.dropout!r}"
            )
        if self.seed is not None and (isinstance(self.seed, bool) or type(self.seed) is not int):
            raise InputError(f"seed must be an integer or None; received {self.seed!r}")
        if self.dtype not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}; received {self.dtype!r}")
        if self.name is not None and type(self.name) is not str:
            raise InputError(f"name must be a string or None; received {self.name!r}")

    @property
    def floats(self) -> FloatType:
        """The float types of this dtype: of the tensors, the weights, the arithmetic."""
        return DTYPES[self.dtype]

    @property
    def weight_names(self) -> tuple[str, ...]:
        """The layer's weights, in Keras's order."""
        names = ("scale",) if self.use_scale else ()
        return (*names, "concat_score_weight") if self.score_mode == "concat" else names

    def weight_dims(self, name: str) -> tuple[str, ...]:
        """Dim names of one weight: () for a scalar, ("dim",) for AdditiveAttention's scale."""
        return ("dim",) if self.layer == "AdditiveAttention" and name == "scale" else ()


DIMS = (
    "batch",
    "Tq",
    "Tv",
    "dim",
    "value_dim",
    "query_mask_batch",
    "query_mask_Tq",
    "value_mask_batch",
    "value_mask_Tv",
    "heads",
    "bias_batch",
    "bias_heads",
    "bias_Tq",
    "bias_Tv",
)


@dataclass(frozen=True)
class ExportOptions:
    """How a layer becomes a file. Each field is an argument of `Attention.export`.

    Raises InputError for unknown values; `check_against` for those that contradict a layer.
    """

    key: bool = True
    masks: Masks = "both"
    inputs: Inputs = "required"
    scale: Scale = "constant"
    return_attention_scores: bool = False
    training: bool = False
    schedule: Schedule = "auto"
    opset: int = OLDEST_OPSET
    dims: dict[str, int] | None = field(default=None, hash=False)
    heads: bool = False
    bias: bool = False

    def __post_init__(self) -> None:
        _true_or_false("key", self.key)
        one_of("masks", self.masks, get_args(Masks))
        one_of("inputs", self.inputs, get_args(Inputs))
        one_of("scale", self.scale, get_args(Scale))
        _true_or_false("return_attention_scores", self.return_attention_scores)
        _true_or_false("training", self.training)
        _true_or_false("heads", self.heads)
        _true_or_false("bias", self.bias)
        one_of("schedule", self.schedule, get_args(Schedule))
        if type(self.opset) is not int or not OLDEST_OPSET <= self.opset <= NEWEST_OPSET:
            raise InputError(
                f"opset must be an integer from {OLDEST_OPSET} to {NEWEST_OPSET}; "
                f"received {self.opset!r}"
            )
        self._check_dims()

    def _check_fused(self, config: LayerConfig) -> None:
        """MultiHeadAttention has a fast and exact kernel for plain dot products alone."""
        reasons = {
            "scores that are no dot products": config.layer != "Attention"
            or config.score_mode != "dot",
            "causal=True": config.causal,
            "float64": config.floats.compute == "float64",
            "return_attention_scores=True": self.return_attention_scores,
            "training=True": self.training,
            "bias=True": self.bias,
        }
        for reason, found in reasons.items():
            if found:
                raise InputError(
                    "schedule='fused' is ONNX Runtime's MultiHeadAttention, which cannot do "
                    f"{reason} fast and exactly. Export with schedule='auto'"
                )

    def _check_dims(self) -> None:
        if self.dims is None:
            return
        if not isinstance(self.dims, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"dims must be a dict like {{'batch': 1}}; received {self.dims!r}")
        for name, size in self.dims.items():
            if name not in DIMS:
                raise InputError(
                    f"dims: there is no dim {name!r}; the dims of a file are {', '.join(DIMS)}"
                )
            for option, given in (("heads", self.heads), ("bias", self.bias)):
                if option in name.split("_") and not given:
                    raise InputError(f"dims: {name} is a dim of files with {option}=True only")
            if type(size) is not int or size < 1:
                raise InputError(f"dims: {name} must be a positive integer; received {size!r}")
        sizes = self.dims
        if not self.key and "dim" in sizes and sizes["dim"] != sizes.get("value_dim", sizes["dim"]):
            raise InputError(
                "dims: with key=False the value is the key, so value_dim is dim; "
                f"received dim={sizes['dim']}, value_dim={sizes['value_dim']}"
            )
        for mask, dim in (
            ("query_mask_batch", "batch"),
            ("value_mask_batch", "batch"),
            ("query_mask_Tq", "Tq"),
            ("value_mask_Tv", "Tv"),
            ("bias_batch", "batch"),
            ("bias_heads", "heads"),
            ("bias_Tq", "Tq"),
            ("bias_Tv", "Tv"),
        ):
            fixed = sizes.get(mask, 1)
            if fixed not in (1, sizes.get(dim, fixed)):
                raise InputError(
                    f"dims: {mask} must be 1 or equal to {dim}={sizes[dim]}; received {fixed}"
                )

    @property
    def sizes(self) -> dict[str, int]:
        """The fixed dims by name; with key=False the value is the key, so dim is value_dim."""
        sizes = dict(self.dims or {})
        if not self.key and ("dim" in sizes or "value_dim" in sizes):
            sizes["dim"] = sizes["value_dim"] = sizes.get("dim") or sizes["value_dim"]
        return sizes

    @property
    def needs_onnxruntime(self) -> bool:
        """Whether the file has operators that only ONNX Runtime knows."""
        return self.schedule == "fused"

    def check_against(self, config: LayerConfig) -> None:
        """Raise InputError where these options contradict the layer."""
        if self.schedule == "fused":
            self._check_fused(config)
        if self.scale == "input" and not config.weight_names:
            raise InputError(
                "scale='input' needs a layer with a weight; received use_scale=False. "
                "Build the layer with use_scale=True or export with scale='constant'"
            )
        if self.training and config.dropout == 0:
            raise InputError(
                "training=True writes a file that drops attention weights, but this layer has "
                "dropout=0.0. Give the layer a dropout, or export without training"
            )


class ExportArguments(TypedDict, total=False):
    """The fields of `ExportOptions` as keyword arguments, for editors and type checkers."""

    key: bool
    masks: Masks
    inputs: Inputs
    scale: Scale
    return_attention_scores: bool
    training: bool
    schedule: Schedule
    opset: int
    dims: dict[str, int] | None
    heads: bool
    bias: bool


def with_options(options: ExportOptions, changes: Mapping[str, Any]) -> ExportOptions:
    """`options` with `changes`; raises InputError, naming the known ones, for an unknown option."""
    known = [f.name for f in fields(ExportOptions)]
    for name in changes:
        if name not in known:
            raise InputError(f"there is no export option {name!r}; options: {', '.join(known)}")
    return replace(options, **changes)

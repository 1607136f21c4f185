"""What a layer is and what a file of it holds: plain data, shared by layer, graph, file, session.

Nothing here imports onnx, so that a session can say what a file holds without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypedDict, get_args

import numpy as np

from .arrays import Array
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


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a file.

    `dims` are names (str) or fixed sizes (int); `dtype` is a NumPy name ("bfloat16" is
    ml_dtypes'). `default` is what a caller who leaves the input out gets, None where there is
    none: from the file itself where it is `optional` (an overridable initializer), else from
    `AttentionSession`.
    """

    name: str
    dtype: str
    dims: tuple[str | int, ...]
    optional: bool = False
    default: Array | None = field(default=None, compare=False, repr=False)

    @property
    def shape(self) -> tuple[str | int, ...]:
        """The dims, by the name ONNX Runtime and NumPy users look for."""
        return self.dims

    def with_dims(self, dims: tuple[str | int, ...]) -> TensorSpec:
        """This tensor with other dims; the default of a mask or a bias follows them."""
        default = self.default
        if self.name.endswith("_mask"):
            default = all_true(dims)
        elif self.name == "bias":
            default = no_bias(dims, self.dtype)
        return replace(self, dims=dims, default=default)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(str(dim) for dim in self.dims)}]"


class Contract(NamedTuple):
    """The inputs and outputs of a file, in order, by name."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


def all_true(dims: tuple[str | int, ...]) -> Array:
    """The mask that masks nothing: [[True]], and True as often as fixed dims ask for."""
    return np.ones([dim if isinstance(dim, int) else 1 for dim in dims], np.bool_)


def no_bias(dims: tuple[str | int, ...], dtype: str) -> Array:
    """The bias that adds nothing: a zero, as often as fixed dims ask for."""
    return np.zeros([dim if isinstance(dim, int) else 1 for dim in dims], numpy_dtype(dtype))


def contract(
    config: LayerConfig, options: ExportOptions, weights: Mapping[str, Array] | None = None
) -> Contract:
    """The tensors of the file that `config` and `options` describe; `weights` are defaults."""
    floats, sizes = config.floats, options.sizes
    optional = options.inputs == "optional"

    def spec(name: str, dtype: str, *names: str) -> TensorSpec:
        return TensorSpec(name, dtype, tuple(sizes.get(dim, dim) for dim in names))

    def may_be_left_out(given: TensorSpec, default: Array | None) -> TensorSpec:
        return replace(given, optional=optional, default=default)

    lead = ("batch", "heads") if options.heads else ("batch",)
    inputs = [spec("query", floats.tensor, *lead, "Tq", "dim")]
    value_dim = "value_dim" if options.key else "dim"
    inputs.append(spec("value", floats.tensor, *lead, "Tv", value_dim))
    if options.key:
        inputs.append(spec("key", floats.tensor, *lead, "Tv", "dim"))
    for owner, length in (("query", "Tq"), ("value", "Tv")):
        if options.masks in ("both", owner):
            mask = spec(f"{owner}_mask", "bool", f"{owner}_mask_batch", f"{owner}_mask_{length}")
            inputs.append(may_be_left_out(mask, all_true(mask.dims)))
    if options.bias:
        dims = tuple(f"bias_{dim}" for dim in (*lead, "Tq", "Tv"))
        bias = spec("bias", floats.tensor, *dims)
        inputs.append(may_be_left_out(bias, no_bias(bias.dims, bias.dtype)))
    if options.scale == "input":
        for name in config.weight_names:
            weight = spec(name, floats.weight, *config.weight_dims(name))
            inputs.append(may_be_left_out(weight, (weights or {}).get(name)))
    if options.training:
        inputs.append(may_be_left_out(spec("training", "bool"), np.array(False)))
    outputs = [spec("output", floats.tensor, *lead, "Tq", "value_dim")]
    if options.return_attention_scores:
        outputs.append(spec("attention_scores", floats.tensor, *lead, "Tq", "Tv"))
    return Contract({s.name: s for s in inputs}, {s.name: s for s in outputs})


@dataclass(frozen=True)
class LayerFile:
    """A layer and how it is a file: all that a graph is built from, and what one says of itself.

    `weights` are the trained values by name, in the dtype and shape of `config`. One read without
    the graph, as sessions do, has only those that its metadata holds.

    Raises InputError where the three contradict each other.
    """

    config: LayerConfig
    options: ExportOptions = ExportOptions()
    weights: Mapping[str, Array] = field(default_factory=dict[str, Array], compare=False)

    def __post_init__(self) -> None:
        self.options.check_against(self.config)
        for name, weight in self.weights.items():
            self._check_weight(name, weight)

    def _check_weight(self, name: str, weight: Array) -> None:
        names = self.config.weight_names
        if name not in names:
            raise InputError(
                f"there is no weight {name!r}; this layer's weights: {', '.join(names) or 'none'}"
            )
        dims, dtype = self.config.weight_dims(name), self.config.floats.weight
        if weight.dtype != numpy_dtype(dtype) or weight.ndim != len(dims):
            raise InputError(
                f"{name}: expected {dtype}[{', '.join(dims)}]; "
                f"received {weight.dtype}{list(weight.shape)}"
            )
        fixed = self.options.sizes.get("dim")
        if dims and fixed not in (None, len(weight)):
            raise InputError(f"dims: dim={fixed}, but the layer's {name} has length {len(weight)}")

    @cached_property
    def contract(self) -> Contract:
        """The file's inputs and outputs."""
        return contract(self.config, self.options, self.weights)

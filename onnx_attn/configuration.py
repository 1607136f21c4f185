"""What a layer is and what a file of it holds: plain data, shared by layer, graph, file, session.

Nothing here imports onnx, so the session can read a file's metadata without it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np

from .errors import InputError, ModelError

FORMAT = 1
FORMAT_KEY = "onnx_attn.format"
CONFIG_KEY = "onnx_attn.config"
RUNTIME_KEY = "onnx_attn.runtime"
EXPORT_KEY = "onnx_attn.export"
WEIGHTS_KEY = "onnx_attn.weights"

LayerClass = Literal["Attention", "AdditiveAttention"]
ScoreMode = Literal["dot", "concat"]
Masks = Literal["both", "value", "query", "none"]
Inputs = Literal["required", "optional"]
Scale = Literal["constant", "input"]
Schedule = Literal["auto", "dense", "tiled", "fused"]

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

    def __post_init__(self) -> None:
        _true_or_false("key", self.key)
        one_of("masks", self.masks, get_args(Masks))
        one_of("inputs", self.inputs, get_args(Inputs))
        one_of("scale", self.scale, get_args(Scale))
        _true_or_false("return_attention_scores", self.return_attention_scores)
        _true_or_false("training", self.training)
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
            if type(size) is not int or size < 1:
                raise InputError(f"dims: {name} must be a positive integer; received {size!r}")
        sizes = self.dims
        if not self.key and sizes.get("dim", 0) != sizes.get("value_dim", sizes.get("dim", 0)):
            raise InputError(
                "dims: with key=False the value is the key, so value_dim is dim; "
                f"received dim={sizes.get('dim')}, value_dim={sizes.get('value_dim')}"
            )
        for mask, dim in (
            ("query_mask_batch", "batch"),
            ("value_mask_batch", "batch"),
            ("query_mask_Tq", "Tq"),
            ("value_mask_Tv", "Tv"),
        ):
            fixed = sizes.get(mask, 1)
            if fixed not in (1, sizes.get(dim, fixed)):
                raise InputError(
                    f"dims: {mask} must be 1 or equal to {dim}={sizes[dim]}; received {fixed}"
                )

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
        if self.training and self.opset > 21:
            raise InputError("training=True needs opset 21 or lower")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a file.

    `dims` are names (str) or fixed sizes (int); `dtype` is a NumPy name ("bfloat16" is
    ml_dtypes'); an optional tensor has `default`, taken when a caller leaves it out.
    """

    name: str
    dtype: str
    dims: tuple[str | int, ...]
    optional: bool = False

    @property
    def shape(self) -> tuple[str | int, ...]:
        """The dims, by the name ONNX Runtime and NumPy users look for."""
        return self.dims

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(str(dim) for dim in self.dims)}]"


class Contract(NamedTuple):
    """The inputs and outputs of a file, in order, by name."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


def contract(config: LayerConfig, options: ExportOptions) -> Contract:
    """The tensors of the file that `config` and `options` describe."""
    floats = config.floats
    sizes = dict(options.dims or {})
    if not options.key and ("dim" in sizes or "value_dim" in sizes):
        sizes["dim"] = sizes["value_dim"] = sizes.get("dim", sizes.get("value_dim", 0))
    optional = options.inputs == "optional"

    def spec(name: str, dtype: str, *dims: str, optional: bool = False) -> TensorSpec:
        return TensorSpec(name, dtype, tuple(sizes.get(dim, dim) for dim in dims), optional)

    inputs = [spec("query", floats.tensor, "batch", "Tq", "dim")]
    value_dim = "value_dim" if options.key else "dim"
    inputs.append(spec("value", floats.tensor, "batch", "Tv", value_dim))
    if options.key:
        inputs.append(spec("key", floats.tensor, "batch", "Tv", "dim"))
    if options.masks in ("both", "query"):
        dims = ("query_mask_batch", "query_mask_Tq")
        inputs.append(spec("query_mask", "bool", *dims, optional=optional))
    if options.masks in ("both", "value"):
        dims = ("value_mask_batch", "value_mask_Tv")
        inputs.append(spec("value_mask", "bool", *dims, optional=optional))
    if options.scale == "input":
        for name in config.weight_names:
            dims = config.weight_dims(name)
            inputs.append(spec(name, floats.weight, *dims, optional=optional))
    if options.training:
        inputs.append(spec("training", "bool", optional=optional))
    outputs = [spec("output", floats.tensor, "batch", "Tq", "value_dim")]
    if options.return_attention_scores:
        outputs.append(spec("attention_scores", floats.tensor, "batch", "Tq", "Tv"))
    return Contract({s.name: s for s in inputs}, {s.name: s for s in outputs})


def write_metadata(
    config: LayerConfig, options: ExportOptions, weights: dict[str, np.ndarray[Any, Any]]
) -> dict[str, str]:
    """The metadata_props of a file.

    `weights` are those the graph takes as plain inputs: a file keeps their trained values here,
    since it has no initializer for them.
    """
    metadata = {
        FORMAT_KEY: str(FORMAT),
        CONFIG_KEY: json.dumps(asdict(config), sort_keys=True),
        EXPORT_KEY: json.dumps(asdict(options), sort_keys=True),
    }
    if options.needs_onnxruntime:
        metadata[RUNTIME_KEY] = f"onnxruntime, computes in {config.floats.compute}"
    if weights:
        as_lists = {name: weight.astype(np.float64).tolist() for name, weight in weights.items()}
        metadata[WEIGHTS_KEY] = json.dumps(as_lists, sort_keys=True)
    return metadata


class Metadata(NamedTuple):
    """What a file says of itself."""

    config: LayerConfig
    options: ExportOptions
    weights: dict[str, np.ndarray[Any, Any]]


def read_metadata(properties: dict[str, str], where: str) -> Metadata:
    """Configuration, export options and input weights from a file's metadata_props.

    Raises ModelError, naming `where`, if the file is not ours, is newer, or is damaged.
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
    try:
        config = LayerConfig(**_fields(LayerConfig, properties[CONFIG_KEY]))
        options = ExportOptions(**_fields(ExportOptions, properties[EXPORT_KEY]))
        options.check_against(config)
        weights = _weights(config, properties.get(WEIGHTS_KEY, "{}"))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{where} is damaged: its onnx_attn metadata cannot be read") from error
    return Metadata(config, options, weights)


def _fields(kind: type[LayerConfig] | type[ExportOptions], text: str) -> dict[str, Any]:
    values = json.loads(text)
    names = {f.name for f in fields(kind)}
    if not isinstance(values, dict) or set(cast("dict[str, Any]", values)) != names:
        raise ValueError(f"expected a JSON object with {sorted(names)}")
    return cast("dict[str, Any]", values)


def _weights(config: LayerConfig, text: str) -> dict[str, np.ndarray[Any, Any]]:
    values = cast("dict[str, Any]", json.loads(text))
    weights: dict[str, np.ndarray[Any, Any]] = {}
    for name, value in values.items():
        if name not in config.weight_names:
            raise ValueError(f"unknown weight {name}")
        weight = np.array(value, numpy_dtype("float64")).astype(numpy_dtype(config.floats.weight))
        if weight.ndim != len(config.weight_dims(name)):
            raise ValueError(f"weight {name} has shape {weight.shape}")
        weights[name] = weight
    return weights


def with_options(options: ExportOptions, changes: dict[str, Any]) -> ExportOptions:
    """`options` with `changes`; raises InputError, naming the known ones, for an unknown option."""
    known = [f.name for f in fields(ExportOptions)]
    for name in changes:
        if name not in known:
            raise InputError(f"there is no export option {name!r}; options: {', '.join(known)}")
    return replace(options, **changes)

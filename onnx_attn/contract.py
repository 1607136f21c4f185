"""What a file of a layer holds: its tensors by name, and the layer, options and weights behind it.

Nothing here imports onnx, so that a session can say what a file holds without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .arrays import Array
from .configuration import ExportOptions, LayerConfig, numpy_dtype
from .errors import InputError


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
    options: ExportOptions = field(default_factory=ExportOptions)
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

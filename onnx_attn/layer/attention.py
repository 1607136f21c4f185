"""Attention and AdditiveAttention: configuration, weights, the Keras-shaped call, the file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, Unpack, cast

import numpy as np

from ..arrays import Array, shown, to_array
from ..configuration import (
    ExportArguments,
    ExportOptions,
    LayerClass,
    LayerConfig,
    numpy_dtype,
    with_options,
)
from ..contract import LayerFile
from ..errors import InputError
from ..file.export import make_model, read_model, write_model
from ..session.session import AttentionSession
from .arguments import config_arguments, dtype_name, layer_arguments
from .call import check_inputs, check_mask, fold_call

if TYPE_CHECKING:
    import onnx


class _AttentionLayer:
    """What both layers share."""

    #: Which of Keras's layers it is; subclasses inherit it.
    layer_class: ClassVar[LayerClass]

    def __init__(self, config: LayerConfig) -> None:
        self._config = config
        self._weights: dict[str, Array] = {}
        self._sessions: dict[tuple[LayerConfig, ExportOptions], AttentionSession] = {}
        #: Export options that `to_onnx` and `export` take where a call does not say otherwise.
        self.export_defaults: dict[str, Any] = {}

    @property
    def name(self) -> str | None:
        """The layer's name, or None."""
        return self._config.name

    def get_weights(self) -> list[Array]:
        """The weights in Keras's order: scale, concat_score_weight; [] before they exist."""
        return [self._weights[name].copy() for name in self._config.weight_names if self._weights]

    def set_weights(self, weights: Sequence[object]) -> None:
        """Set the weights, in the order of `get_weights`; numbers or arrays of the right shape.

        Raises InputError for another count or shape.
        """
        names = self._config.weight_names
        try:
            given = list(weights)
        except TypeError as error:
            raise InputError(
                f"set_weights: expected a list of {len(names)} weights; received {shown(weights)}"
            ) from error
        if len(given) != len(names):
            raise InputError(
                f"set_weights: this layer has {len(names)} weights "
                f"({', '.join(names) or 'none'}); received {len(given)}"
            )
        self._weights = {
            name: self._checked(name, weight) for name, weight in zip(names, given, strict=True)
        }

    def _checked(self, name: str, weight: object) -> Array:
        dims = self._config.weight_dims(name)
        expected = f"{name}: expected a {'vector [dim]' if dims else 'scalar'} of numbers"
        array = to_array(name, expected, weight)
        numbers = array.dtype.kind in "fiu" or array.dtype.name == "bfloat16"
        if not numbers or array.ndim != len(dims):
            raise InputError(f"{expected}; received {array.dtype}{list(array.shape)}")
        if dims and self._weights and array.shape != self._weights[name].shape:
            raise InputError(
                f"{name}: expected shape {list(self._weights[name].shape)}; received "
                f"{list(array.shape)}"
            )
        return array.astype(numpy_dtype(self._config.floats.weight))

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this layer again, as Keras's `get_config`."""
        return config_arguments(self._config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A layer from `get_config` of this package or of Keras 2 (causal or not) or Keras 3.

        Raises InputError for an argument this layer does not know.
        """
        arguments = layer_arguments(cls.layer_class, config)
        try:
            return cls(**arguments)
        except TypeError as error:
            raise InputError(f"{cls.__name__}.from_config: {error}") from error

    def compute_mask(self, inputs: object, mask: object = None) -> Array | None:
        """The mask of the output: query_mask, or None. Arguments as in a call."""
        check_inputs(self._config.layer, inputs)
        query_mask, _ = check_mask(self._config.layer, mask)
        if query_mask is None:
            return None
        return to_array("query_mask", "query_mask: expected bool[..., Tq]", query_mask)

    def compute_output_shape(self, input_shape: Sequence[Sequence[int | None]]) -> tuple[Any, ...]:
        """[..., Tq, value_dim] from the shapes of [query, value] or [query, value, key]."""
        shapes = list(input_shape)
        check_inputs(self._config.layer, shapes)
        return (*shapes[0][:-1], shapes[1][-1])

    def __call__(
        self,
        inputs: Sequence[object],
        mask: Sequence[object] | None = None,
        training: bool | None = False,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        """Attend, in ONNX Runtime.

        Args:
            inputs: [query, value] or [query, value, key]: query float[..., Tq, dim], value
                float[..., Tv, value_dim], key float[..., Tv, dim]; floats are cast to the
                layer's dtype. Leading axes broadcast.
            mask: [query_mask, value_mask], bool[..., Tq] and bool[..., Tv]; entries may be None.
            training: drop attention weights at rate `dropout`.
            return_attention_scores: return (output, attention_scores).
            use_causal_mask: as `causal=True` for this call.

        Returns:
            output [..., Tq, value_dim] in the layer's dtype; with return_attention_scores also
            the weights [..., Tq, Tv] after softmax and dropout.

        Raises:
            InputError: inputs or masks that do not fit; the message names the tensor.
        """
        dtype = numpy_dtype(self._config.floats.tensor)
        call = fold_call(self._config.layer, inputs, mask, dtype)
        feeds: dict[str, object] = dict(call.tensors)
        self._build_for(call.tensors["query"])
        config = replace(self._config, causal=self._config.causal or bool(use_causal_mask))
        masks = {name.removesuffix("_mask") for name in feeds if name.endswith("_mask")}
        options = ExportOptions(
            key="key" in feeds,
            masks="both" if len(masks) == 2 else cast("Any", next(iter(masks), "none")),
            scale="input" if config.weight_names else "constant",
            return_attention_scores=bool(return_attention_scores),
            training=bool(training) and config.dropout > 0,
        )
        if options.training:
            feeds["training"] = True
        results = self._session(config, options).run({**feeds, **self._weights})
        output = call.unfold(results["output"])
        if return_attention_scores:
            return output, call.unfold(results["attention_scores"])
        return output

    def _session(self, config: LayerConfig, options: ExportOptions) -> AttentionSession:
        which = (config, options)
        if which not in self._sessions:
            model = make_model(LayerFile(config, options, self._weights))
            self._sessions[which] = AttentionSession(model.SerializeToString(), device="cpu")
        return self._sessions[which]

    def _build_for(self, query: Array) -> None:
        """Create weights whose shape waits for the first query."""

    def to_onnx(self, **options: Unpack[ExportArguments]) -> onnx.ModelProto:
        """The layer as an ONNX model.

        Args:
            key: take key as an input of its own (True), or use value for both.
            masks: which masks are inputs: "both", "value", "query", "none".
            inputs: "required", or "optional": masks, scale and training as overridable
                initializers, which callers may leave out where the binding allows it.
            scale: the weights as "constant" initializers or as an "input".
            return_attention_scores: add the output attention_scores.
            training: add the input training, which drops attention weights when True.
            schedule: how the score matrix is walked: "auto", "dense", "tiled", or "fused", which
                needs ONNX Runtime.
            opset: 17 to 21; 17 loads in ONNX Runtime 1.12 and later.
            dims: sizes to fix by dim name, like {"batch": 1, "dim": 64}.
            heads: an axis of heads after the batch: query [batch, heads, Tq, dim], and so on.
                Masks stay [batch, T].
            bias: add the input bias, which is added to the scores before masks hide any: float
                [batch or 1, Tq or 1, Tv or 1], with heads [batch or 1, heads or 1, ..].

        What is left out takes its value of `export_defaults`, else that of `ExportOptions`.

        Raises:
            InputError: an unknown option, a value it cannot take, or two that contradict.
        """
        known = with_options(ExportOptions(), self.export_defaults)
        missing = [name for name in self._config.weight_names if name not in self._weights]
        if missing:
            raise InputError(
                f"{', '.join(missing)} does not exist yet: call build(dim) or set_weights, or call "
                "the layer once"
            )
        return make_model(LayerFile(self._config, with_options(known, options), self._weights))

    def export(self, path: str | os.PathLike[str], **options: Unpack[ExportArguments]) -> Path:
        """Write the layer to `path` as an ONNX file, whole or not at all; returns the path.

        Takes the options of `to_onnx`. Same layer and options, same bytes.

        Raises:
            InputError: as `to_onnx`.
            ModelError: the file cannot be written.
        """
        return write_model(self.to_onnx(**options), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The layer that was exported to `path`; its plain `export` writes the same bytes again.

        Raises:
            ModelError: no file, not an ONNX file, not written by onnx_attn, newer, or changed by
                another tool since its export.
            InputError: the file holds the other layer.
        """
        saved = read_model(path)
        if saved.config.layer != cls.layer_class:
            raise InputError(
                f"{os.fspath(path)} holds {saved.config.layer}: use {saved.config.layer}.load"
            )
        layer = cls.from_config(config_arguments(saved.config))
        layer._weights = dict(saved.weights)
        layer.export_defaults = dict(vars(saved.options))
        return layer

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"

    def __getstate__(self) -> dict[str, Any]:
        # Sessions are caches: a copy makes its own.
        return {**vars(self), "_sessions": {}}


class Attention(_AttentionLayer):
    """Dot-product (Luong-style) attention, as tf.keras.layers.Attention.

    Args:
        use_scale: multiply the scores by a trained scalar `scale`, 1.0 at first.
        score_mode: "dot": query @ key^T; "concat": concat_score_weight * sum tanh(query + key).
        causal: hide key j from query i where j > i.
        dropout: fraction of attention weights dropped in training, 0 <= dropout < 1.
        seed: makes the first training run of a fresh session repeatable.
        dtype: float16, bfloat16, float32, float64, mixed_float16 or mixed_bfloat16.
        name: kept in the configuration and the file; None stays None.

    Raises:
        InputError: a value Keras would not take.
    """

    layer_class = "Attention"

    def __init__(
        self,
        use_scale: bool = False,
        score_mode: str = "dot",
        causal: bool = False,
        dropout: float = 0.0,
        seed: int | None = None,
        dtype: Any = "float32",
        name: str | None = None,
    ) -> None:
        super().__init__(
            LayerConfig(
                layer=self.layer_class,
                use_scale=use_scale,
                score_mode=cast("Any", score_mode),
                causal=causal,
                dropout=dropout,
                seed=seed,
                dtype=dtype_name(dtype),
                name=name,
            )
        )
        weight = numpy_dtype(self._config.floats.weight)
        self._weights = {name: np.ones((), weight) for name in self._config.weight_names}


class AdditiveAttention(_AttentionLayer):
    """Additive (Bahdanau-style) attention, as tf.keras.layers.AdditiveAttention.

    Scores are sum_d scale_d * tanh(query + key). `scale` is a vector [dim]; it exists after the
    first call, `build(dim)` or `set_weights`, drawn from Glorot's uniform distribution as in Keras.

    Args and errors as for `Attention`.
    """

    layer_class = "AdditiveAttention"

    def __init__(
        self,
        use_scale: bool = True,
        causal: bool = False,
        dropout: float = 0.0,
        seed: int | None = None,
        dtype: Any = "float32",
        name: str | None = None,
    ) -> None:
        super().__init__(
            LayerConfig(
                layer=self.layer_class,
                use_scale=use_scale,
                causal=causal,
                dropout=dropout,
                seed=seed,
                dtype=dtype_name(dtype),
                name=name,
            )
        )

    def build(self, dim: int) -> None:
        """Create `scale` for queries whose last axis is `dim`, unless it exists.

        Raises InputError if it exists for another dim.
        """
        if type(dim) is not int or dim < 1:
            raise InputError(f"build: dim must be a positive integer; received {dim!r}")
        if not self._config.use_scale:
            return
        if self._weights:
            if self._weights["scale"].shape != (dim,):
                raise InputError(
                    f"scale: this layer was built for dim={len(self._weights['scale'])}; "
                    f"received a query with dim={dim}"
                )
            return
        # Glorot's uniform distribution, sqrt(6 / (fan_in + fan_out)): Keras counts the length of a
        # vector as both fans.
        limit = math.sqrt(6.0 / (dim + dim))
        drawn = np.random.default_rng(self._config.seed).uniform(-limit, limit, dim)
        self._weights = {"scale": drawn.astype(numpy_dtype(self._config.floats.weight))}

    def _build_for(self, query: Array) -> None:
        if self._config.use_scale and query.shape[-1]:
            self.build(query.shape[-1])

"""Attention layers of this package from those of Keras, saved or live."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Unpack

from ..configuration import ExportArguments
from ..errors import InputError, ModelError
from ..layer.arguments import config_arguments
from ..layer.attention import AdditiveAttention, Attention
from .files import SavedAttention, read_saved
from .model_config import ATTENTION_CLASSES, FoundLayer
from .objects import KERAS_MODULES

Layer = Attention | AdditiveAttention
CLASSES: dict[str, type[Attention] | type[AdditiveAttention]] = {
    "Attention": Attention,
    "AdditiveAttention": AdditiveAttention,
}


class KerasLayer(Protocol):
    """What `from_layer` asks of a Keras layer."""

    def get_config(self) -> dict[str, Any]:
        """The layer's arguments."""
        ...

    def get_weights(self) -> list[Any]:
        """The layer's weights as arrays."""
        ...


def load_layers(path: str | os.PathLike[str], config: object = None) -> dict[str, Layer]:
    """The attention layers of a saved Keras model, with their trained weights.

    Reads what Keras 2 (from TensorFlow 2.7 on), tf_keras and Keras 3 save, by h5py and zipfile
    alone; nothing in the file is executed. How the model calls a layer becomes the layer:
    `use_causal_mask` its `causal`, and masks, key and return_attention_scores its
    `export_defaults`. A mask is left out of those only where none can reach the layer. Where a
    model calls a layer several times, its file takes what any of the calls needs; if only some are
    causal, the layer is not, and a warning says so.

    Args:
        path: a `.keras`, `.h5` or `.weights.h5` file.
        config: for a file of weights, the model's configuration: a dict, the text of
            `model.to_json()`, or the path of a file that holds one.

    Returns:
        Layers by name, those of inner models as "outer/inner", in the model's order.

    Raises:
        InputError: weights without `config`, or `config` for a file that holds its own.
        ModelError: the file is missing, damaged, no saved Keras model, or holds no attention.
    """
    layers: dict[str, Layer] = {}
    for saved in read_saved(path, config):
        layers[saved.layer.path] = _build(saved, os.fspath(path))
    return layers


def from_layer(layer: KerasLayer) -> Layer:
    """An attention layer from a live one of Keras 2 or 3, by its configuration and weights.

    Keras 3 says in each call whether it is causal, so the layer does not know. Say use_causal_mask
    in the calls of the new one too, or make a causal one with
    `Attention.from_config({**layer.get_config(), "causal": True})`.

    Args:
        layer: a built `keras.layers.Attention` or `AdditiveAttention`.

    Raises:
        InputError: another class, a subclass (its call may differ), or a layer without weights yet.
    """
    kind = type(layer)
    home = kind.__module__.split(".")[0]
    if kind.__name__ not in ATTENTION_CLASSES or home not in (*KERAS_MODULES, "tensorflow"):
        raise InputError(
            "from_layer takes a layer of the class keras.layers.Attention or AdditiveAttention; "
            f"received {kind.__module__}.{kind.__name__}"
        )
    arguments = dict(layer.get_config())
    # Keras 2 from 2.10 on still takes causal=True, and leaves it out of the config.
    arguments["causal"] = bool(arguments.get("causal") or getattr(layer, "causal", False))
    built = CLASSES[kind.__name__].from_config(arguments)
    try:
        built.set_weights(layer.get_weights())
    except InputError as error:
        raise InputError(
            f"layer {built.name!r}: {error}. A layer has its weights once it is built: call it in "
            "Keras first"
        ) from error
    return built


def _build(saved: SavedAttention, where: str) -> Layer:
    found = saved.layer
    config = replace(found.config, causal=found.config.causal or _is_causal(found, where))
    layer = CLASSES[config.layer].from_config(config_arguments(config))
    try:
        layer.set_weights([saved.weights[name] for name in config.weight_names])
    except InputError as error:
        raise ModelError(f"{where}: layer {found.path!r}: {error}") from error
    layer.export_defaults = export_defaults(found)
    return layer


def _is_causal(found: FoundLayer, where: str) -> bool:
    causal = {call.use_causal_mask for call in found.calls}
    if len(causal) > 1:
        warnings.warn(
            f"{where}: the model calls layer {found.path!r} both with and without use_causal_mask; "
            "it is loaded as not causal. Say use_causal_mask=True in a call, or make a causal one "
            "with Attention.from_config({**layer.get_config(), 'causal': True})",
            stacklevel=4,
        )
    return causal == {True}


def export_defaults(found: FoundLayer) -> dict[str, Any]:
    """Export options that write the file a model's calls of a layer need; {} where unknown."""
    if not found.calls:
        return {}
    query, value = (any(sides) for sides in zip(*(c.masks for c in found.calls), strict=True))
    return {
        "key": any(call.key for call in found.calls),
        "masks": {(True, True): "both", (True, False): "query", (False, True): "value"}.get(
            (query, value), "none"
        ),
        "return_attention_scores": any(call.return_attention_scores for call in found.calls),
    }


class ModelAndLayer(NamedTuple):
    """A saved model and, where one is asked for, a layer in it."""

    model: Path
    layer: str | None


def split_spec(spec: str) -> ModelAndLayer:
    """`MODEL` or `MODEL:LAYER` taken apart; what names a file is the model, colons and all.

    Raises ModelError where no part of `spec` is a file, InputError for an empty layer name.
    """
    ends = [len(spec), *(at for at in range(len(spec) - 1, 0, -1) if spec[at] == ":")]
    for end in ends:
        if os.path.exists(spec[:end]):  # noqa: PTH110  False, not OSError, for a long name
            if end == len(spec) - 1:
                raise InputError(f"{spec!r}: expected a layer's name after the last ':'")
            return ModelAndLayer(Path(spec[:end]), spec[end + 1 :] or None)
    raise ModelError(f"{spec} cannot be read: no such file (expected MODEL or MODEL:LAYER)")


def load_layer(spec: str, config: object = None) -> Layer:
    """One attention layer of a saved model, by `MODEL:LAYER`; `MODEL` where it has only one.

    LAYER is a path as `load_layers` gives it, or the end of one that only one layer has.

    Raises:
        InputError: several layers and none named, or no layer of this name; lists the layers.
        ModelError: as `load_layers`.
    """
    model, wanted = split_spec(spec)
    layers = load_layers(model, config)
    if wanted is None and len(layers) == 1:
        return next(iter(layers.values()))
    listed = ", ".join(layers)
    if wanted is None:
        raise InputError(
            f"{model} has {len(layers)} attention layers: say which, like "
            f"{model}:{next(iter(layers))}. Layers: {listed}"
        )
    if wanted in layers:
        return layers[wanted]
    ends = [path for path in layers if path.endswith(f"/{wanted}")]
    if len(ends) == 1:
        return layers[ends[0]]
    problem = "several attention layers end in" if ends else "no attention layer is called"
    raise InputError(f"{model}: {problem} {wanted!r}. Layers: {listed}")


def export_from_keras(
    spec: str,
    path: str | os.PathLike[str],
    config: object = None,
    **options: Unpack[ExportArguments],
) -> Path:
    """Write one attention layer of a saved Keras model to the ONNX file `path`.

    Args:
        spec: `MODEL` or `MODEL:LAYER`, as `load_layer` takes it.
        path: the file to write.
        config: as `load_layers`.
        options: as `Attention.export`; they win over what the saved model's calls say.

    Raises:
        InputError, ModelError: as `load_layer` and `Attention.export`.
    """
    return load_layer(spec, config).export(path, **options)


def describe_layers(path: str | os.PathLike[str], config: object = None) -> list[dict[str, Any]]:
    """The attention layers of a saved model as plain data, a row for each.

    Returns:
        `layer` (its path), `class`, `config`, `weights` (a number, or a list for
        AdditiveAttention's scale), `calls` (how many the file tells of), `export_defaults`.

    Raises:
        InputError, ModelError: as `load_layers`.
    """
    rows: list[dict[str, Any]] = []
    for saved in read_saved(path, config):
        layer = _build(saved, os.fspath(path))
        rows.append(
            {
                "layer": saved.layer.path,
                "class": saved.layer.config.layer,
                "config": layer.get_config(),
                "weights": {
                    name: weight.astype("float64").tolist()
                    for name, weight in saved.weights.items()
                },
                "calls": len(saved.layer.calls),
                "export_defaults": layer.export_defaults,
            }
        )
    return rows

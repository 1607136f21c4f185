"""Keras's arguments of a layer as a LayerConfig, and back: for new, loaded and saved layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

import numpy as np

from ..configuration import DTYPES, LayerClass, LayerConfig
from ..errors import InputError

# What Keras's base layer puts into every config and attention has no use for.
BASE_LAYER_KEYS = frozenset(
    {"trainable", "autocast", "batch_input_shape", "batch_shape", "input_dtype", "dynamic"}
)


def layer_arguments(layer: LayerClass, config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a layer's class in a `get_config` of any Keras.

    Raises InputError for a dtype that is none.
    """
    arguments = {key: value for key, value in config.items() if key not in BASE_LAYER_KEYS}
    if layer == "AdditiveAttention":
        # Keras 3 inherits score_mode from Attention's config and has no use for it here.
        arguments.pop("score_mode", None)
    arguments["dtype"] = dtype_name(arguments.get("dtype"))
    if "seed" in arguments:
        arguments["seed"] = seed_number(arguments["seed"])
    return arguments


def layer_config(layer: LayerClass, config: Mapping[str, Any]) -> LayerConfig:
    """What a `get_config` of any Keras says, and the class's defaults for what it does not.

    Raises InputError for an argument or a value that the class does not take.
    """
    arguments = layer_arguments(layer, config)
    known = {field.name for field in fields(LayerConfig)} - {"layer"}
    if unknown := arguments.keys() - known:
        raise InputError(
            f"{layer} has no argument {', '.join(sorted(unknown))}; its arguments: "
            f"{', '.join(sorted(known))}"
        )
    defaults: dict[str, Any] = {"use_scale": layer == "AdditiveAttention"}
    return LayerConfig(layer=layer, **(defaults | arguments))


def config_arguments(config: LayerConfig) -> dict[str, Any]:
    """The arguments of a layer's class that make `config` again."""
    arguments = dict(vars(config))
    layer = arguments.pop("layer")
    if layer == "AdditiveAttention":
        del arguments["score_mode"]
    return arguments


def dtype_name(dtype: Any) -> str:
    """A dtype's name from a name, a NumPy dtype, or a Keras policy or its config.

    Raises InputError for anything else.
    """
    if dtype is None:
        return "float32"
    if isinstance(dtype, Mapping):
        inner = cast("Mapping[str, Any]", dtype).get("config")
        name = cast("Mapping[str, Any]", inner).get("name") if isinstance(inner, Mapping) else None
        if not isinstance(name, str):
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}; received {dtype!r}")
        return name
    if isinstance(dtype, str):
        return dtype
    name = getattr(dtype, "name", None)
    if isinstance(name, str) and name in DTYPES:
        return name
    try:
        return np.dtype(dtype).name
    except TypeError as error:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}; received {dtype!r}") from error


def seed_number(seed: Any) -> int | None:
    """A seed; Keras 3 may save its seed generator's config in place of the number.

    Raises InputError for a config that is none of a seed generator.
    """
    if not isinstance(seed, Mapping):
        return seed
    inner = cast("Mapping[str, Any]", seed).get("config")
    if not isinstance(inner, Mapping) or "seed" not in inner:
        raise InputError(f"seed must be an integer or None; received {seed!r}")
    return cast("Mapping[str, Any]", inner)["seed"]

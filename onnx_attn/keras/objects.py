"""Keras objects as a model's configuration writes them down.

A configuration is data: class names are compared, never imported, and what a class unknown here
would do (a Lambda's code above all) is not asked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

Json = dict[str, Any]

KERAS_MODULES = ("keras", "tf_keras")

# Configurations of Keras 2 up to 2.12 do not tell Keras's own classes from a user's. These are
# Keras's, and all but Embedding with mask_zero make no mask of their own.
KERAS_CLASSES = frozenset(
    """
    InputLayer Functional Model Sequential Dense Activation ReLU LeakyReLU PReLU ELU Softmax
    Dropout SpatialDropout1D SpatialDropout2D GaussianNoise GaussianDropout AlphaDropout Flatten
    Reshape Permute RepeatVector Add Subtract Multiply Average Maximum Minimum Concatenate Dot
    Attention AdditiveAttention MultiHeadAttention BatchNormalization LayerNormalization
    UnitNormalization Embedding LSTM GRU SimpleRNN RNN Bidirectional TimeDistributed Conv1D
    Conv2D SeparableConv1D DepthwiseConv1D Conv1DTranspose MaxPooling1D MaxPooling2D
    AveragePooling1D AveragePooling2D GlobalMaxPooling1D GlobalMaxPooling2D
    GlobalAveragePooling1D GlobalAveragePooling2D ZeroPadding1D Cropping1D UpSampling1D Rescaling
    TextVectorization StringLookup IntegerLookup Normalization
    """.split()  # noqa: SIM905  a list of one name a line would fill the page
)


@dataclass(frozen=True)
class Step:
    """One step from a Keras object to a part of it, as its weights file names them.

    Attributes:
        attribute: the attribute that holds the part: "layers" of a model, "layer" of a wrapper.
        group: the part's class in snake case where the attribute is a list, else None.
        position: the part's place among those of its class in the list, from 0.
        alike: how many of that class the list holds.
    """

    attribute: str
    group: str | None
    position: int
    alike: int


def is_object(value: object) -> bool:
    """True for the dict Keras makes of a layer, model, initializer or policy."""
    if not isinstance(value, dict):
        return False
    entry = cast("Json", value)
    return isinstance(entry.get("class_name"), str) and isinstance(entry.get("config"), dict)


def parts(entry: Json) -> Iterator[tuple[Json, Step]]:
    """The objects an object's config holds, each with the step that leads to it."""
    for attribute, value in cast("Json", entry["config"]).items():
        if is_object(value):
            yield value, Step(attribute, None, 0, 1)
        elif isinstance(value, list):
            items = cast("list[Any]", value)
            objects = [cast("Json", item) for item in items if is_object(item)]
            groups = [snake_case(part["class_name"]) for part in objects]
            alike, seen = Counter(groups), Counter[str]()
            for part, group in zip(objects, groups, strict=True):
                yield part, Step(attribute, group, seen[group], alike[group])
                seen[group] += 1


def name_of(entry: Json) -> str:
    """An object's name; its class in snake case where it has none."""
    name = entry["config"].get("name") or entry.get("name")
    return name if isinstance(name, str) else snake_case(entry["class_name"])


def is_functional(entry: Json) -> bool:
    """True for a model that names its inputs, whatever its class."""
    return "input_layers" in entry["config"]


def is_known(entry: Json) -> bool:
    """Whether the class is Keras's own."""
    if "module" in entry:
        module = entry["module"]
        return isinstance(module, str) and module.split(".")[0] in KERAS_MODULES
    return entry["class_name"] in KERAS_CLASSES


def sources(value: object) -> Iterator[str]:
    """The layers whose outputs stand in the calls `value`, an object's inbound_nodes or a part."""
    if isinstance(value, dict):
        entry = cast("Json", value)
        history = entry.get("keras_history")  # Keras 3
        if isinstance(history, list) and history:
            yield str(cast("list[Any]", history)[0])
        else:
            for item in entry.values():
                yield from sources(item)
    elif isinstance(value, list):
        items = cast("list[Any]", value)
        if len(items) > 2 and isinstance(items[0], str) and type(items[1]) is int:  # Keras 2
            yield items[0]
            yield from sources(items[3:])
        else:
            for item in items:
                yield from sources(item)


def snake_case(class_name: str) -> str:
    """A class name as weights files spell it: AdditiveAttention, additive_attention."""
    name = re.sub(r"\W+", "", class_name.rpartition(">")[2])
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()

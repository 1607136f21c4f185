"""The attention layers a Keras model's configuration names, and how the model calls them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, cast, get_args

from ..configuration import LayerClass, LayerConfig
from ..errors import InputError, ModelError
from ..layer.arguments import layer_config
from .masks import mask_carriers
from .objects import Json, Step, is_functional, is_known, is_object, name_of, parts, sources

ATTENTION_CLASSES = get_args(LayerClass)
# More than any model has. A hostile one would cost time that grows with their products.
MOST_LAYERS, DEEPEST = 1_000, 32
# The order of a call's positional arguments, the same in Keras 2 and 3.
CALL_ARGUMENTS = ("inputs", "mask", "training", "return_attention_scores", "use_causal_mask")


class Call(NamedTuple):
    """One call of an attention layer in a saved model.

    `masks` says of query and value whether a mask reaches the layer: one the call names or, where
    it names none, one that may travel with the tensor.
    """

    key: bool
    masks: tuple[bool, bool]
    return_attention_scores: bool
    use_causal_mask: bool


@dataclass(frozen=True)
class FoundLayer:
    """An attention layer in a model's configuration.

    Attributes:
        path: layer names from the model down, "outer/inner".
        config: its class and arguments.
        calls: how the model calls it; empty where the configuration does not say.
        steps: where its weights lie in a weights file of Keras objects.
        shared: the id that marks one layer standing in several models, or None.
        guessed: it lies in a class unknown here, so that `steps` may be wrong.
    """

    path: str
    config: LayerConfig
    calls: tuple[Call, ...]
    steps: tuple[Step, ...]
    shared: int | None
    guessed: bool

    @property
    def weight_names(self) -> tuple[str, ...]:
        """Its weights, in Keras's order."""
        return self.config.weight_names


def find_layers(model: object, where: str) -> list[FoundLayer]:
    """The attention layers in a model's configuration, in the model's order.

    Args:
        model: what `model.to_json()` or `model.get_config()` holds, or config.json of a `.keras`.
        where: the file's name, for messages.

    Raises:
        ModelError: this is no configuration of a Keras model, or two layers have one path.
    """
    if isinstance(model, dict):
        found = cast("Json", model)
        if "layers" in found and "class_name" not in found:
            found = {"class_name": "Functional", "config": found}
        if is_object(found):
            try:
                return _find(found, where)
            except RecursionError as error:
                raise ModelError(f"{where}: its configuration is nested too deeply") from error
    raise ModelError(
        f"{where} holds no configuration of a Keras model: expected a JSON object with class_name "
        "and config, as model.to_json() gives it"
    )


def _find(model: Json, where: str) -> list[FoundLayer]:
    walk = _walk(model, (), (), guessed=False, masked=False, where=where)
    layers = list(islice(walk, MOST_LAYERS + 1))
    if len(layers) > MOST_LAYERS:
        raise ModelError(f"{where}: over {MOST_LAYERS} attention layers: refused")
    twice = [path for path, times in Counter(layer.path for layer in layers).items() if times > 1]
    if twice:
        raise ModelError(f"{where}: two attention layers are called {twice[0]!r}")
    return layers


def _walk(
    entry: Json,
    names: tuple[str, ...],
    steps: tuple[Step, ...],
    *,
    guessed: bool,
    masked: bool,
    where: str,
) -> Iterator[FoundLayer]:
    """The attention layers inside an object; `masked`: a mask may come in with its inputs."""
    if len(names) > DEEPEST:
        raise ModelError(f"{where}: its configuration is nested too deeply")
    carriers = mask_carriers(entry, masked)
    for part, step in parts(entry):
        name = name_of(part)
        path, below = (*names, name), (*steps, step)
        # A model's `layers` and a wrapper's `layer` are attributes by these names in every Keras.
        known = is_known(entry) or is_functional(entry)
        unsure = guessed or not known or step.attribute not in ("layers", "layer")
        if _is_attention(part):
            yield _layer(part, "/".join(path), below, carriers, guessed=unsure, where=where)
        else:
            inside = name in carriers
            yield from _walk(part, path, below, guessed=unsure, masked=inside, where=where)


def _is_attention(entry: Json) -> bool:
    if entry["class_name"] not in ATTENTION_CLASSES:
        return False
    if "module" in entry:
        return is_known(entry)
    # Keras 2 up to 2.12 names no module; many users have a class Attention of their own.
    return "use_scale" in entry["config"]


def _layer(
    entry: Json,
    path: str,
    steps: tuple[Step, ...],
    carriers: Container[str],
    *,
    guessed: bool,
    where: str,
) -> FoundLayer:
    try:
        calls = tuple(_call(node, carriers) for node in entry.get("inbound_nodes") or ())
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{where}: the configuration of layer {path!r} is damaged") from error
    try:
        config = layer_config(entry["class_name"], entry["config"])
    except InputError as error:
        raise ModelError(f"{where}: layer {path!r}: {error}") from error
    shared = entry.get("shared_object_id")
    return FoundLayer(
        path=path,
        config=config,
        calls=calls,
        steps=steps,
        shared=shared if isinstance(shared, int) else None,
        guessed=guessed,
    )


def _call(node: Any, carriers: Container[str]) -> Call:
    given, tensors = _arguments(node)
    mask = given.get("mask")
    if isinstance(mask, list):
        entries = cast("list[Any]", mask)
        masks = (entries[0] is not None, entries[1] is not None)
    else:
        query, value = (any(s in carriers for s in sources([tensor])) for tensor in tensors[:2])
        masks = (query, value)
    return Call(
        key=len(tensors) > 2,
        masks=masks,
        return_attention_scores=bool(given.get("return_attention_scores")),
        use_causal_mask=bool(given.get("use_causal_mask")),
    )


def _arguments(node: Any) -> tuple[Json, Sequence[Any]]:
    """A call's arguments by name, and its input tensors."""
    if isinstance(node, dict):  # Keras 3: {"args": [...], "kwargs": {...}}
        saved = cast("Json", node)
        given = dict(zip(CALL_ARGUMENTS, saved["args"], strict=False)) | saved["kwargs"]
        return given, given["inputs"]
    # Keras 2: for each tensor [layer, node, output, keyword arguments of the call]
    tensors = cast("list[list[Any]]", node)
    return tensors[0][3] if len(tensors[0]) > 3 else {}, tensors

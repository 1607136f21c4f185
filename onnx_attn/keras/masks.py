"""Where a mask may travel along with a tensor, so that no call in the saved model names it.

Embedding and Masking make masks, and most layers hand on what they get. Only what surely carries
no mask is told apart; whatever is unknown may carry one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container
from typing import Any, cast

from .objects import Json, is_functional, is_known, name_of, parts, sources

# What Keras 2 writes in place of a layer's name for a tensor that is a constant.
CONSTANT = "_CONSTANT_VALUE"


class _AllBut:
    """Every name except some."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def __contains__(self, name: object) -> bool:
        return name not in self.names


def mask_carriers(entry: Json, masked: bool) -> Container[str]:
    """The names of an object's parts whose outputs may carry a mask.

    Args:
        entry: a model, or an object with layers in it.
        masked: a mask may come in with the object's inputs.
    """
    layers = {name_of(part): part for part, _ in parts(entry)}
    makers = {name for name, part in layers.items() if _makes_masks(part)}
    if not is_functional(entry):
        # A Sequential model or a wrapper: one part feeds the next.
        return _AllBut(set() if masked or makers else set(layers))
    consumers: defaultdict[str, list[str]] = defaultdict(list)
    carrying = makers
    for name, part in layers.items():
        if part["class_name"] == "InputLayer" and masked:
            carrying.add(name)
        for source in sources(part.get("inbound_nodes")):
            if source in layers:
                consumers[source].append(name)
            elif source != CONSTANT:
                carrying.add(name)
    waiting = list(carrying)
    while waiting:
        reached = set(consumers[waiting.pop()]) - carrying
        carrying |= reached
        waiting += reached
    return _AllBut(set(layers) - carrying)


def _makes_masks(entry: Json) -> bool:
    """Whether an object's outputs may carry a mask that its inputs do not."""
    kind = entry["class_name"]
    if not is_known(entry) or kind in ("Masking", "Lambda"):
        return True
    if kind == "Embedding" and entry["config"].get("mask_zero"):
        return True
    nodes = entry.get("inbound_nodes")
    calls = cast("list[Any]", nodes) if isinstance(nodes, list) else []
    if any(_names_a_mask(node, attention="Attention" in kind) for node in calls):
        return True
    return any(
        _makes_masks(part) for part, step in parts(entry) if step.attribute in ("layers", "layer")
    )


def _names_a_mask(node: Any, *, attention: bool) -> bool:
    """Whether a call names a mask that the layer may hand on; True where it cannot be read."""
    keywords = _keywords(node)
    if keywords is None:
        return True
    for name, value in keywords.items():
        if "mask" not in name or value is None or name == "use_causal_mask":
            continue
        # An attention layer hands on its query's mask alone.
        if not (attention and isinstance(value, list) and cast("list[Any]", value)[:1] == [None]):
            return True
    return False


def _keywords(node: Any) -> Json | None:
    """The keyword arguments of a call; None where they are not all of its arguments."""
    if isinstance(node, dict):  # Keras 3
        saved = cast("Json", node)
        tensors, keywords = saved.get("args"), saved.get("kwargs")
        alone = isinstance(tensors, list) and len(cast("list[Any]", tensors)) < 2
        return cast("Json", keywords) if alone and isinstance(keywords, dict) else None
    if not isinstance(node, list) or not node:
        return None
    first, *rest = cast("list[Any]", node)  # Keras 2
    if not isinstance(first, str):
        return _keywords(first)
    keywords: Any = rest[2] if len(rest) > 2 else {}
    return cast("Json", keywords) if isinstance(keywords, dict) else None

"""Which weights in a file belong to which layer, by the rules the file was written by."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ..arrays import Array
from ..errors import ModelError
from .hdf5 import HDF5, Dataset, Group
from .model_config import FoundLayer
from .objects import Step

Weights = dict[str, Array]

# What Keras 2.12 and 2.13 call a model's layers.
OLD_LAYERS = "_layer_checkpoint_dependencies"


def read_weights(file: HDF5, layers: Sequence[FoundLayer]) -> list[Weights | None]:
    """The weights of each layer, by name; None for a guessed layer that the file does not hold.

    Raises ModelError for a layout Keras does not write, weights that are missing or too many, and
    shapes that are not the layer's.
    """
    find = _finder(file, layers)
    found = [find(layer) if layer.weight_names else {} for layer in layers]
    arrays = [
        _of_the_same(layer, layers, found) if weights is None else weights
        for layer, weights in zip(layers, found, strict=True)
    ]
    for layer, weights in zip(layers, arrays, strict=True):
        if weights is None and not layer.guessed:
            raise ModelError(
                f"{file.where}: layer {layer.path!r} should have "
                f"{' and '.join(layer.weight_names)}, but the file holds no weights for it"
            )
        for name, weight in (weights or {}).items():
            _check_shape(file.where, layer, name, weight)
    return arrays


def _of_the_same(
    layer: FoundLayer, layers: Sequence[FoundLayer], found: Sequence[Weights | None]
) -> Weights | None:
    """The weights of a layer that stands in several models: saved once, with the first of them."""
    same = [
        weights
        for other, weights in zip(layers, found, strict=True)
        if weights and other.config.layer == layer.config.layer and _is_same(layer, other)
    ]
    return same[0] if len(same) == 1 else None


def _is_same(layer: FoundLayer, other: FoundLayer) -> bool:
    if layer.shared is not None:
        return layer.shared == other.shared
    # model.to_json() has no ids; a layer keeps its name, though.
    return layer.config == other.config


def _finder(file: HDF5, layers: Sequence[FoundLayer]) -> Callable[[FoundLayer], Weights | None]:
    named = file.group(file.root, "model_weights")
    named = file.root if named is None else named
    if any(file.has_attribute(named, name) for name in ("layer_names", "layer_names0")):
        return lambda layer: _by_name(file, named, layer, layers)
    if {"layers", OLD_LAYERS, "vars"} & set(file.names(file.root)):
        return lambda layer: _by_object(file, layer)
    raise ModelError(f"{file.where} is an HDF5 file, but holds no Keras weights")


def _by_object(file: HDF5, layer: FoundLayer) -> Weights | None:
    """Weights as Keras 3 and Keras 2.12 on write them: a group per object, numbered variables."""
    group: Group = file.root
    for step in layer.steps:
        group = _step(file, group, step) if group is not None else None
    variables = None if group is None else file.group(group, "vars")
    count = 0 if variables is None else len(file.names(variables))
    if variables is None or (not count and layer.guessed):
        return None
    if count != len(layer.weight_names):
        raise ModelError(
            f"{file.where}: layer {layer.path!r} should have {len(layer.weight_names)} weights "
            f"({', '.join(layer.weight_names)}); the file holds {count}. Was the model saved "
            "before the layer was built?"
        )
    return {
        name: file.array(file.member(variables, str(index)), f"{layer.path}/{name}")
        for index, name in enumerate(layer.weight_names)
    }


def _step(file: HDF5, group: Group, step: Step) -> Group | None:
    if step.group is None:
        return file.group(group, step.attribute)
    old = file.group(group, OLD_LAYERS) if step.attribute == "layers" else None
    if old is not None:
        # There a layer with weights takes two numbers and the second stays without a group.
        pattern = re.compile(re.escape(step.group) + r"(?:_(\d{1,9}))?")
        matches = [match for match in map(pattern.fullmatch, file.names(old)) if match]
        present = [match[0] for match in sorted(matches, key=lambda match: int(match[1] or 0))]
        return file.group(old, present[step.position]) if len(present) == step.alike else None
    name = f"{step.group}_{step.position}" if step.position else step.group
    return file.group(group, step.attribute, name)


def _by_name(
    file: HDF5, named: Group, layer: FoundLayer, layers: Sequence[FoundLayer]
) -> Weights | None:
    """Weights as .h5 files hold them: under the outermost layer, named after the inner one."""
    names = tuple(layer.path.split("/"))
    group = file.group(named, names[0])
    if group is None:
        return None
    beside = [other for other in layers if other.path.split("/")[0] == names[0]]
    candidates: dict[str, list[tuple[int, Dataset]]] = {}
    for path, dataset in file.datasets(group):
        weight = path[-1].split(":")[0]
        if weight in layer.weight_names:
            alike = _common_tail(path[:-1], names)
            # Keras 3.0 and 3.1 name the weight alone.
            alone = len(path) == 1 and sum(weight in other.weight_names for other in beside) == 1
            if alike or alone or len(names) == 1:
                candidates.setdefault(weight, []).append((alike, dataset))
    found: Weights = {}
    for name in layer.weight_names:
        best = max((alike for alike, _ in candidates.get(name, [])), default=-1)
        fits = [dataset for alike, dataset in candidates.get(name, []) if alike == best]
        if not fits:
            return None
        if len(fits) > 1:
            raise ModelError(
                f"{file.where}: {len(fits)} weights called {name} could belong to layer "
                f"{layer.path!r}. Save the model as .keras, which tells them apart"
            )
        found[name] = file.array(fits[0], f"{layer.path}/{name}")
    return found


def _common_tail(path: Sequence[str], names: Sequence[str]) -> int:
    """How many names at the end of both are the same."""
    count = 0
    for left, right in zip(reversed(path), reversed(names), strict=False):
        if left != right:
            break
        count += 1
    return count


def _check_shape(where: str, layer: FoundLayer, name: str, weight: Array) -> None:
    dims = layer.config.weight_dims(name)
    if weight.ndim != len(dims):
        expected = f"a vector [{', '.join(dims)}]" if dims else "a scalar"
        raise ModelError(
            f"{where}: weight {name} of layer {layer.path!r} should be {expected}; the file holds "
            f"shape {list(weight.shape)}"
        )

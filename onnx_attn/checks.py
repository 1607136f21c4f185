"""What the tensors given to a file must be: one readable error instead of a runtime's riddle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from .configuration import TensorSpec, numpy_dtype
from .errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]

MASK_OF = {"query_mask": ("query", "Tq"), "value_mask": ("value", "Tv")}


def as_array(spec: TensorSpec, value: object) -> Array:
    """`value` as an array of the spec's dtype; Python scalars become it, arrays must have it.

    Raises InputError for another dtype: files and sessions never cast.
    """
    dtype = numpy_dtype(spec.dtype)
    if isinstance(value, bool | int | float) and not spec.dims:
        if (spec.dtype == "bool") != isinstance(value, bool):
            raise InputError(f"{_expected(spec)}; received {value!r}")
        return np.array(value, dtype)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InputError(f"{_expected(spec)}; received {value!r}, which is no array") from error
    if array.dtype != dtype:
        raise InputError(
            f"{_expected(spec)}; received {_received(array)}. {_dtype_fix(spec, array)}"
        )
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return array


def _expected(spec: TensorSpec) -> str:
    return f"{spec.name}: expected {spec.dtype}[{', '.join(str(dim) for dim in spec.dims)}]"


def _received(array: Array) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _dtype_fix(spec: TensorSpec, array: Array) -> str:
    if array.dtype.kind not in "biuf" and array.dtype != numpy_dtype("bfloat16"):
        return "Give an array of numbers"
    if spec.dtype == "bfloat16":
        return f"Cast it: {spec.name}.astype(ml_dtypes.bfloat16)"
    fix = f"Cast it: {spec.name}.astype(np.{spec.dtype if spec.dtype != 'bool' else 'bool_'})"
    if spec.dtype.startswith("float") and array.dtype.name in ("float16", "float64"):
        fix += f", or export the layer with dtype='{array.dtype}'"
    return fix


def check_shapes(specs: Mapping[str, TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError unless the shapes fit each other and the specs.

    `shapes` holds those of `specs` that were given. Shared dim names must have one size; a mask
    may be [1 or batch, 1 or length].
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name, shape in shapes.items():
        spec = specs[name]
        if len(shape) != len(spec.dims):
            raise InputError(
                f"{_expected(spec)}; received shape {list(shape)} of rank {len(shape)}. "
                + _rank_fix(spec, shape)
            )
        for dim, size in zip(spec.dims, shape, strict=True):
            if isinstance(dim, int):
                if dim != size:
                    raise InputError(
                        f"{_expected(spec)}; received shape {list(shape)}. This file was exported "
                        f"with that dim fixed at {dim}"
                    )
                continue
            if name in MASK_OF:
                continue
            known, owner = sizes.setdefault(dim, (size, name))
            if known != size:
                raise InputError(
                    f"{_expected(spec)} with {dim}={known}, as in {owner}; received shape "
                    f"{list(shape)}. {_size_fix(dim, name, owner, shapes)}"
                )
    for name, (owner, _) in MASK_OF.items():
        if name in shapes:
            _check_mask(specs[name], shapes[name], owner, shapes[owner])


def _check_mask(
    spec: TensorSpec, shape: tuple[int, ...], owner: str, owner_shape: tuple[int, ...]
) -> None:
    batch, length = owner_shape[0], owner_shape[1]
    if shape[0] not in (1, batch) or shape[1] not in (1, length):
        raise InputError(
            f"{spec.name}: expected bool[{batch} or 1, {length} or 1], as {owner} is "
            f"{list(owner_shape)}; received shape {list(shape)}. A mask has one entry per "
            f"position of {owner}: [batch, length]; [[True]] means no mask"
        )


def _rank_fix(spec: TensorSpec, shape: tuple[int, ...]) -> str:
    if spec.name in MASK_OF:
        return "A mask is [batch, length]; [[True]] means no mask"
    if not spec.dims:
        return "Give a scalar"
    if len(shape) == 2 and len(spec.dims) == 3:
        return f"Add the batch axis: {spec.name}[None]"
    if len(shape) == 4:
        return f"Fold the leading axes: {spec.name}.reshape(-1, *{spec.name}.shape[-2:])"
    return f"Give an array of rank {len(spec.dims)}"


def _size_fix(dim: str, name: str, owner: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    key, value, query = shapes.get("key"), shapes.get("value"), shapes.get("query")
    if dim == "dim" and name == "key" and value is not None and query is not None:
        if len(value) == 3 and value[2] == query[2]:
            return "Are key and value swapped? The order is query, value, key"
        return "query and key must have the same last axis"
    if dim == "dim":
        return f"{owner} and {name} must have the same last axis"
    if dim == "Tv" and key is not None and value is not None:
        return "key and value must have the same length: one value for each key"
    return f"{owner} and {name} must have the same {dim}"


def known_names(given: Mapping[str, object], specs: Mapping[str, TensorSpec], what: str) -> None:
    """Raise InputError, listing the known names, for a name that is not in `specs`."""
    for name in given:
        if name not in specs:
            listed = ", ".join(specs)
            raise InputError(f"there is no {what} named {name!r}; {what}s of this file: {listed}")


def as_mapping(feeds: object) -> Mapping[str, object]:
    """`feeds` if it is a mapping of names to arrays; raises InputError otherwise."""
    if not isinstance(feeds, Mapping):
        raise InputError(
            f"feeds must be a dict of arrays by name, like {{'query': ..., 'value': ...}}; "
            f"received {type(feeds).__name__}"
        )
    return cast("Mapping[str, object]", feeds)

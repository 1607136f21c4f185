"""What the tensors given to a file must be: one readable error instead of a runtime's riddle.

The rule for arrays. Taken as they are: C-contiguous arrays of the file's dtype, read-only ones
and empty ones included. Copied first, the numbers unchanged: any other memory layout (slices,
transposes, negative or zero strides), the other byte order. Subclasses of ndarray and objects
that NumPy can read (lists, tensors of other libraries) count as the ndarray NumPy makes of them.
Refused: another dtype (nothing is ever cast, float64 above all), and masked arrays, whose mask
NumPy would drop without a word. Python scalars are taken where the file wants a scalar.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from ..arrays import Array, not_numbers_fix, shown, to_array
from ..configuration import numpy_dtype
from ..contract import TensorSpec
from ..errors import InputError

MASK_OF = {"query_mask": ("query", "Tq"), "value_mask": ("value", "Tv")}


def as_array(spec: TensorSpec, value: object) -> Array:
    """`value` as a C-contiguous array of the spec's dtype; Python scalars become it.

    Raises InputError for what the module's rule refuses.
    """
    dtype = numpy_dtype(spec.dtype)
    if type(value) in (bool, int, float) and not spec.dims:
        return _from_scalar(spec, value, dtype)
    array = to_array(spec.name, _expected(spec), value)
    if array.dtype != dtype:
        if array.dtype.newbyteorder("=") != dtype:
            raise InputError(
                f"{_expected(spec)}; received {_received(array)}. {_dtype_fix(spec, array, value)}"
            )
        array = array.astype(dtype)
    if not array.flags.c_contiguous:
        array = _contiguous(spec, array)
    return array


def _from_scalar(spec: TensorSpec, value: object, dtype: np.dtype[Any]) -> Array:
    if (spec.dtype == "bool") != isinstance(value, bool):
        fix = "Give True or False" if spec.dtype == "bool" else "Give a number"
        raise InputError(f"{_expected(spec)}; received {shown(value)}. {fix}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(value, dtype)
    except OverflowError as error:
        raise InputError(f"{_expected(spec)}; received {shown(value)}: too large") from error
    if dtype.kind != "b" and not np.isfinite(array) and np.isfinite(float(cast("float", value))):
        raise InputError(f"{_expected(spec)}; received {shown(value)}: too large for it")
    return array


def _contiguous(spec: TensorSpec, array: Array) -> Array:
    try:
        return np.ascontiguousarray(array)
    except (MemoryError, ValueError) as error:
        raise InputError(
            f"{_expected(spec)}; received {_received(array)} with strides {list(array.strides)}, "
            "and a contiguous copy does not fit into memory"
        ) from error


def _expected(spec: TensorSpec) -> str:
    return f"{spec.name}: expected {spec.dtype}[{', '.join(str(dim) for dim in spec.dims)}]"


def _received(array: Array) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _dtype_fix(spec: TensorSpec, array: Array, value: object) -> str:
    name = array.dtype.name
    if array.dtype.kind not in "biuf" and name != "bfloat16":
        return not_numbers_fix(spec.name, spec.dtype, value)
    wanted = {"bfloat16": "ml_dtypes.bfloat16", "bool": "np.bool_"}.get(
        spec.dtype, f"np.{spec.dtype}"
    )
    if not isinstance(value, np.ndarray):
        return f"Make it: np.asarray({spec.name}, {wanted})"
    fix = f"Cast it: {spec.name}.astype({wanted})"
    if spec.dtype != "bool" and name in ("float16", "bfloat16", "float32", "float64"):
        fix += f", or export the layer with dtype='{name}'"
    return fix


def check_shapes(
    specs: Mapping[str, TensorSpec],
    shapes: Mapping[str, tuple[int, ...]],
    fixed_dim: int | None = None,
) -> None:
    """Raise InputError unless the shapes fit each other and the specs.

    `shapes` holds those of `specs` that were given. Shared dim names must have one size; `dim` is
    at least 1; a mask may be [1 or batch, 1 or length], each axis of a bias 1 or that of the
    scores. `fixed_dim` is the length of a scale vector that the file holds.
    """
    sizes: dict[str, tuple[int, str]] = {}
    if fixed_dim is not None and "scale" not in shapes:
        sizes["dim"] = (fixed_dim, "the file's scale")
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
                        f"with that dim fixed at {dim}: give that size, or export with free dims"
                    )
                continue
            if name in MASK_OF or name == "bias":
                continue
            known, owner = sizes.setdefault(dim, (size, name))
            if known != size:
                raise InputError(
                    f"{_expected(spec)} with {dim}={known}, as in {owner}; received shape "
                    f"{list(shape)}. {_size_fix(dim, name, owner, shapes)}"
                )
    if sizes.get("dim", (1, ""))[0] == 0:
        # ONNX Runtime (1.31) leaves such scores unwritten, but for the first of the batch.
        raise InputError(
            f"{_expected(specs['query'])}; received shape {list(shapes['query'])}. "
            "Scores need at least one feature: dim must not be 0"
        )
    for name, (owner, _) in MASK_OF.items():
        if name in shapes:
            _check_mask(specs[name], shapes, owner)
    if "bias" in shapes:
        _check_bias(specs["bias"], shapes)


def _check_bias(spec: TensorSpec, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError unless each dim of the bias is 1 or that of the scores."""
    shape, query = shapes["bias"], shapes["query"]
    scores = (*query[:-1], shapes["value"][-2])
    if all(size in (1, wanted) for size, wanted in zip(shape, scores, strict=True)):
        return
    wanted = ", ".join(f"{size} or 1" for size in scores)
    raise InputError(
        f"bias: expected {spec.dtype}[{wanted}], as query is {list(query)} and value "
        f"{list(shapes['value'])}; received shape {list(shape)}. Each axis of a bias is 1 or that "
        "of the scores"
    )


def _check_mask(spec: TensorSpec, shapes: Mapping[str, tuple[int, ...]], owner: str) -> None:
    shape, owner_shape = shapes[spec.name], shapes[owner]
    if _fits(shape, owner_shape):
        return
    batch, length = owner_shape[0], owner_shape[-2]
    other, other_owner = ("query_mask", "query") if owner == "value" else ("value_mask", "value")
    if _fits(shape, shapes[other_owner]):
        fix = f"It fits {other_owner}: are {spec.name} and {other} swapped?"
    elif shape[0] == length and shape[1] == batch:
        fix = f"It is the other way round: give {spec.name}.T"
    else:
        fix = (
            f"A mask has one entry per position of {owner}: [batch, length]; [[True]] means no mask"
        )
    raise InputError(
        f"{spec.name}: expected bool[{batch} or 1, {length} or 1], as {owner} is "
        f"{list(owner_shape)}; received shape {list(shape)}. {fix}"
    )


def _fits(mask: tuple[int, ...], owner: tuple[int, ...]) -> bool:
    return mask[0] in (1, owner[0]) and mask[1] in (1, owner[-2])


def _rank_fix(spec: TensorSpec, shape: tuple[int, ...]) -> str:
    if spec.name in MASK_OF:
        if len(shape) == 3 and shape[1] == 1:
            return f"A mask is [batch, length]: give {spec.name}[:, 0]"
        return "A mask is [batch, length]; [[True]] means no mask"
    if not spec.dims:
        return f"Give a scalar: {spec.name}.item()" if shape == (1,) else "Give a scalar"
    if spec.name == "bias":
        return f"Give an array of rank {len(spec.dims)}; an axis of 1 serves all"
    if "heads" in spec.dims or len(spec.dims) == 4:
        if len(shape) == 3:
            return f"Add the axis of heads: {spec.name}[:, None], or export without heads"
        return f"Give an array of rank {len(spec.dims)}"
    if len(spec.dims) == 1:
        return f"Give a vector with one entry per feature: [{spec.dims[0]}]"
    if len(shape) == 2:
        return f"Add the batch axis: {spec.name}[None]"
    if len(shape) == 4:
        folded = f"{spec.name}.reshape(-1, *{spec.name}.shape[-2:])"
        return f"Fold the leading axes: {folded}; or export the layer with heads=True"
    if len(shape) > 3:
        return f"Fold the leading axes: {spec.name}.reshape(-1, *{spec.name}.shape[-2:])"
    return f"Give an array of rank {len(spec.dims)}"


def _size_fix(dim: str, name: str, owner: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    key, value, query = shapes.get("key"), shapes.get("value"), shapes.get("query")
    if dim == "dim" and name == "key" and value is not None and query is not None:
        if len(value) == len(query) and value[-1] == query[-1]:
            return "Are key and value swapped? The order is query, value, key"
        return "query and key must have the same last axis"
    if dim == "dim":
        return f"{owner} and {name} must have the same last axis"
    if dim == "Tv" and key is not None and value is not None:
        queries, keys, values = query and query[-2], key[-2], value[-2]
        if name == "key" and keys == queries != values:
            return "Are query and value swapped? The order is query, value, key"
        return "key and value must have the same length: one value for each key"
    return f"{owner} and {name} must have the same {dim}"


def known_names(given: Mapping[str, object], specs: Mapping[str, TensorSpec], what: str) -> None:
    """Raise InputError, listing the known names, for a name that is not in `specs`."""
    for name in given:
        if name not in specs:
            raise InputError(
                f"there is no {what} named {shown(name)}; {what}s of this file: {', '.join(specs)}"
            )


def as_mapping(feeds: object) -> Mapping[str, object]:
    """`feeds` if it is a mapping of names to arrays; raises InputError otherwise."""
    if type(feeds) is not dict and not isinstance(feeds, Mapping):  # the first test is cheap
        raise InputError(
            f"feeds must be a dict of arrays by name, like {{'query': ..., 'value': ...}}; "
            f"received {type(feeds).__name__}"
        )
    return cast("Mapping[str, object]", feeds)

"""The habits of a Keras attention call: lists in, any rank in, leading axes that broadcast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from ..arrays import Array, to_array
from ..errors import InputError


class Call(NamedTuple):
    """The tensors of one call, folded to rank 3, and the leading shape to unfold to."""

    tensors: dict[str, Array]
    leading: tuple[int, ...]

    def unfold(self, result: Array) -> Array:
        """`result` [batch, rows, columns] with the leading axes the caller had."""
        return result.reshape(self.leading + result.shape[-2:])


def check_inputs(layer: str, inputs: object) -> list[Any]:
    """`inputs` if it is a list of two or three; raises InputError in Keras's words otherwise."""
    if not isinstance(inputs, list):
        raise InputError(
            f"{layer} layer must be called on a list of inputs, namely [query, value] or "
            f"[query, value, key]. Received: {type(inputs).__name__}"
        )
    given = cast("list[Any]", inputs)
    if len(given) not in (2, 3):
        raise InputError(
            f"{layer} layer accepts inputs list of length 2 or 3, namely [query, value] or "
            f"[query, value, key]. Received length: {len(given)}"
        )
    return given


def check_mask(layer: str, mask: object) -> tuple[Any, Any]:
    """query_mask and value_mask of a mask list; a third entry is ignored, as in Keras."""
    if mask is None:
        return None, None
    if not isinstance(mask, list):
        raise InputError(
            f"{layer} layer mask must be a list, namely [query_mask, value_mask]. "
            f"Received: {type(mask).__name__}"
        )
    given = cast("list[Any]", mask)
    if len(given) not in (2, 3):
        raise InputError(
            f"{layer} layer mask must be a list of length 2 or 3, namely "
            f"[query_mask, value_mask] or [query_mask, value_mask, key_mask]. "
            f"Received length: {len(given)}"
        )
    return given[0], given[1]


def fold_call(layer: str, inputs: object, mask: object, dtype: np.dtype[Any]) -> Call:
    """Keras's inputs and mask as rank 3 tensors (masks rank 2) by the file's names.

    Args:
        layer: the class name, for messages.
        inputs: [query, value] or [query, value, key], each [..., T, dim], rank 2 or more.
        mask: None, or a list of query_mask [..., Tq] and value_mask [..., Tv], each may be None.
        dtype: the layer's; floats are cast to it, as Keras does.

    Raises:
        InputError: a list, dtype, rank or leading shape Keras would not take.
    """
    given = check_inputs(layer, inputs)
    masks = check_mask(layer, mask)
    floats = {
        name: _as_float(name, tensor, dtype)
        for name, tensor in zip(("query", "value", "key"), given, strict=False)
    }
    leading = _broadcast_leading(floats)
    tensors = {name: _fold(tensor, leading, 2) for name, tensor in floats.items()}
    for name, entry, owner in zip(
        ("query_mask", "value_mask"), masks, ("query", "value"), strict=True
    ):
        if entry is not None:
            tensors[name] = _fold_mask(name, entry, floats[owner], leading)
    return Call(tensors, leading)


def _as_float(name: str, tensor: object, dtype: np.dtype[Any]) -> Array:
    array = to_array(name, f"{name}: expected an array of floats", tensor)
    # ml_dtypes' floats have kind "V" or "f" depending on the type; the name is stable.
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise InputError(
            f"{name}: expected floats; received {array.dtype}{list(array.shape)}. "
            f"Cast it: {name}.astype('float32')"
        )
    if array.ndim < 2:
        raise InputError(
            f"{name}: expected [batch, length, dim] or another rank of 2 or more; received "
            f"shape {list(array.shape)}"
        )
    if array.dtype != dtype:
        # A number too large for a 16-bit layer becomes infinity, as in Keras.
        with np.errstate(over="ignore"):
            array = array.astype(dtype)
    return array


def _broadcast_leading(tensors: dict[str, Array]) -> tuple[int, ...]:
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    ranks = {len(shape) for shape in shapes.values()}
    try:
        if len(ranks) > 1:
            raise ValueError("ranks differ")
        return np.broadcast_shapes(*(shape[:-2] for shape in shapes.values()))
    except ValueError as error:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise InputError(
            f"the leading axes (batch) of query, value and key must be equal or 1, and their "
            f"ranks equal; received {listed}"
        ) from error


def _fold(array: Array, leading: Sequence[int], kept: int) -> Array:
    tail = array.shape[array.ndim - kept :]
    batch = int(np.prod(leading, dtype=np.int64))
    return np.broadcast_to(array, (*leading, *tail)).reshape(batch, *tail)


def _fold_mask(name: str, entry: object, owner: Array, leading: tuple[int, ...]) -> Array:
    length = owner.shape[-2]
    expected = f"{name}: expected bool{[*leading, length]}"
    mask = to_array(name, expected, entry)
    if mask.dtype != np.bool_:
        raise InputError(
            f"{expected}; received {mask.dtype}{list(mask.shape)}. Cast it: {name}.astype(bool)"
        )
    if name == "value_mask" and mask.ndim == owner.ndim and mask.shape[-2] == 1:
        mask = mask[..., 0, :]  # Keras 3 also takes [batch, 1, Tv]
    if not 1 <= mask.ndim <= owner.ndim - 1 or mask.shape[-1] not in (1, length):
        raise InputError(f"{expected}; received shape {list(mask.shape)}")
    if mask.ndim == 2 and len(leading) == 1 and mask.shape[0] in (1, leading[0]):
        return mask
    try:
        return _fold(mask, leading, 1)
    except ValueError as error:
        raise InputError(f"{expected}; received shape {list(mask.shape)}") from error

"""Masks that are known by the way they are made: a causal triangle, a key mask, or both.

Of such a mask no matrix need be made: the walk takes causal and the key mask as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from .dims import Dims, Size, Sizes, equal
from .expressions import LARGEST_TABLE, Choice, Expression, Number, uniform
from .normal import constant
from .scores import HIDDEN_BELOW

SEE_THROUGH = ("Cast", "Identity", "Unsqueeze", "Reshape", "Squeeze")


@dataclass(frozen=True)
class Masks:
    """0 where a key is seen, `penalty` where causal or the key mask hide it.

    key_mask: bool, True where a key may be seen, [batch or 1, ..1.., Tv]; turned: it is the
    opposite. None where all keys may be.
    """

    penalty: float
    causal: bool
    key_mask: ir.Value | None
    turned: bool = False


def known_masks(
    bias: Expression, dims: Dims, queries: Size | None, keys: Size | None
) -> Masks | None:
    """The masks that a bias for scores [.., queries, keys] is known to be; None if it is others."""
    if queries is None or keys is None:
        return None
    shown: list[tuple[ir.Value, bool]] = []
    penalty = _conditions(bias, shown)
    if penalty is None:
        return None
    causal, key_mask = False, None
    for value, truth in shown:
        sizes = dims.of(value)
        if sizes is None:
            return None
        if truth and _always(value, dims):
            continue
        if _by_key(sizes, keys):
            if key_mask is not None:
                return None
            key_mask = (value, truth)
        elif len(sizes) >= 2 and equal(sizes[-2], queries) and equal(sizes[-1], keys):
            if any(size != 1 for size in sizes[:-2]):
                return None
            if _triangle(value, dims) != (1 if truth else -1):
                return None
            causal = True
        else:
            return None
    if key_mask is None:
        return Masks(penalty, causal, None)
    return Masks(penalty, causal, key_mask[0], not key_mask[1])


def hides_nothing(bias: Expression, dims: Dims, queries: Size | None, keys: Size | None) -> bool:
    """Whether a mask is known to show every key to every query, as exporters write for no mask."""
    known = known_masks(bias, dims, queries, keys)
    return known is not None and not known.causal and known.key_mask is None


def _always(value: ir.Value, dims: Dims) -> bool:
    """Whether a value is `number of the row >= 0`, which transformers writes for no mask."""
    node = value.producer()
    if node is None or node.op_type != "GreaterOrEqual" or None in node.inputs:
        return False
    first, second = (v for v in node.inputs if v is not None)
    index, number = _index(first, dims), uniform(second)
    return index is not None and number is not None and index[1] >= number


def _by_key(sizes: Sizes, keys: Size) -> bool:
    """Whether a mask is of keys alone: [batch or 1, 1.., Tv]."""
    return len(sizes) >= 3 and equal(sizes[-1], keys) and all(size == 1 for size in sizes[1:-1])


def _conditions(bias: Expression, shown: list[tuple[ir.Value, bool]]) -> float | None:
    """The penalty of a bias that is 0 where all of `shown` hold; None for others."""
    if not isinstance(bias, Choice):
        return None
    for kept, hides, truth in ((bias.chosen, bias.other, True), (bias.other, bias.chosen, False)):
        if not isinstance(hides, Number) or not hides.number < HIDDEN_BELOW:
            continue
        if isinstance(kept, Choice):
            if _conditions(kept, shown) != hides.number:
                return None
        elif kept != Number(0.0):
            return None
        return hides.number if _atoms(bias.condition, truth, shown) else None
    return None


def _atoms(value: ir.Value, truth: bool, shown: list[tuple[ir.Value, bool]]) -> bool:
    """Adds what must hold for `value` to be `truth`, each once; False where that is no And."""
    if uniform(value) is not None:
        return bool(uniform(value)) == truth
    node = value.producer()
    if node is not None and node.domain == "" and None not in node.inputs:
        inputs = [v for v in node.inputs if v is not None]
        if node.op_type == "Not":
            return _atoms(inputs[0], not truth, shown)
        if node.op_type == ("And" if truth else "Or"):
            return all(_atoms(v, truth, shown) for v in inputs)
        if node.op_type in ("Cast", "Identity") and inputs[0].dtype == ir.DataType.BOOL:
            return _atoms(inputs[0], truth, shown)
        if node.op_type == "Expand" and inputs[0].dtype == ir.DataType.BOOL:
            return _atoms(inputs[0], truth, shown)
    if (value, truth) not in shown:
        shown.append((value, truth))
    return True


def _triangle(value: ir.Value, dims: Dims) -> int:
    """1 where a matrix is True (or not 0) for j <= i, -1 where it is for j > i, 0 for others."""
    node = value.producer()
    known: Any = constant(value)
    if known is not None:
        return _stored(known)
    if node is None or node.domain != "" or not node.inputs or node.inputs[0] is None:
        return 0
    kind, first = node.op_type, node.inputs[0]
    second = node.inputs[1] if len(node.inputs) > 1 else None
    if kind in SEE_THROUGH:
        inner, outer = dims.of(first), dims.of(value)
        if inner is None or outer is None or min(len(inner), len(outer)) < 2:
            return 0
        kept = all(equal(inner[axis], outer[axis]) for axis in (-2, -1))
        return _triangle(first, dims) if kept else 0
    if kind == "Not":
        return -_triangle(first, dims)
    if kind == "Trilu":
        return _trilu(node, first, second)
    if kind == "Slice":
        return _cut(node, first)
    if second is None:
        return 0
    if kind == "Equal":
        for one, other in ((first, second), (second, first)):
            number = uniform(other)
            if number is not None and number in (0.0, 1.0):
                found = _triangle(one, dims)
                return found if number else -found
        return 0
    if kind in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        if kind == "Greater" and uniform(second) == 0.0 and first.dtype != ir.DataType.BOOL:
            return _triangle(first, dims)
        return _compared(kind, _index(first, dims), _index(second, dims))
    return 0


def _stored(known: Any) -> int:
    if known.ndim < 2 or known.size > LARGEST_TABLE or known.shape[-1] != known.shape[-2]:
        return 0
    if known.size != known.shape[-1] ** 2 or known.dtype.kind not in "biuf":
        return 0
    matrix = known.reshape(known.shape[-2:]) != 0
    if known.dtype.kind == "f" and not np.isin(known, (0.0, 1.0)).all():
        return 0
    size = len(matrix)
    if np.array_equal(matrix, np.tri(size, dtype=np.bool_)):
        return 1
    return -1 if np.array_equal(matrix, ~np.tri(size, dtype=np.bool_)) else 0


def _trilu(node: ir.Node, first: ir.Value, offset: ir.Value | None) -> int:
    known: Any = np.zeros(1) if offset is None else constant(offset)
    if known is None or uniform(first) != 1.0:
        return 0
    attribute = node.attributes.get("upper")
    upper = attribute is None or bool(attribute.as_int())
    diagonal = int(known.reshape(-1)[0])
    if upper:
        return -1 if diagonal == 1 else 0
    return 1 if diagonal == 0 else 0


def _cut(node: ir.Node, first: ir.Value) -> int:
    """The upper left part of a stored triangle."""
    starts: Any = constant(node.inputs[1])
    axes: Any = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    steps: Any = constant(node.inputs[4]) if len(node.inputs) > 4 else np.ones(1)
    if starts is None or axes is None or steps is None or (starts != 0).any() or (steps != 1).any():
        return 0
    producer = first.producer()
    if producer is not None and producer.op_type == "Slice":
        return _cut(producer, producer.inputs[0]) if producer.inputs[0] is not None else 0
    known: Any = constant(first)
    return 0 if known is None else _stored(known)


def _index(value: ir.Value, dims: Dims) -> tuple[str, float] | None:
    """`row` or `column`, and by how much a value is more than the number of its row or column."""
    sizes, offset = dims.of(value), 0.0
    node = value.producer()
    while node is not None and node.domain == "" and node.inputs and node.inputs[0] is not None:
        kind, first = node.op_type, node.inputs[0]
        if kind == "CumSum":
            axis: Any = constant(node.inputs[1])
            plain = not any(
                name in node.attributes and node.attributes[name].as_int()
                for name in ("exclusive", "reverse")
            )
            if axis is None or not plain or uniform(first) != 1.0 or sizes is None:
                return None
            place = int(axis.reshape(-1)[0]) % len(sizes) - len(sizes)
            words = {-2: "row", -1: "column"}.get(place)
            return None if words is None else (words, offset + 1.0)
        if kind == "Range":
            start: Any = constant(first)
            delta: Any = constant(node.inputs[2])
            if start is None or delta is None or delta.item() != 1 or sizes is None:
                return None
            offset += float(start.item())
            if len(sizes) >= 2 and sizes[-1] == 1 and all(size == 1 for size in sizes[:-2]):
                return "row", offset
            return ("column", offset) if all(size == 1 for size in sizes[:-1]) else None
        if kind in ("Add", "Sub") and node.inputs[1] is not None:
            number = uniform(node.inputs[1])
            if number is None and kind == "Add" and uniform(first) is not None:
                number, first = uniform(first), node.inputs[1]
            if number is None:
                return None
            offset += number if kind == "Add" else -number
        elif kind not in SEE_THROUGH:
            return None
        node = first.producer()
    return None


def _compared(kind: str, left: tuple[str, float] | None, right: tuple[str, float] | None) -> int:
    """What comparing two indexes gives: see `_triangle`."""
    if left is None or right is None or left[0] == right[0]:
        return 0
    if left[0] == "column":
        turned = {
            "Greater": "Less",
            "GreaterOrEqual": "LessOrEqual",
            "Less": "Greater",
            "LessOrEqual": "GreaterOrEqual",
        }
        left, right, kind = right, left, turned[kind]
    # i + left >= j + right where j <= i + shift
    shift = left[1] - right[1]
    if kind == "GreaterOrEqual":
        return 1 if shift == 0 else 0
    if kind == "Greater":
        return 1 if shift == 1 else 0
    if kind == "Less":
        return -1 if shift == 0 else 0
    return -1 if shift == 1 else 0

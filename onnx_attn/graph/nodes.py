"""Small nodes for graphs and bodies alike: a body holds the constants it uses, as nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir


def ints(op: Any, *numbers: int) -> Any:
    """A constant int64[n]."""
    return op.Constant(value_ints=list(numbers))


def one_number(op: Any, number: float, dtype: ir.DataType) -> Any:
    """A constant scalar."""
    return op.Constant(value=ir.tensor(np.array(number, dtype.numpy())))


def numbered(op: Any, count: Any) -> Any:
    """0, 1, .. count - 1: int64[count]."""
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    return op.Range(zero, op.Squeeze(count), one, _outputs=["numbers"])


def sliced(op: Any, tensor: Any, begin: int, end: int, axis: int) -> Any:
    """`tensor` from `begin` to before `end` of one axis."""
    return op.Slice(tensor, ints(op, begin), ints(op, end), ints(op, axis))


def reduced(op: Any, kind: str, tensor: Any, axis: int, keepdims: int) -> Any:
    """ReduceMax or ReduceMin over one axis, which is an attribute before opset 18."""
    if op.version < 18:
        return getattr(op, kind)(tensor, axes=[axis], keepdims=keepdims)
    return getattr(op, kind)(tensor, ints(op, axis), keepdims=keepdims)


def view(name: str, dtype: ir.DataType, *dims: str | int) -> ir.Value:
    """A declaration of a body's input or output."""
    return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype))


def parts_of(op: Any, numbers: Any, columns: dict[str, int]) -> dict[str, Any]:
    """The numbers of one block by name: int64[width] each."""
    sizes = ints(op, *columns.values())
    parts = op.Split(numbers, sizes, axis=0, _outputs=list(columns))
    return dict(zip(columns, parts, strict=True))

"""Numbers that are known when the file is written, or else asked in the graph.

A `Size` is an int or an int64[1] of the graph, a `Truth` a bool or a bool of the graph. Each
function computes at once what it can, and writes a node for the rest: so a file of fixed sizes
holds no arithmetic of shapes, and a question whose answer is known is not asked.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import onnx_ir as ir

from .builder import OpBuilder

Size = int | ir.Value
Truth = bool | ir.Value


def in_graph(size: Size) -> Any:
    """`size` as the input of a node: a list becomes a constant int64[1]."""
    return [size] if isinstance(size, int) else size


def scalar(op: OpBuilder, size: Size) -> Any:
    """`size` without its axis, for operators that want a scalar."""
    return size if isinstance(size, int) else op.Squeeze(size)


def vector(op: OpBuilder, *sizes: Size) -> Any:
    """`sizes` as one int64[n]: a shape, or bounds of a Slice.

    A single unknown size is not joined by Concat: ONNX Runtime takes a Reshape's only unknown for
    "what is left" (-1), which fits every batch and fails on empty tensors.
    """
    known = [size if isinstance(size, int) else 0 for size in sizes]
    unknown = [size for size in sizes if not isinstance(size, int)]
    if not unknown:
        return known
    if len(unknown) > 1 or len(sizes) == 1:
        return op.Concat(*(in_graph(size) for size in sizes), axis=0)
    place = op.Mul(unknown[0], [int(not isinstance(size, int)) for size in sizes])
    return op.Add(place, known) if any(known) else place


def add(op: OpBuilder, a: Size, b: Size, name: str = "sum") -> Size:
    """a + b."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if b == 0:
        return a
    return op.Add(in_graph(a), in_graph(b), _outputs=[name])


def sub(op: OpBuilder, a: Size, b: Size, name: str = "difference") -> Size:
    """a - b."""
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    if b == 0:
        return a
    return op.Sub(in_graph(a), in_graph(b), _outputs=[name])


def mul(op: OpBuilder, a: Size, b: Size, name: str = "product") -> Size:
    """a * b."""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if b == 1:
        return a
    return op.Mul(in_graph(a), in_graph(b), _outputs=[name])


def div(op: OpBuilder, a: Size, b: Size, name: str = "quotient") -> Size:
    """a // b, for b > 0."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    return op.Div(in_graph(a), in_graph(b), _outputs=[name])


def smaller(op: OpBuilder, *sizes: Size, name: str = "smallest") -> Size:
    """The smallest of `sizes`."""
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) == len(sizes):
        return min(known)
    return op.Min(*(in_graph(size) for size in sizes), _outputs=[name])


def larger(op: OpBuilder, *sizes: Size, name: str = "largest") -> Size:
    """The largest of `sizes`."""
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) == len(sizes):
        return max(known)
    return op.Max(*(in_graph(size) for size in sizes), _outputs=[name])


def less(op: OpBuilder, a: Size, b: Size, name: str) -> Truth:
    """a < b."""
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    return op.Less(in_graph(a), in_graph(b), _outputs=[name])


def equal(op: OpBuilder, a: Size, b: Size, name: str) -> Truth:
    """a == b."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return op.Equal(in_graph(a), in_graph(b), _outputs=[name])


def either(op: OpBuilder, *truths: Truth, name: str) -> Truth:
    """Whether any of `truths` holds."""
    if any(truth is True for truth in truths):
        return True
    asked = [truth for truth in truths if truth is not False]
    return reduce(lambda a, b: op.Or(a, b, _outputs=[name]), asked) if asked else False


def both(op: OpBuilder, *truths: Truth, name: str) -> Truth:
    """Whether all of `truths` hold."""
    if any(truth is False for truth in truths):
        return False
    asked = [truth for truth in truths if truth is not True]
    return reduce(lambda a, b: op.And(a, b, _outputs=[name]), asked) if asked else True

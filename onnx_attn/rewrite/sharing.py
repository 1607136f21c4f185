"""Lets masks of several layers that differ in nothing but how they ask for sizes become one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from ..graph.builder import OpBuilder
from .dims import Axis, Dims, Size
from .placing import move, new_builder
from .scores import parts
from .sites import Site


def share_masks(model: ir.Model, sites: Iterable[Site]) -> None:
    """Lets masks ask the model's inputs for sizes, not the scores of their layer.

    Nothing then holds on to the scores, and masks that differ by layer in nothing else become one.
    """
    dims = Dims(model)
    wanted: set[ir.Node] = set()
    for site in sites:
        for value in site.inner:
            wanted |= {usage.node for usage in value.uses() if usage.node.op_type == "Shape"}
        assert site.scores is not None
        wanted |= _shapes_before(parts(site.scores.bias))
    builder = new_builder(model)
    op: Any = OpBuilder(builder.op)
    for node in sorted(wanted, key=lambda node: str(node.name)):
        source = node.inputs[0]
        sizes = None if source is None or node.domain != "" else dims.vector(node.outputs[0])
        if not sizes or None in sizes or node.outputs[0].is_graph_output():
            continue
        pieces = [_size(op, model, size) for size in sizes if size is not None]
        vector = pieces[0] if len(pieces) == 1 else op.Concat(*pieces, axis=0)
        node.outputs[0].replace_all_uses_with(vector)
    move(builder, model, "sizes")
    passes.RemoveUnusedNodesPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)


def _shapes_before(values: Iterable[ir.Value]) -> set[ir.Node]:
    """The Shape nodes that `values` are computed with."""
    found, seen, waiting = set[ir.Node](), set[ir.Node](), list(values)
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type == "Shape":
            found.add(node)
        else:
            waiting += [value for value in node.inputs if value is not None]
    return found


def _size(op: Any, model: ir.Model, size: Size) -> Any:
    """A size as int64[1]."""
    if isinstance(size, int):
        return op.Constant(value=ir.tensor(np.array([size], np.int64)))
    if isinstance(size, Axis):
        value = next(value for value in model.graph.inputs if value.name == size.name)
        return op.Shape(value, start=size.axis, end=size.axis + 1)
    result = _size(op, model, size.sizes[0])
    for other in size.sizes[1:]:
        result = getattr(op, size.op)(result, _size(op, model, other))
    return result

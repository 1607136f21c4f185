"""The hand that writes nodes: onnxscript's `OpBuilder`, typed, and the subgraphs of If and Scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import onnx_ir as ir


class OpBuilder(Protocol):
    """What the schedules use of onnxscript's `OpBuilder`: `op.MatMul(a, b)` writes one node.

    Its own annotations leave open what an operator returns; an `ir.Value`, or several.
    """

    @property
    def builder(self) -> Any:
        """The GraphBuilder behind it."""
        ...

    def call_inline(self, function: Any, *args: Any, _outputs: Sequence[str]) -> Any:
        """The nodes of an onnxscript function, written here."""
        ...

    def __getattr__(self, name: str, /) -> Callable[..., Any]: ...


Results = tuple[ir.Value, ...]
"""The output and, where wanted, the attention scores: [batch, Tq, value_dim], [batch, Tq, Tv]."""

Form = Callable[[OpBuilder], Results]
"""One way to write the layer, or a part of it, into the graph at hand."""


def subgraph(
    op: OpBuilder,
    trace: Callable[..., Any],
    outputs: Sequence[ir.Value],
    inputs: Sequence[ir.Value] = (),
) -> ir.Graph:
    """A subgraph for If, Scan or Loop: `trace(op, *inputs)` writes its nodes."""
    made = op.builder.subgraph(trace, list(inputs), list(outputs), name=outputs[0].name)
    return cast("ir.Graph", made)


def branching(
    op: OpBuilder, condition: ir.Value, then: ir.Graph, otherwise: ir.Graph, names: Sequence[str]
) -> Results:
    """If(condition): what one of two subgraphs gives, under these names."""
    outputs = [
        ir.Value(name=name, type=one.type, shape=_of_both(one, other))
        for name, one, other in zip(names, then.outputs, otherwise.outputs, strict=True)
    ]
    branches = [ir.AttrGraph("else_branch", otherwise), ir.AttrGraph("then_branch", then)]
    return _control(op, "If", [condition], branches, outputs)


def scanned(
    op: OpBuilder, inputs: Sequence[ir.Value], body: ir.Graph, names: Sequence[str]
) -> Results:
    """Scan over the first axis of all inputs: what `body` gives for each place, stacked."""
    length = None if inputs[0].shape is None else inputs[0].shape[0]
    outputs = [
        ir.Value(
            name=name,
            type=one.type,
            shape=None if one.shape is None else ir.Shape([length, *one.shape]),
        )
        for name, one in zip(names, body.outputs, strict=True)
    ]
    attributes = [ir.AttrInt64("num_scan_inputs", len(inputs)), ir.AttrGraph("body", body)]
    return _control(op, "Scan", inputs, attributes, outputs)


def _control(
    op: OpBuilder,
    kind: str,
    inputs: Sequence[ir.Value],
    attributes: Sequence[ir.Attr],
    outputs: Sequence[ir.Value],
) -> Results:
    """A node with subgraphs, past onnxscript's inference.

    That would read all that lies in them once more at every level of nesting: half of an export's
    time, for types that the subgraphs declare.
    """
    node = ir.Node("", kind, inputs, attributes, outputs=outputs)
    op.builder.graph.append(node)
    return tuple(node.outputs)


def _of_both(one: ir.Value, other: ir.Value) -> ir.Shape | None:
    """What is known of a shape that is one of two."""
    if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
        return None
    dims = zip(one.shape, other.shape, strict=True)
    return ir.Shape([dim if dim == same else None for dim, same in dims])

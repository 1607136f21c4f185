"""The hand that writes nodes: onnxscript's builder, typed, and the subgraphs of If and Scan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, cast

import onnx_ir as ir

MARK = "~"
"""What separates a value's name from its number, until the graph is whole."""


class OpBuilder:
    """Writes nodes: `op.MatMul(a, b)` is one, in the graph at hand.

    onnxscript's own, but no two values have the same name while they are written. Its inference
    tells the inputs of a node apart by name, and takes the shape of one for that of another.
    """

    def __init__(self, op: Any, numbers: Iterator[int] | None = None) -> None:
        """`op`: onnxscript's; `numbers`: those of the graph around this one."""
        self._op = op
        self.numbers = count() if numbers is None else numbers

    @property
    def builder(self) -> Any:
        """The GraphBuilder behind it."""
        return self._op.builder

    @property
    def version(self) -> int:
        """The opset."""
        return self._op.version

    def distinct(self, name: str) -> str:
        """`name`, and what no other value has."""
        return f"{name}{MARK}{next(self.numbers)}"

    def call_inline(self, function: Any, *args: Any, _outputs: Sequence[str]) -> Any:
        """The nodes of an onnxscript function, written here."""
        names = [self.distinct(name) for name in _outputs]
        return self._op.call_inline(function, *args, _outputs=names)

    def __getattr__(self, kind: str, /) -> Callable[..., Any]:
        write = getattr(self._op, kind)

        def node(*inputs: Any, _outputs: Sequence[str] = (kind,), **attributes: Any) -> Any:
            names = [self.distinct(name) for name in _outputs]
            return write(*inputs, _outputs=names, **attributes)

        return node


def chosen_name(value: ir.Value) -> str:
    """The name that was chosen for what is being written.

    Builder and inliner put paths and "v_" before it, and `OpBuilder` a number after.
    """
    return (value.name or "").rsplit("/", 1)[-1].removeprefix("v_").split(MARK)[0]


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

    def traced(inner: Any, *given: ir.Value) -> Any:
        return trace(OpBuilder(inner, op.numbers), *given)

    made = op.builder.subgraph(traced, list(inputs), list(outputs), name=outputs[0].name)
    return cast("ir.Graph", made)


def branching(
    op: OpBuilder, condition: ir.Value, then: ir.Graph, otherwise: ir.Graph, names: Sequence[str]
) -> Results:
    """If(condition): what one of two subgraphs gives, under these names."""
    outputs = [
        ir.Value(name=op.distinct(name), type=one.type, shape=_of_both(one, other))
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
            name=op.distinct(name),
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

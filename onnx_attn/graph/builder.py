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

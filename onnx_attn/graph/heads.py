"""Heads as rows of the batch: [batch, heads, T, width] as [batch * heads, T, width] and back.

No data moves but that of masks, which every head of a batch row reads: [batch, T] becomes
[batch * heads, T], in bools.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx_ir as ir

from . import sizes
from .builder import OpBuilder, Results
from .guards import Rule, rule
from .steps import Steps

ROWS = "batch_and_heads"


def in_heads(op: OpBuilder, steps: Steps, write: Callable[[OpBuilder, Steps], Results]) -> Results:
    """What `write` makes of all heads as rows of the batch, in heads again."""
    return unfolded(op, steps.tensors.query, write(op, folded(op, steps)))


def as_rows(steps: Steps) -> Steps:
    """The same layer, whose results are declared with heads as rows of the batch."""
    known = {dim: size for dim, size in steps.known.items() if dim not in ("batch", "heads")}
    if steps.knows("batch", "heads"):
        known["batch"] = steps.known["batch"] * steps.known["heads"]
    return replace(steps, known=known, renamed={"batch": ROWS})


def folded(op: OpBuilder, steps: Steps) -> Steps:
    """The same layer on rank 3 tensors; batches or heads that differ are the runtime's error.

    Each tensor is reshaped to the smallest batch times the fewest heads of all: only equal ones
    fit, since any other has more elements.
    """
    tensors = steps.tensors
    every = dict.fromkeys((tensors.query, tensors.value, tensors.key))
    batch, heads = (
        known
        if (known := steps.known.get(name)) is not None
        else op.Min(*(op.Shape(tensor, start=axis, end=axis + 1) for tensor in every))
        for axis, name in enumerate(("batch", "heads"))
    )
    count = sizes.mul(op, batch, heads, ROWS)
    rows = as_rows(steps)

    def fold(tensor: ir.Value, name: str, length: str, width: str) -> ir.Value:
        last = op.Shape(tensor, start=2, end=4)
        shape = op.Concat(sizes.in_graph(count), last, axis=0)
        # A size of 0 is one, not "as before".
        flat = op.Reshape(tensor, shape, allowzero=1, _outputs=[f"{name}_rows"])
        flat.dtype, flat.shape = tensor.dtype, rows.shape("batch", length, width)
        return rule(flat, name, Rule.HEADS)

    def fold_mask(mask: ir.Value | None, name: str) -> ir.Value | None:
        if mask is None or (mask.shape is not None and mask.shape[0] == 1):
            return mask
        own = op.Shape(mask, start=0, end=1)
        # One row serves all heads as it is.
        times = op.Where(op.Equal(own, [1]), [1], sizes.in_graph(heads), _outputs=["mask_heads"])
        of_heads = op.Expand(op.Unsqueeze(mask, [1]), op.Concat([1], times, [1], axis=0))
        shape = op.Concat(op.Mul(own, times), op.Shape(mask, start=1, end=2), axis=0)
        flat = op.Reshape(of_heads, shape, allowzero=1, _outputs=[f"{name}_rows"])
        length = None if mask.shape is None else mask.shape[1]
        flat.dtype, flat.shape = mask.dtype, ir.Shape([None, length])
        return flat

    value = fold(tensors.value, "value", "Tv", "value_dim")
    shared = tensors.key is tensors.value
    return replace(
        rows,
        tensors=replace(
            tensors,
            query=fold(tensors.query, "query", "Tq", "dim"),
            value=value,
            key=value if shared else fold(tensors.key, "key", "Tv", "dim"),
            query_mask=fold_mask(tensors.query_mask, "query_mask"),
            value_mask=fold_mask(tensors.value_mask, "value_mask"),
        ),
    )


def unfolded(op: OpBuilder, query: ir.Value, results: Results) -> Results:
    """Results by rows, [batch * heads, Tq, width], in the heads of `query`."""
    lead = op.Shape(query, start=0, end=2, _outputs=["batch_and_heads_of_query"])
    whole: list[ir.Value] = []
    for result in results:
        shape = op.Concat(lead, op.Shape(result, start=1, end=3), axis=0)
        whole.append(op.Reshape(result, shape, allowzero=1, _outputs=["in_heads"]))
    return tuple(whole)

"""Heads as rows of the batch: [batch, heads, T, width] as [batch * heads, T, width] and back.

No data moves but that of masks, which every head of a batch row reads: [batch, T] becomes
[batch * heads, T], in bools.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from . import sizes
from .builder import OpBuilder, Results
from .guards import PENALTY, Rule, rule
from .sizes import Size
from .steps import Steps

ROWS = "batch_and_heads"


def as_rows(steps: Steps) -> Steps:
    """The same layer, whose results are declared with heads as rows of the batch."""
    known = {dim: size for dim, size in steps.known.items() if dim not in ("batch", "heads")}
    if steps.knows("batch", "heads"):
        known["batch"] = steps.known["batch"] * steps.known["heads"]
    return replace(steps, known=known, renamed={"batch": ROWS})


def folded(op: OpBuilder, steps: Steps) -> Steps:
    """The same layer on rank 3 tensors; batches or heads that differ are the runtime's error.

    Each tensor is reshaped to as many rows as all of them have, or else to less than none.
    """
    tensors = steps.tensors
    rows = as_rows(steps)
    heads: Size
    if steps.knows("batch", "heads"):
        heads, count = steps.known["heads"], rows.known["batch"]
    else:
        every = dict.fromkeys((tensors.query, tensors.value, tensors.key))
        leads = [op.Shape(tensor, start=0, end=2) for tensor in every]
        fewest = op.Min(*leads, _outputs=["fewest"])
        heads = op.Slice(fewest, [1], [2], _outputs=["head_count"])
        differences = op.Sub(op.Max(*leads), fewest, _outputs=["differences"])
        penalty = op.Mul(op.ReduceSum(differences), PENALTY, _outputs=["penalty"])
        count = op.Sub(op.ReduceProd(fewest), penalty, _outputs=[ROWS])

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
        times = sizes.in_graph(heads)
        if not steps.knows("heads"):
            # Among no heads every number of rows makes none.
            batch = op.Shape(tensors.query, start=0, end=1)
            times = op.Where(op.Equal(own, batch), times, op.Constant(value_ints=[-2]))
        # One row serves all heads as it is.
        times = op.Where(op.Equal(own, [1]), [1], times, _outputs=["mask_heads"])
        of_heads = op.Expand(op.Unsqueeze(mask, [1]), op.Concat([1], times, [1], axis=0))
        rule(of_heads, name, Rule.BATCHES)
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

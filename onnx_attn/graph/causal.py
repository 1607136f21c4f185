"""Causal attention without masks: blocks of queries that span the batch.

A block reads the keys before it and the keys beside it. Only the square beside it holds hidden
pairs, always the same ones, so the causal bias is one triangle for all blocks and is added to that
square alone.
"""

from __future__ import annotations

import onnx_ir as ir

from . import functions
from .guards import guarded
from .pieces import Steps, subgraph
from .thresholds import HIDDEN, query_length


def causal_blocks(op, steps: Steps, block):
    """The output [batch, Tq, value_dim], where Tq is a multiple of `block` and at most Tv."""
    steps, batch, _ = guarded(op, steps)
    query, key, value = steps.tensors.query, steps.tensors.key, steps.tensors.value
    queries = query_length(op, steps)
    query_dim = op.Shape(query, start=2, end=3, _outputs=["dim_size"])
    value_dim = op.Shape(value, start=2, end=3, _outputs=["value_dim_size"])
    starts = op.Range(0, op.Squeeze(queries), op.Squeeze(block))
    starts = op.Unsqueeze(starts, [1], _outputs=["block_starts"])
    ends = op.Add(starts, block, _outputs=["block_ends"])
    triangle = causal_triangle(op, steps, block)
    query = steps.prepare_query(op, query)
    query = op.Reshape(query, op.Concat(batch, [-1], block, query_dim, axis=0))
    blocks = op.Transpose(query, perm=[1, 0, 2, 3], _outputs=["query_blocks"])

    def body(op, query, start, end):
        before = op.Slice(key, [0], start, [1], _outputs=["keys_before"])
        beside = op.Slice(key, start, end, [1], _outputs=["keys_beside"])
        square = op.Add(steps.scores(op, query, beside), triangle, _outputs=["scores_beside"])
        scores = op.Concat(
            steps.scores(op, query, before), square, axis=2, _outputs=["scores_masked"]
        )
        weights = op.call_inline(functions.softmax_weights, scores, _outputs=["weights"])
        weights = steps.drop(op, weights)
        seen = op.Slice(value, [0], end, [1], _outputs=["values_seen"])
        return op.call_inline(functions.weighted_sum, weights, seen, _outputs=["attended"])

    int64 = ir.TensorType(ir.DataType.INT64)
    attended = op.Scan(
        blocks,
        starts,
        ends,
        body=subgraph(
            op,
            body,
            [steps.value_named("attended_block", "batch", "block", "value_dim")],
            [
                steps.value_named("query_block", "batch", "block", "dim"),
                ir.Value(name="block_start", shape=ir.Shape([1]), type=int64),
                ir.Value(name="block_end", shape=ir.Shape([1]), type=int64),
            ],
        ),
        num_scan_inputs=3,
        _outputs=["attended_blocks"],
    )
    rows = op.Transpose(attended, perm=[1, 0, 2, 3], _outputs=["attended_rows"])
    shape = op.Concat(batch, queries, value_dim, axis=0)
    return (op.Reshape(rows, shape, _outputs=["attended"]),)


def causal_triangle(op, steps, block):
    """The causal bias of the keys beside a block, as many as its queries: [block, block]."""
    hidden = op.Expand(steps.number(op, HIDDEN), op.Concat(block, block, axis=0))
    return op.Trilu(hidden, op.Constant(value_int=1), upper=1, _outputs=["causal_triangle"])

"""The walk over a bias: blocks of queries against the keys that the bias lets them see.

For each block of queries the bias itself gives three numbers, once per bias and run: `first` and
`last`, the keys that some query of the block may see, and `open_end`, up to where (from `first`
on) the bias is 0 for all of its queries, so that nothing need be added there. A block with a query
that sees no key reads every key and adds the bias as it stands: NaN stays NaN, uniform stays
uniform.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

# A key counts as hidden where the bias is below this: exp(-9000) is 0 beside any other key.
HIDDEN_BELOW = -9000.0
LAST = 2**31 - 1
INT64 = ir.TensorType(ir.DataType.INT64)
FLOAT = ir.TensorType(ir.DataType.FLOAT)
INT32, BOOL = int(ir.DataType.INT32), int(ir.DataType.BOOL)


def bias_facts(op: Any, bias: Any, query_length: Any, key_length: Any, block: Any) -> Any:
    """first, open_end and last of every block: int64[blocks, rows, 3].

    bias: float [bias_batch, bias_heads, bias_Tq, Tv]; rows = bias_batch * bias_heads; query_length
    (the bias's own: 1 where one row serves all queries), key_length, block: int64[1].
    """
    starts = _starts(op, query_length, block)  # [blocks, 1]
    rows = op.Reshape(bias, op.Concat([-1], query_length, key_length, axis=0))

    def body(op: Any, start: Any) -> Any:
        piece = op.Slice(rows, start, op.Add(start, block), [1])  # [rows, block, Tv]
        most = _reduce(op, "ReduceMax", piece, 1, 0)  # [rows, Tv]
        least = _reduce(op, "ReduceMin", piece, 1, 0)
        seen = op.Cast(op.Greater(most, HIDDEN_BELOW), to=INT32)
        first = op.ArgMax(seen, axis=1, keepdims=1)  # [rows, 1]
        last = op.Add(op.ArgMax(seen, axis=1, keepdims=1, select_last_index=1), [1])
        row_most = _reduce(op, "ReduceMax", piece, 2, 0)  # [rows, block]
        blind = op.LessOrEqual(_reduce(op, "ReduceMin", row_most, 1, 1), HIDDEN_BELOW)
        # A NaN compares as neither: such a block reads all keys as well.
        blind = op.Or(blind, op.IsNaN(_reduce(op, "ReduceSum", row_most, 1, 1)))
        added = op.Not(op.And(op.Equal(most, 0.0), op.Equal(least, 0.0)))
        keys = op.Range(_int(op, 0), op.Squeeze(key_length, [0]), _int(op, 1))
        added = op.Cast(op.And(added, op.GreaterOrEqual(keys, first)), to=INT32)
        some = op.Cast(_reduce(op, "ReduceMax", added, 1, 1), to=BOOL)
        end = op.Where(some, op.ArgMax(added, axis=1, keepdims=1), last)
        end = op.Where(op.Less(end, last), end, last)
        zero = _ints(op, [[0]])
        return op.Concat(
            op.Where(blind, zero, first),
            op.Where(blind, zero, end),
            op.Where(blind, key_length, last),
            axis=1,
        )

    result = ir.Value(name="facts_of_block", shape=ir.Shape(["rows", 3]), type=INT64)
    start = ir.Value(name="bias_start", shape=ir.Shape([1]), type=INT64)
    return op.Scan(
        starts,
        body=op.builder.subgraph(body, [start], [result], name="facts"),
        num_scan_inputs=1,
        _outputs=["bias_facts"],
    )


def bias_walk(
    op: Any,
    query: Any,
    key: Any,
    value: Any,
    scale: Any,
    bias: Any,
    facts: Any,
    block: Any,
) -> Any:
    """softmax(scale * query @ key^T + bias) @ value, [batch, heads, Tq, value_dim].

    query [batch, heads, Tq, dim], key [batch, heads, Tv, dim], value [batch, heads, Tv,
    value_dim]; bias as in bias_facts or None; scale: a number or None; block int64[1], at most Tq.
    """
    batch, heads = op.Shape(query, start=0, end=1), op.Shape(query, start=1, end=2)
    Tq = op.Shape(query, start=2, end=3)
    width = op.Shape(value, start=3, end=4)
    rows = op.Mul(batch, heads)

    def flat(tensor: Any) -> Any:
        return op.Reshape(tensor, op.Concat(rows, op.Shape(tensor, start=2, end=4), axis=0))

    starts = _starts(op, Tq, block)
    count = op.Shape(starts, start=0, end=1)
    walked = [flat(query), flat(key), flat(value)]
    views = [
        _float("query_row", "Tq", "dim"),
        _float("key_row", "Tv", "dim"),
        _float("value_row", "Tv", "value_dim"),
    ]
    bias_rows = bias_Tq = None
    if bias is not None:
        bias_shape = op.Shape(bias)
        lead = op.Slice(bias_shape, [0], [2])
        bias_Tq = op.Slice(bias_shape, [2], [3])
        bias_rows = op.Reshape(bias, op.Concat([-1], op.Slice(bias_shape, [2], [4]), axis=0))
        size = op.Squeeze(op.Shape(bias_rows, start=0, end=1), [0])
        index = op.Reshape(op.Range(_int(op, 0), size, _int(op, 1)), lead)
        index = op.Expand(index, op.Concat(batch, heads, axis=0))
        walked.append(op.Reshape(index, op.Concat(rows, [1], axis=0)))  # [rows, 1]
        views.append(ir.Value(name="bias_row", shape=ir.Shape([1]), type=INT64))
        whole = op.Concat(count, op.Shape(facts, start=1, end=3), axis=0)
        facts = op.Expand(facts, whole)  # [blocks, bias rows, 3]

    def of_row(op: Any, query: Any, key: Any, value: Any, row: Any = None) -> Any:
        inputs = [starts]
        blocks = [ir.Value(name="start", shape=ir.Shape([1]), type=INT64)]
        if row is not None:
            inputs.append(op.Squeeze(op.Gather(facts, row, axis=1), [1]))  # [blocks, 3]
            blocks.append(ir.Value(name="facts_row", shape=ir.Shape([3]), type=INT64))

        def of_block(op: Any, start: Any, fact: Any = None) -> Any:
            end = op.Add(start, block)
            queries = op.Slice(query, start, end, [0])
            if fact is None:
                scores = _gemm(op, queries, key, scale)
                return op.MatMul(op.Softmax(scores, axis=-1), value)
            first = op.Slice(fact, [0], [1])
            open_end = op.Slice(fact, [1], [2])
            last = op.Slice(fact, [2], [3])
            free = _gemm(op, queries, op.Slice(key, first, open_end, [0]), scale)
            held = _gemm(op, queries, op.Slice(key, open_end, last, [0]), scale)
            one = op.Slice(bias_rows, row, op.Add(row, [1]), [0])
            one = op.Slice(
                one,
                op.Concat(op.Min(start, op.Sub(bias_Tq, [1])), open_end, axis=0),
                op.Concat(end, last, axis=0),
                [1, 2],
            )
            held = op.Add(held, op.Squeeze(one, [0]))
            scores = op.Concat(free, held, axis=1)
            return op.MatMul(op.Softmax(scores, axis=-1), op.Slice(value, first, last, [0]))

        result = _float("attended_block", "block", "value_dim")
        found = op.Scan(
            *inputs,
            body=op.builder.subgraph(of_block, blocks, [result], name="block"),
            num_scan_inputs=len(inputs),
        )
        # The last block overlaps the one before it: only its last rows are new.
        before = op.Mul(op.Sub(count, [1]), block)
        flat = op.Reshape(found, op.Concat([-1], width, axis=0))
        return op.Concat(
            op.Slice(flat, [0], before, [0]),
            op.Slice(flat, op.Sub(before, Tq), [LAST], [0]),
            axis=0,
        )

    result = _float("attended_row", "Tq", "value_dim")
    found = op.Scan(
        *walked,
        body=op.builder.subgraph(of_row, views, [result], name="row"),
        num_scan_inputs=len(walked),
    )
    return op.Reshape(found, op.Concat(batch, heads, Tq, width, axis=0))


def _starts(op: Any, length: Any, block: Any) -> Any:
    """The first query of each block, the last one moved up to end with the queries: [blocks, 1]."""
    count = op.Div(op.Sub(op.Add(length, block), [1]), block)
    starts = op.Mul(op.Range(_int(op, 0), op.Squeeze(count, [0]), _int(op, 1)), block)
    latest = op.Max(op.Sub(length, block), [0])
    return op.Unsqueeze(op.Where(op.Less(starts, latest), starts, latest), [1])


def _gemm(op: Any, queries: Any, keys: Any, scale: Any) -> Any:
    if scale is None:
        return op.Gemm(queries, keys, transB=1)
    return op.Gemm(queries, keys, transB=1, alpha=float(scale))


def _reduce(op: Any, kind: str, tensor: Any, axis: int, keepdims: int) -> Any:
    """A reduction of one axis; before opset 18 Max and Min take it as an attribute."""
    if op.version < 18 and kind != "ReduceSum":
        return getattr(op, kind)(tensor, axes=[axis], keepdims=keepdims)
    return getattr(op, kind)(tensor, [axis], keepdims=keepdims)


def _float(name: str, *dims: str | int) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(dims), type=FLOAT)


def _int(op: Any, number: int) -> Any:
    return op.Constant(value=ir.tensor(np.array(number, np.int64)))


def _ints(op: Any, numbers: Any) -> Any:
    return op.Constant(value=ir.tensor(np.array(numbers, np.int64)))

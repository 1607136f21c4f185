"""What a bias, causal and a key mask hide, by blocks of queries: the facts of the walk over a bias.

See `bias_walk`. Found once for all layers that add the same; a bias is never expanded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...configuration import HIDDEN
from ..builder import scanned, subgraph
from ..nodes import ints, numbered, one_number, parts_of, reduced, sliced, view

# A key counts as hidden where the bias is at most this: beside one without a bias it then weighs
# exp(-9000) = 0, unless scores differ by thousands. What models write is -1e4 and less.
HIDDEN_BELOW = -9000.0

INT32, INT64 = ir.DataType.INT32, ir.DataType.INT64
BOOL, FLOAT = ir.DataType.BOOL, ir.DataType.FLOAT


@dataclass(frozen=True)
class StepSize:
    """What one step of the walk takes at once: `block` queries of `heads` heads, int64[1] each."""

    heads: Any
    block: Any


@dataclass(frozen=True)
class Facts:
    """What is known of every block beforehand, and what is added to its scores.

    `table` holds the `columns` (name -> width) of each block; its axes of batch and of groups of
    heads may be 1. `kept` is the place of each query in the steps laid end to end: the last block
    begins earlier where the queries do not fill it, so that some are computed twice.
    """

    table: Any  # int64[batch or 1, groups or 1, blocks, width]
    kept: Any  # int64[heads of a step, Tq]
    columns: dict[str, int]
    dtype: ir.DataType = FLOAT
    bias: Any = None  # [batch or 1, heads or 1, Tq or 1, Tv or 1]
    triangle: Any = None  # [block, Tq + Tv]
    mask: Any = None  # [batch or 1, Tv], 0 or the penalty


def bias_facts(
    op: Any,
    bias: Any,
    heads: Any,
    query_length: Any,
    key_length: Any,
    step: StepSize,
    *,
    causal: bool = False,
    key_mask: Any = None,
    penalty: float = HIDDEN,
    dtype: ir.DataType = FLOAT,
) -> Facts:
    """The facts of what is added to scores: a bias, causal, a key mask, or several of them.

    Args:
        op: The builder.
        bias: float `[batch, heads, Tq, Tv]`, each dim 1 or the axis; None for none.
        heads: int64[1], at least 1.
        query_length: Tq, int64[1], at least 1.
        key_length: Tv, int64[1], at least 1.
        step: Its heads divide `heads`; see `step_size`.
        causal: Whether query i sees keys j <= i only.
        key_mask: bool `[batch or 1, Tv]`, True where a key may be seen; None for none.
        penalty: What causal and the key mask add to a hidden score: once where both hide it.
        dtype: The type of the arithmetic, which the bias has.
    """
    blocks = _blocks(op, query_length, step.block)
    triangle = mask = None
    if key_mask is not None:
        shown, hidden = one_number(op, 0.0, dtype), one_number(op, penalty, dtype)
        mask = op.Where(key_mask, shown, hidden, _outputs=["key_mask_bias"])
    if causal:
        triangle = _triangle(op, blocks, key_length, penalty, dtype)
    dims = None
    if bias is None:
        numbers = _numbers_of_masks(op, blocks, key_length, causal, key_mask)
    else:
        dims = op.Shape(bias, _outputs=["bias_dims"])
        numbers = _numbers_of_bias(op, bias, dims, blocks, key_length, triangle, mask, dtype)
    names = _names(triangle)
    parts = op.Split(numbers, ints(op, *(1 for _ in names)), axis=3, _outputs=names)
    found = dict(zip(names, parts, strict=True))
    first, last = found["first"], found["last"]
    end = op.Add(blocks.starts, blocks.size, _outputs=["block_ends"])
    every = op.Add(first, blocks.starts)  # an axis of batch, of groups of heads, of blocks
    columns: dict[str, list[Any]] = {
        "first": [first],
        "last": [last],
        "start": [blocks.starts],
        "end": [end],
    }
    if dims is not None:
        row = op.Unsqueeze(numbered(op, op.Shape(bias, start=0, end=1)), ints(op, 1, 2, 3))
        latest = op.Sub(sliced(op, dims, 1, 4, 0), ints(op, 1))
        latest = op.Split(
            latest, ints(op, 1, 1, 1), axis=0, _outputs=["last_head", "last_query", "last_key"]
        )
        groups = numbered(op, op.Div(heads, step.heads))
        head = op.Unsqueeze(op.Mul(groups, step.heads), ints(op, 1, 2))
        every = op.Add(every, head)
        # The one place of an axis of 1 serves all.
        begins = map(op.Min, [head, blocks.starts, first], latest)
        columns["bias_begin"] = [row, *begins]
        ends = op.Add(row, ints(op, 1)), op.Add(head, step.heads), end, last
        columns["bias_end"] = [*ends]
    if triangle is not None:
        own = op.Sub(query_length, blocks.starts)
        columns["triangle_begin"] = [op.Add(first, own)]
        columns["triangle_end"] = [op.Add(last, own)]
    elif bias is not None or mask is not None:
        columns["added"] = [found["added"]]
    if mask is not None:
        row = op.Unsqueeze(numbered(op, op.Shape(mask, start=0, end=1)), ints(op, 1, 2, 3))
        columns["mask_begin"] = [row, first]
        columns["mask_end"] = [op.Add(row, ints(op, 1)), last]
    shape = op.Shape(every)
    expanded: dict[Any, Any] = {}
    for part in [part for parts in columns.values() for part in parts]:
        if part not in expanded:
            expanded[part] = op.Expand(part, shape)
    table = op.Concat(
        *(expanded[part] for parts in columns.values() for part in parts),
        axis=3,
        _outputs=["facts_of_blocks"],
    )
    widths = {name: len(parts) for name, parts in columns.items()}
    return Facts(table, _kept(op, blocks, step.heads), widths, dtype, bias, triangle, mask)


@dataclass(frozen=True)
class _Blocks:
    """Blocks of queries; the last one is moved up to end with them."""

    length: Any  # Tq: int64[1]
    size: Any  # int64[1], at most Tq
    latest: Any  # where the last one starts: int64[1]
    starts: Any  # int64[blocks, 1]


def _blocks(op: Any, length: Any, size: Any) -> _Blocks:
    # At least 1: tools that fix a length at 0 compute this beforehand.
    size = op.Max(op.Min(size, length), ints(op, 1), _outputs=["block"])
    count = op.Div(op.Sub(op.Add(length, size), ints(op, 1)), size, _outputs=["block_count"])
    numbers = op.Unsqueeze(numbered(op, count), ints(op, 1))
    latest = op.Sub(length, size, _outputs=["latest_start"])
    starts = op.Min(op.Mul(numbers, size), latest, _outputs=["block_starts"])
    return _Blocks(length, size, latest, starts)


def _kept(op: Any, blocks: _Blocks, heads: Any) -> Any:
    """The place of each query in the steps laid end to end: int64[heads, Tq].

    A step has `block` places for its first head, then as many for the next.
    """
    queries = numbered(op, blocks.length)
    block = op.Div(queries, blocks.size, _outputs=["block_of_query"])
    start = op.Min(op.Mul(block, blocks.size), blocks.latest)
    step = op.Mul(block, op.Mul(heads, blocks.size))
    head = op.Unsqueeze(op.Mul(numbered(op, heads), blocks.size), ints(op, 1))
    place = op.Add(step, op.Sub(queries, start), _outputs=["place_of_query"])
    return op.Add(place, head, _outputs=["kept_places"])


def _triangle(op: Any, blocks: _Blocks, key_length: Any, penalty: float, dtype: ir.DataType) -> Any:
    """The causal bias of every block in one matrix [block, Tq + Tv].

    Key j of the block that begins at `start` has the column Tq + j - start.
    """
    shape = op.Concat(blocks.size, op.Add(blocks.length, key_length), axis=0)
    number = ir.tensor(np.array([penalty], dtype.numpy()))
    hidden = op.ConstantOfShape(shape, value=number, _outputs=["all_hidden"])
    future = op.Squeeze(op.Add(blocks.length, ints(op, 1)), _outputs=["first_future_key"])
    return op.Trilu(hidden, future, upper=1, _outputs=["causal_triangle"])


def _numbers_of_masks(
    op: Any, blocks: _Blocks, key_length: Any, causal: bool, key_mask: Any
) -> Any:
    """The numbers of each block, without a bias: int64[batch or 1, 1, blocks or 1, 2 or 3]."""
    end = op.Add(blocks.starts, blocks.size)
    if key_mask is None:
        first = op.Sub(blocks.starts, blocks.starts)
        last = op.Min(end, key_length) if causal else op.Add(first, key_length)
        numbers = [first, last] if causal else [first, last, first]
        return op.Unsqueeze(op.Concat(*numbers, axis=1), ints(op, 0, 1))
    mask = op.Unsqueeze(key_mask, ints(op, 1, 2), _outputs=["key_mask_of_blocks"])
    first, last, some = _span(op, mask)
    blind = op.Not(some)
    if not causal:
        added = _added(op, op.Not(mask), first, last, key_length)
        return _unless(op, blind, key_length, first, last, added)
    blind = op.Or(blind, op.Less(blocks.starts, first))
    return _unless(op, blind, key_length, first, op.Min(last, end))


def _numbers_of_bias(
    op: Any,
    bias: Any,
    dims: Any,
    blocks: _Blocks,
    key_length: Any,
    triangle: Any,
    mask: Any,
    dtype: ir.DataType,
) -> Any:
    """The numbers of each block, read from a bias: int64[batch or 1, 1, blocks or 1, 2 or 3].

    One row of the bias, [Tq or 1, Tv or 1], at a time: ONNX Runtime reduces the first axis of two
    fast, an axis between others twenty times slower.
    """
    batch, heads, queries = (op.Shape(bias, start=n, end=n + 1) for n in range(3))
    one, lengths = ints(op, 1), sliced(op, dims, 2, 4, 0)
    names = _names(triangle)
    rows = op.Reshape(bias, op.Concat(ints(op, -1), lengths, axis=0), _outputs=["bias_rows"])
    row = numbered(op, op.Shape(rows, start=0, end=1))
    starts = blocks.starts
    if triangle is None:
        # A bias of one query has one block, which serves for all.
        starts = op.Slice(starts, ints(op, 0), queries, ints(op, 0))
    columns = {
        "bias_row": op.Unsqueeze(row, ints(op, 1, 2)),
        "start": starts,
    }
    latest_query, batches = op.Sub(queries, one), one
    if mask is not None:
        # The rows of the mask that belong to a batch row of the bias: one, or all where it is one.
        mask_batch = op.Shape(mask, start=0, end=1)
        batches = op.Where(op.Equal(batch, one), mask_batch, one, _outputs=["mask_rows_of_bias"])
        begin = op.Min(op.Div(columns["bias_row"], heads), op.Sub(mask_batch, one))
        columns["mask_begin"] = begin
    shape = op.Shape(op.Add(columns["bias_row"], starts))  # [rows, blocks or 1, 1]
    table = op.Concat(*(op.Expand(part, shape) for part in columns.values()), axis=2)
    table = op.Reshape(table, ints(op, -1, len(columns)), _outputs=["bias_blocks"])

    def of_block(op: Any, numbers: Any) -> Any:
        parts = parts_of(op, numbers, dict.fromkeys(columns, 1))
        row, start = parts["bias_row"], parts["start"]
        piece = op.Slice(
            rows,
            op.Concat(row, op.Min(start, latest_query), axis=0),
            op.Concat(op.Add(row, ints(op, 1)), op.Add(start, blocks.size), axis=0),
            ints(op, 0, 1),
        )
        piece = op.Squeeze(piece, ints(op, 0), _outputs=["bias_of_block"])
        if triangle is not None:
            begin = op.Sub(blocks.length, start)
            future = op.Slice(triangle, begin, op.Add(begin, key_length), ints(op, 1))
            piece = op.Add(piece, future, _outputs=["masked_bias"])
        # [block or 1, Tv or 1]; by key, and of every key:
        limit, none = one_number(op, HIDDEN_BELOW, dtype), one_number(op, 0.0, dtype)
        if mask is None:
            zero = ir.tensor(np.zeros(1, dtype.numpy()))
            by_key = op.ConstantOfShape(key_length, value=zero)
        else:
            begin = parts["mask_begin"]
            by_key = op.Slice(mask, begin, op.Add(begin, batches), ints(op, 0))
        most = op.Add(reduced(op, "ReduceMax", piece, 0, 1), by_key, _outputs=["most"])
        seen = op.Greater(most, limit, _outputs=["seen"])
        first, last, _ = _span(op, seen)
        if mask is None:
            by_query = reduced(op, "ReduceMax", piece, 1, 1)
            see = op.Greater(reduced(op, "ReduceMin", by_query, 0, 1), limit)
        else:
            # How many keys each query sees, for all rows of the mask as one product.
            limits = op.Expand(limit, key_length)
            shown = op.Cast(op.Greater(piece, limits), to=int(dtype), _outputs=["shown"])
            keys = op.Cast(op.Equal(by_key, none), to=int(dtype), _outputs=["shown_keys"])
            counts = op.Gemm(keys, shown, transB=1, _outputs=["keys_seen"])  # [rows, block]
            see = op.Greater(reduced(op, "ReduceMin", counts, 1, 1), none)
        blind = op.Not(see)
        if triangle is not None:
            return _unless(op, blind, key_length, first, last)
        least = op.Add(reduced(op, "ReduceMin", piece, 0, 1), by_key, _outputs=["least"])
        biased = op.Not(op.And(op.Equal(most, none), op.Equal(least, none)), _outputs=["biased"])
        added = _added(op, biased, first, last, key_length)
        return _unless(op, blind, key_length, first, last, added)

    body = subgraph(
        op,
        of_block,
        [view("facts_of_block", INT64, "mask_rows", len(names))],
        [view("bias_block", INT64, len(columns))],
    )
    (numbers,) = scanned(op, [table], body, ["facts_of_bias"])
    # Heads go through their steps together: from the first key that one of them sees to the last.
    signs = ints(op, *(1 if name == "first" else -1 for name in names))
    count = op.Shape(starts, start=0, end=1)
    lead = op.Concat(batch, heads, count, ints(op, -1, len(names)), axis=0)
    of_heads = op.Reshape(op.Mul(numbers, signs), lead)
    least = reduced(op, "ReduceMin", of_heads, 1, 0)
    numbers = op.Mul(least, signs)
    if triangle is None:
        # What one head does not read, and so adds nothing to, another may.
        apart = op.Sub(reduced(op, "ReduceMax", of_heads, 1, 0), least)
        apart = reduced(op, "ReduceMax", apart, -1, 1)
        numbers = op.Add(numbers, op.Mul(apart, ints(op, 0, 0, 1)))
    numbers = op.Transpose(numbers, perm=[0, 2, 1, 3])  # batch rows, mask rows of each, blocks
    lead = op.Concat(ints(op, -1, 1), count, ints(op, len(names)), axis=0)
    return op.Reshape(numbers, lead, _outputs=["bias_facts"])


def _names(triangle: Any) -> list[str]:
    """What is told of each block. Beside a triangle something is always added."""
    return ["first", "last"] if triangle is not None else ["first", "last", "added"]


def _span(op: Any, seen: Any) -> tuple[Any, Any, Any]:
    """first, last, and whether there is any: seen [.., Tv] -> [.., 1] each."""
    seen = op.Cast(seen, to=int(INT32))
    first = op.ArgMax(seen, axis=-1, keepdims=1, _outputs=["first_seen"])
    last = op.ArgMax(seen, axis=-1, keepdims=1, select_last_index=1, _outputs=["last_seen"])
    last = op.Add(last, ints(op, 1), _outputs=["seen_end"])
    any_seen = op.Cast(reduced(op, "ReduceMax", seen, -1, 1), to=int(BOOL), _outputs=["any_seen"])
    return first, last, any_seen


def _added(op: Any, biased: Any, first: Any, last: Any, key_length: Any) -> Any:
    """1 where something is added to a key from `first` to before `last`, else 0: int64[.., 1]."""
    keys = numbered(op, key_length)
    inside = op.And(op.GreaterOrEqual(keys, first), op.Less(keys, last))
    within = op.Cast(op.And(biased, inside), to=int(INT32), _outputs=["biased_within"])
    return op.Cast(reduced(op, "ReduceMax", within, -1, 1), to=int(INT64), _outputs=["added"])


def _unless(op: Any, blind: Any, key_length: Any, first: Any, last: Any, *added: Any) -> Any:
    """The numbers side by side; (0, Tv, 1) where a query of the block sees no key.

    Something is added to every key there, so that `added` is 1 as it is.
    """
    return op.Concat(
        op.Where(blind, ints(op, 0), first),
        op.Where(blind, key_length, last),
        *added,
        axis=-1,
        _outputs=["numbers_of_block"],
    )

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
class Facts:
    """What is known of every block beforehand, and what is added to its scores.

    `table` holds the `columns` (name -> width) of each block; its axes of batch and heads may be 1.
    `kept` is the place of each query in the blocks laid end to end: the last block begins earlier
    where the queries do not fill it, so that some are computed twice.
    """

    table: Any  # int64[batch or 1, heads or 1, blocks, width]
    kept: Any  # int64[Tq]
    columns: dict[str, int]
    dtype: ir.DataType = FLOAT
    bias: Any = None  # [rows, Tq or 1, Tv or 1]
    triangle: Any = None  # [block, width]
    mask: Any = None  # [batch or 1, Tv], 0 or the penalty


def bias_facts(
    op: Any,
    bias: Any,
    query_length: Any,
    key_length: Any,
    block: Any,
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
        query_length: Tq, int64[1], at least 1.
        key_length: Tv, int64[1], at least 1.
        block: Queries of a block, int64[1], at least 1; see `walk_block`.
        causal: Whether query i sees keys j <= i only.
        key_mask: bool `[batch or 1, Tv]`, True where a key may be seen; None for none.
        penalty: What causal and the key mask add to a hidden score: once where both hide it.
        dtype: The type of the arithmetic, which the bias has.
    """
    blocks = _blocks(op, query_length, block)
    triangle = mask = shift = None
    if key_mask is not None:
        shown, hidden = one_number(op, 0.0, dtype), one_number(op, penalty, dtype)
        mask = op.Where(key_mask, shown, hidden, _outputs=["key_mask_bias"])
    if causal:
        # Alone, it hides keys beside the block only; with others, blocks may have to read all keys.
        shift = ints(op, 0) if bias is None and mask is None else query_length
        triangle = _triangle(op, blocks, shift, key_length, penalty, dtype)
    rows = None
    if bias is None:
        numbers = _numbers_of_masks(op, blocks, key_length, causal, key_mask)
    else:
        rows = _by_rows(op, bias)
        numbers = _numbers_of_bias(op, rows, blocks, key_length, triangle, shift, mask, dtype)
    first, open_end, last = (sliced(op, numbers, n, n + 1, 3) for n in range(3))
    end = op.Add(blocks.starts, blocks.size, _outputs=["block_ends"])
    columns: dict[str, list[Any]] = {
        "first": [first],
        "open_end": [open_end],
        "last": [last],
        "start": [blocks.starts],
        "end": [end],
    }
    if rows is not None:
        # The one place of an axis of 1 serves all.
        start = op.Min(blocks.starts, sliced(op, rows.latest, 0, 1, 0))
        key = op.Min(open_end, sliced(op, rows.latest, 1, 2, 0))
        columns["bias_begin"] = [rows.row, start, key]
        columns["bias_end"] = [op.Add(rows.row, ints(op, 1)), end, last]
    if triangle is not None:
        own = op.Sub(shift, blocks.starts)
        columns["triangle_begin"] = [op.Add(open_end, own)]
        columns["triangle_end"] = [op.Add(last, own)]
    if mask is not None:
        row = op.Unsqueeze(numbered(op, op.Shape(mask, start=0, end=1)), ints(op, 1, 2, 3))
        columns["mask_begin"] = [row, open_end]
        columns["mask_end"] = [op.Add(row, ints(op, 1)), last]
    shape = op.Shape(op.Add(first, blocks.starts))  # [batch or 1, heads or 1, blocks, 1]
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
    whole = None if rows is None else rows.rows
    return Facts(table, _kept(op, blocks), widths, dtype, whole, triangle, mask)


@dataclass(frozen=True)
class _Bias:
    """A bias by its rows, of which each belongs to one or all batch rows and heads."""

    rows: Any  # [rows, Tq or 1, Tv or 1]
    lead: Any  # its batch and heads: int64[2]
    lengths: Any  # its Tq and Tv: int64[2]
    latest: Any  # its last query and key: int64[2]
    row: Any  # 0, 1, ..: int64[batch or 1, heads or 1, 1, 1]


def _by_rows(op: Any, bias: Any) -> _Bias:
    dims = op.Shape(bias, _outputs=["bias_dims"])
    lead, lengths = sliced(op, dims, 0, 2, 0), sliced(op, dims, 2, 4, 0)
    rows = op.Reshape(bias, op.Concat(ints(op, -1), lengths, axis=0), _outputs=["bias_rows"])
    numbers = numbered(op, op.Shape(rows, start=0, end=1))
    row = op.Reshape(numbers, op.Concat(lead, ints(op, 1, 1), axis=0), _outputs=["bias_row"])
    return _Bias(rows, lead, lengths, op.Sub(lengths, ints(op, 1)), row)


@dataclass(frozen=True)
class _Blocks:
    """Blocks of queries; the last one is moved up to end with them."""

    length: Any  # Tq: int64[1]
    size: Any  # int64[1], at most Tq
    starts: Any  # int64[blocks, 1]


def _blocks(op: Any, length: Any, size: Any) -> _Blocks:
    # At least 1: tools that fix a length at 0 compute this beforehand.
    size = op.Max(op.Min(size, length), ints(op, 1), _outputs=["block"])
    count = op.Div(op.Sub(op.Add(length, size), ints(op, 1)), size, _outputs=["block_count"])
    numbers = op.Unsqueeze(numbered(op, count), ints(op, 1))
    starts = op.Min(op.Mul(numbers, size), op.Sub(length, size), _outputs=["block_starts"])
    return _Blocks(length, size, starts)


def _kept(op: Any, blocks: _Blocks) -> Any:
    """The place of each query in the blocks laid end to end: int64[Tq]."""
    count = op.Shape(blocks.starts, start=0, end=1)
    before = op.Mul(op.Sub(count, ints(op, 1)), blocks.size, _outputs=["last_block_place"])
    twice = op.Sub(op.Add(before, blocks.size), blocks.length, _outputs=["queries_twice"])
    queries = numbered(op, blocks.length)
    later = op.Add(queries, twice)
    return op.Where(op.Less(queries, before), queries, later, _outputs=["kept_places"])


def _triangle(
    op: Any, blocks: _Blocks, shift: Any, key_length: Any, penalty: float, dtype: ir.DataType
) -> Any:
    """The causal bias of every block in one matrix [block, shift + Tv].

    Key j of the block that begins at `start` has the column shift + j - start.
    """
    shape = op.Concat(blocks.size, op.Add(shift, key_length), axis=0)
    number = ir.tensor(np.array([penalty], dtype.numpy()))
    hidden = op.ConstantOfShape(shape, value=number, _outputs=["all_hidden"])
    future = op.Squeeze(op.Add(shift, ints(op, 1)), _outputs=["first_future_key"])
    return op.Trilu(hidden, future, upper=1, _outputs=["causal_triangle"])


def _numbers_of_masks(
    op: Any, blocks: _Blocks, key_length: Any, causal: bool, key_mask: Any
) -> Any:
    """first, open_end and last by block, without a bias: int64[batch or 1, 1, blocks or 1, 3]."""
    end, next_key = op.Add(blocks.starts, blocks.size), op.Add(blocks.starts, ints(op, 1))
    if key_mask is None:
        first = op.Sub(blocks.starts, blocks.starts)
        last = op.Min(end, key_length) if causal else op.Add(first, key_length)
        open_end = op.Min(next_key, key_length) if causal else last
        return op.Unsqueeze(op.Concat(first, open_end, last, axis=1), ints(op, 0, 1))
    mask = op.Unsqueeze(key_mask, ints(op, 1, 2), _outputs=["key_mask_of_blocks"])
    first, open_end, last, some = _span(op, mask, op.Not(mask), key_length)
    blind = op.Not(some)
    if causal:
        blind = op.Or(blind, op.Less(blocks.starts, first))
        open_end, last = op.Min(open_end, next_key), op.Min(last, end)
    return _unless(op, blind, first, open_end, last, key_length)


def _numbers_of_bias(
    op: Any,
    bias: _Bias,
    blocks: _Blocks,
    key_length: Any,
    triangle: Any,
    shift: Any,
    mask: Any,
    dtype: ir.DataType,
) -> Any:
    """first, open_end and last by block, read from a bias: int64[.., .., blocks or 1, 3].

    One row of the bias at a time: ONNX Runtime reduces the first axis of two fast, an axis between
    others twenty times slower.
    """
    starts = blocks.starts
    if triangle is None:
        # A bias of one query has one block, which serves for all.
        starts = op.Slice(starts, ints(op, 0), sliced(op, bias.lengths, 0, 1, 0))
    lead = op.Concat(bias.lead, op.Shape(starts, start=0, end=1), ints(op, 1), axis=0)
    columns = {
        "bias_row": bias.row,
        "start": starts,
        "bias_start": op.Min(starts, sliced(op, bias.latest, 0, 1, 0)),
    }
    batches = None
    if mask is not None:
        # The rows of the mask that belong to a batch row of the bias: one, or all where it is one.
        mask_batch, one = op.Shape(mask, start=0, end=1), ints(op, 1)
        batch, heads = sliced(op, bias.lead, 0, 1, 0), sliced(op, bias.lead, 1, 2, 0)
        batches = op.Where(op.Equal(batch, one), mask_batch, one, _outputs=["mask_rows_of_bias"])
        begin = op.Min(op.Div(bias.row, heads), op.Sub(mask_batch, one))
        columns |= {"mask_begin": begin, "mask_end": op.Add(begin, batches)}
    table = op.Concat(*(op.Expand(part, lead) for part in columns.values()), axis=3)
    table = op.Reshape(table, ints(op, -1, len(columns)), _outputs=["bias_blocks"])

    def of_block(op: Any, numbers: Any) -> Any:
        parts = parts_of(op, numbers, dict.fromkeys(columns, 1))
        row, start = parts["bias_row"], parts["start"]
        piece = op.Slice(
            bias.rows,
            op.Concat(row, parts["bias_start"], axis=0),
            op.Concat(op.Add(row, ints(op, 1)), op.Add(start, blocks.size), axis=0),
            ints(op, 0, 1),
        )
        piece = op.Squeeze(piece, ints(op, 0), _outputs=["bias_of_block"])
        if triangle is not None:
            begin = op.Sub(shift, start)
            future = op.Slice(triangle, begin, op.Add(begin, key_length), ints(op, 1))
            piece = op.Add(piece, future, _outputs=["masked_bias"])
        # [block or 1, Tv or 1]; by key, and of every key:
        limit, none = one_number(op, HIDDEN_BELOW, dtype), one_number(op, 0.0, dtype)
        if mask is None:
            zero = ir.tensor(np.zeros(1, dtype.numpy()))
            by_key = op.ConstantOfShape(key_length, value=zero)
        else:
            by_key = op.Slice(mask, parts["mask_begin"], parts["mask_end"], ints(op, 0))
        most = op.Add(reduced(op, "ReduceMax", piece, 0, 1), by_key, _outputs=["most"])
        least = op.Add(reduced(op, "ReduceMin", piece, 0, 1), by_key, _outputs=["least"])
        added = op.Not(op.And(op.Equal(most, none), op.Equal(least, none)), _outputs=["added"])
        seen = op.Greater(most, limit, _outputs=["seen"])
        first, open_end, last, _ = _span(op, seen, added, key_length)
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
        return _unless(op, op.Not(see), first, open_end, last, key_length)

    body = subgraph(
        op,
        of_block,
        [view("facts_of_block", INT64, "mask_rows", 3)],
        [view("bias_block", INT64, len(columns))],
    )
    (numbers,) = scanned(op, [table], body, ["facts_of_bias"])
    if mask is None:
        lead = op.Concat(bias.lead, ints(op, -1, 3), axis=0)
        return op.Reshape(numbers, lead, _outputs=["bias_facts"])
    lead = op.Concat(bias.lead, ints(op, -1), batches, ints(op, 3), axis=0)
    numbers = op.Transpose(op.Reshape(numbers, lead), perm=[0, 3, 1, 2, 4])
    lead = op.Concat(ints(op, -1), op.Shape(numbers, start=2, end=5), axis=0)
    return op.Reshape(numbers, lead, _outputs=["bias_facts"])


def _span(op: Any, seen: Any, added: Any, key_length: Any) -> tuple[Any, Any, Any, Any]:
    """first, open_end, last, and whether there is any: seen, added [.., Tv] -> [.., 1] each."""
    seen = op.Cast(seen, to=int(INT32))
    first = op.ArgMax(seen, axis=-1, keepdims=1, _outputs=["first_seen"])
    last = op.ArgMax(seen, axis=-1, keepdims=1, select_last_index=1, _outputs=["last_seen"])
    last = op.Add(last, ints(op, 1), _outputs=["seen_end"])
    later = op.And(added, op.GreaterOrEqual(numbered(op, key_length), first))
    later = op.Cast(later, to=int(INT32), _outputs=["added_later"])
    some = op.Cast(reduced(op, "ReduceMax", later, -1, 1), to=int(BOOL))
    begin = op.ArgMax(later, axis=-1, keepdims=1, _outputs=["first_added"])
    open_end = op.Min(op.Where(some, begin, last), last, _outputs=["open_end"])
    any_seen = op.Cast(reduced(op, "ReduceMax", seen, -1, 1), to=int(BOOL), _outputs=["any_seen"])
    return first, open_end, last, any_seen


def _unless(op: Any, blind: Any, first: Any, open_end: Any, last: Any, key_length: Any) -> Any:
    """The three numbers side by side; (0, 0, Tv) where a query of the block sees no key."""
    zero = ints(op, 0)
    return op.Concat(
        op.Where(blind, zero, first),
        op.Where(blind, zero, open_end),
        op.Where(blind, key_length, last),
        axis=-1,
        _outputs=["first_open_last"],
    )

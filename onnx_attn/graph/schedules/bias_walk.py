"""The walk over a bias: blocks of queries against the keys that an additive bias lets them see.

    output = softmax(scale * query @ key^T + bias) @ value

for any bias, causal triangle or key mask, and several of them together, without the score matrix.
What they hold says at run time, by three numbers a block, what need not be computed:

* `first`, `last`: the keys that some query of the block may see;
* `open_end`: up to where, from `first` on, nothing is to be added for any of its queries.

Keys outside first..last weigh 0 beside those that are seen. A block with a query that sees no key
has (0, 0, Tv): it reads every key and adds what there is to add as it stands, so that a row of NaN
stays NaN and a uniform row stays uniform. Additions are made by Add, never within the product:
where a large penalty enters the sum decides the weights of such rows.

The facts of a bias are found once for all layers that share it, and a bias is never expanded: not
to heads, not to the batch. Where all that is hidden follows from causal and a key mask, no bias is
made at all. Everything has at least one element: a Scan cannot walk nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...configuration import HIDDEN
from . import thresholds

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
        shown, hidden = _number(op, 0.0, dtype), _number(op, penalty, dtype)
        mask = op.Where(key_mask, shown, hidden, _outputs=["key_mask_bias"])
    if causal:
        # Alone, it hides keys beside the block only; with others, blocks may have to read all keys.
        shift = _ints(op, 0) if bias is None and mask is None else query_length
        triangle = _triangle(op, blocks, shift, key_length, penalty, dtype)
    rows = None
    if bias is None:
        numbers = _numbers_of_masks(op, blocks, key_length, causal, key_mask)
    else:
        rows = _by_rows(op, bias)
        numbers = _numbers_of_bias(op, rows, blocks, key_length, triangle, shift, mask, dtype)
    first, open_end, last = (_slice(op, numbers, n, n + 1, 3) for n in range(3))
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
        start = op.Min(blocks.starts, _slice(op, rows.latest, 0, 1, 0))
        key = op.Min(open_end, _slice(op, rows.latest, 1, 2, 0))
        columns["bias_begin"] = [rows.row, start, key]
        columns["bias_end"] = [op.Add(rows.row, _ints(op, 1)), end, last]
    if triangle is not None:
        own = op.Sub(shift, blocks.starts)
        columns["triangle_begin"] = [op.Add(open_end, own)]
        columns["triangle_end"] = [op.Add(last, own)]
    if mask is not None:
        row = op.Unsqueeze(_range(op, op.Shape(mask, start=0, end=1)), _ints(op, 1, 2, 3))
        columns["mask_begin"] = [row, open_end]
        columns["mask_end"] = [op.Add(row, _ints(op, 1)), last]
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


def walk_block(op: Any, query_length: Any, key_length: Any, alike: bool = False) -> Any:
    """Queries of a block, as even as they come: int64[1], at least 1.

    `alike`: whether all queries see the same keys, so that small blocks leave out no more.
    """
    keys = op.Max(key_length, _ints(op, 1))
    block = op.Div(_ints(op, thresholds.BLOCK_PAIRS), keys)
    block = op.Max(block, _ints(op, thresholds.SMALLEST_BLOCK))
    limit = _ints(op, thresholds.WALK_BLOCK)
    if not alike:
        many = op.Less(_ints(op, thresholds.WALK_KEYS), key_length, _outputs=["many_keys"])
        limit = op.Where(many, limit, _ints(op, thresholds.SHORT_WALK_BLOCK))
    one = _ints(op, 1)
    latest = op.Sub(query_length, one)
    count = op.Add(op.Div(latest, op.Min(block, limit)), one)
    return op.Add(op.Div(latest, count), one, _outputs=["even_block"])


def bias_walk(
    op: Any,
    query: Any,
    key: Any,
    value: Any,
    scale: Any,
    facts: Facts,
    *,
    scores: Callable[[Any, Any, Any], Any] | None = None,
    drop: Callable[[Any, Any], Any] | None = None,
    weights_wanted: bool = False,
) -> tuple[Any, ...]:
    """The output [batch, heads, Tq, value_dim] and, where wanted, the weights [.., Tq, Tv].

    Args:
        op: The builder.
        query: `[batch, heads, Tq, dim]`.
        key: `[batch, heads, Tv, dim]`.
        value: `[batch, heads, Tv, value_dim]`.
        scale: A number, a scalar tensor, or None for 1.
        facts: Of what is added to the scores; of these lengths.
        scores: Writes the scores of a block, [block, dim] and [keys, dim] -> [block, keys], in the
            place of their product times the scale.
        drop: Writes what is done to the weights of a block before they meet the values.
        weights_wanted: Whether the weights are returned as well.
    """
    if isinstance(scale, ir.Value):
        query, scale = op.Mul(query, scale, _outputs=["query_scaled"]), None
    if scores is None:
        scores = _product(scale)
    lead = op.Shape(query, start=0, end=2, _outputs=["batch_and_heads"])
    table = op.Expand(facts.table, op.Concat(lead, _ints(op, 1, 1), axis=0))
    key_length = op.Shape(key, start=2, end=3, _outputs=["key_length"])

    def rows(tensor: Any) -> Any:
        """[batch, heads, T, width] as [batch * heads, T, width]: no data moves."""
        shape = op.Concat(_ints(op, -1), op.Shape(tensor, start=2, end=4), axis=0)
        return op.Reshape(tensor, shape, _outputs=["rows"])

    def of_row(op: Any, query: Any, key: Any, value: Any, table: Any) -> Any:
        def of_block(op: Any, numbers: Any) -> Any:
            parts = _parts(op, numbers, facts.columns)
            queries = op.Slice(query, parts["start"], parts["end"], _ints(op, 0))
            summed = _block_scores(op, queries, key, parts, facts, scores)
            weights = op.Softmax(summed, axis=-1, _outputs=["weights"])
            if drop is not None:
                weights = drop(op, weights)
            values = op.Slice(value, parts["first"], parts["last"], _ints(op, 0))
            attended = op.MatMul(weights, values, _outputs=["attended"])
            if not weights_wanted:
                return attended
            zero, after = _ints(op, 0), op.Sub(key_length, parts["last"])
            pads = op.Concat(zero, parts["first"], zero, after, axis=0)
            return attended, op.Pad(weights, pads, _outputs=["weights_of_all_keys"])

        width = sum(facts.columns.values())
        found = op.Scan(
            op.Reshape(table, _ints(op, -1, width), _outputs=["facts_of_row"]),
            body=_body(op, of_block, [_view("block_facts", INT64, width)], outputs("block")),
            num_scan_inputs=1,
            _outputs=["attended_of_blocks", "weights_of_blocks"][: 1 + weights_wanted],
        )
        found = found if weights_wanted else (found,)
        return [op.Gather(op.Flatten(part, axis=2), facts.kept, axis=0) for part in found]

    def outputs(rows: str) -> list[ir.Value]:
        declared = [_view(f"attended_{rows}", facts.dtype, rows, "value_dim")]
        return [*declared, _view(f"weights_{rows}", facts.dtype, rows, "Tv")][: 1 + weights_wanted]

    views = [
        _view("query_of_row", facts.dtype, "Tq", "dim"),
        _view("key_of_row", facts.dtype, "Tv", "dim"),
        _view("value_of_row", facts.dtype, "Tv", "value_dim"),
        _view("table_of_row", INT64, "facts"),
    ]
    found = op.Scan(
        rows(query),
        rows(key),
        rows(value),
        op.Flatten(table, axis=2),
        body=_body(op, of_row, views, outputs("Tq")),
        num_scan_inputs=len(views),
        _outputs=["attended_of_rows", "weights_of_rows"][: 1 + weights_wanted],
    )
    shape = op.Concat(op.Shape(query, start=0, end=3), _ints(op, -1), axis=0)
    return tuple(op.Reshape(part, shape) for part in (found if weights_wanted else (found,)))


def _block_scores(
    op: Any, queries: Any, key: Any, parts: dict[str, Any], facts: Facts, scores: Any
) -> Any:
    """Scores of one block on its keys first..last, with all that is added: [block, keys]."""
    first, open_end, last = (parts[name] for name in ("first", "open_end", "last"))
    if facts.bias is None and facts.triangle is None and facts.mask is None:
        return scores(op, queries, key)
    free = scores(op, queries, op.Slice(key, first, open_end, _ints(op, 0)))
    held = scores(op, queries, op.Slice(key, open_end, last, _ints(op, 0)))
    if facts.bias is not None:
        piece = op.Slice(facts.bias, parts["bias_begin"], parts["bias_end"])
        piece = op.Squeeze(piece, _ints(op, 0), _outputs=["bias_of_block"])
        held = op.Add(held, piece, _outputs=["scores_biased"])
    hidden = None
    if facts.triangle is not None:
        ends = parts["triangle_begin"], parts["triangle_end"]
        hidden = op.Slice(facts.triangle, *ends, _ints(op, 1), _outputs=["causal_bias"])
    if facts.mask is not None:
        piece = op.Slice(facts.mask, parts["mask_begin"], parts["mask_end"])
        # One penalty, never two: it is what rows that see no key are ranked by.
        hidden = piece if hidden is None else op.Min(hidden, piece)
    if hidden is not None:
        held = op.Add(held, hidden, _outputs=["scores_hidden"])
    return op.Concat(free, held, axis=1, _outputs=["scores_of_block"])


def _product(scale: float | None) -> Callable[[Any, Any, Any], Any]:
    """scale * queries @ keys^T, as one operator."""
    alpha = {} if scale is None else {"alpha": float(scale)}

    def scores(op: Any, queries: Any, keys: Any) -> Any:
        return op.Gemm(queries, keys, transB=1, _outputs=["scores"], **alpha)

    return scores


def _parts(op: Any, numbers: Any, columns: dict[str, int]) -> dict[str, Any]:
    """The numbers of one block by name: int64[width] each."""
    sizes = _ints(op, *columns.values())
    parts = op.Split(numbers, sizes, axis=0, _outputs=list(columns))
    return dict(zip(columns, parts, strict=True))


# The facts


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
    lead, lengths = _slice(op, dims, 0, 2, 0), _slice(op, dims, 2, 4, 0)
    rows = op.Reshape(bias, op.Concat(_ints(op, -1), lengths, axis=0), _outputs=["bias_rows"])
    numbers = _range(op, op.Shape(rows, start=0, end=1))
    row = op.Reshape(numbers, op.Concat(lead, _ints(op, 1, 1), axis=0), _outputs=["bias_row"])
    return _Bias(rows, lead, lengths, op.Sub(lengths, _ints(op, 1)), row)


@dataclass(frozen=True)
class _Blocks:
    """Blocks of queries; the last one is moved up to end with them."""

    length: Any  # Tq: int64[1]
    size: Any  # int64[1], at most Tq
    starts: Any  # int64[blocks, 1]


def _blocks(op: Any, length: Any, size: Any) -> _Blocks:
    # At least 1: tools that fix a length at 0 compute this beforehand.
    size = op.Max(op.Min(size, length), _ints(op, 1), _outputs=["block"])
    count = op.Div(op.Sub(op.Add(length, size), _ints(op, 1)), size, _outputs=["block_count"])
    numbers = op.Unsqueeze(_range(op, count), _ints(op, 1))
    starts = op.Min(op.Mul(numbers, size), op.Sub(length, size), _outputs=["block_starts"])
    return _Blocks(length, size, starts)


def _kept(op: Any, blocks: _Blocks) -> Any:
    """The place of each query in the blocks laid end to end: int64[Tq]."""
    count = op.Shape(blocks.starts, start=0, end=1)
    before = op.Mul(op.Sub(count, _ints(op, 1)), blocks.size, _outputs=["last_block_place"])
    twice = op.Sub(op.Add(before, blocks.size), blocks.length, _outputs=["queries_twice"])
    queries = _range(op, blocks.length)
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
    future = op.Squeeze(op.Add(shift, _ints(op, 1)), _outputs=["first_future_key"])
    return op.Trilu(hidden, future, upper=1, _outputs=["causal_triangle"])


def _numbers_of_masks(
    op: Any, blocks: _Blocks, key_length: Any, causal: bool, key_mask: Any
) -> Any:
    """first, open_end and last by block, without a bias: int64[batch or 1, 1, blocks or 1, 3]."""
    end, next_key = op.Add(blocks.starts, blocks.size), op.Add(blocks.starts, _ints(op, 1))
    if key_mask is None:
        first = op.Sub(blocks.starts, blocks.starts)
        last = op.Min(end, key_length) if causal else op.Add(first, key_length)
        open_end = op.Min(next_key, key_length) if causal else last
        return op.Unsqueeze(op.Concat(first, open_end, last, axis=1), _ints(op, 0, 1))
    mask = op.Unsqueeze(key_mask, _ints(op, 1, 2), _outputs=["key_mask_of_blocks"])
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
        starts = op.Slice(starts, _ints(op, 0), _slice(op, bias.lengths, 0, 1, 0))
    lead = op.Concat(bias.lead, op.Shape(starts, start=0, end=1), _ints(op, 1), axis=0)
    columns = {
        "bias_row": bias.row,
        "start": starts,
        "bias_start": op.Min(starts, _slice(op, bias.latest, 0, 1, 0)),
    }
    batches = None
    if mask is not None:
        # The rows of the mask that belong to a batch row of the bias: one, or all where it is one.
        mask_batch, one = op.Shape(mask, start=0, end=1), _ints(op, 1)
        batch, heads = _slice(op, bias.lead, 0, 1, 0), _slice(op, bias.lead, 1, 2, 0)
        batches = op.Where(op.Equal(batch, one), mask_batch, one, _outputs=["mask_rows_of_bias"])
        begin = op.Min(op.Div(bias.row, heads), op.Sub(mask_batch, one))
        columns |= {"mask_begin": begin, "mask_end": op.Add(begin, batches)}
    table = op.Concat(*(op.Expand(part, lead) for part in columns.values()), axis=3)
    table = op.Reshape(table, _ints(op, -1, len(columns)), _outputs=["bias_blocks"])

    def of_block(op: Any, numbers: Any) -> Any:
        parts = _parts(op, numbers, dict.fromkeys(columns, 1))
        row, start = parts["bias_row"], parts["start"]
        piece = op.Slice(
            bias.rows,
            op.Concat(row, parts["bias_start"], axis=0),
            op.Concat(op.Add(row, _ints(op, 1)), op.Add(start, blocks.size), axis=0),
            _ints(op, 0, 1),
        )
        piece = op.Squeeze(piece, _ints(op, 0), _outputs=["bias_of_block"])
        if triangle is not None:
            begin = op.Sub(shift, start)
            future = op.Slice(triangle, begin, op.Add(begin, key_length), _ints(op, 1))
            piece = op.Add(piece, future, _outputs=["masked_bias"])
        # [block or 1, Tv or 1]; by key, and of every key:
        limit, none = _number(op, HIDDEN_BELOW, dtype), _number(op, 0.0, dtype)
        if mask is None:
            zero = ir.tensor(np.zeros(1, dtype.numpy()))
            by_key = op.ConstantOfShape(key_length, value=zero)
        else:
            by_key = op.Slice(mask, parts["mask_begin"], parts["mask_end"], _ints(op, 0))
        most = op.Add(_reduce(op, "ReduceMax", piece, 0, 1), by_key, _outputs=["most"])
        least = op.Add(_reduce(op, "ReduceMin", piece, 0, 1), by_key, _outputs=["least"])
        added = op.Not(op.And(op.Equal(most, none), op.Equal(least, none)), _outputs=["added"])
        seen = op.Greater(most, limit, _outputs=["seen"])
        first, open_end, last, _ = _span(op, seen, added, key_length)
        if mask is None:
            by_query = _reduce(op, "ReduceMax", piece, 1, 1)
            see = op.Greater(_reduce(op, "ReduceMin", by_query, 0, 1), limit)
        else:
            # How many keys each query sees, for all rows of the mask as one product.
            limits = op.Expand(limit, key_length)
            shown = op.Cast(op.Greater(piece, limits), to=int(dtype), _outputs=["shown"])
            keys = op.Cast(op.Equal(by_key, none), to=int(dtype), _outputs=["shown_keys"])
            counts = op.Gemm(keys, shown, transB=1, _outputs=["keys_seen"])  # [rows, block]
            see = op.Greater(_reduce(op, "ReduceMin", counts, 1, 1), none)
        return _unless(op, op.Not(see), first, open_end, last, key_length)

    numbers = op.Scan(
        table,
        body=_body(
            op,
            of_block,
            [_view("bias_block", INT64, len(columns))],
            [_view("facts_of_block", INT64, "mask_rows", 3)],
        ),
        num_scan_inputs=1,
        _outputs=["facts_of_bias"],
    )
    if mask is None:
        lead = op.Concat(bias.lead, _ints(op, -1, 3), axis=0)
        return op.Reshape(numbers, lead, _outputs=["bias_facts"])
    lead = op.Concat(bias.lead, _ints(op, -1), batches, _ints(op, 3), axis=0)
    numbers = op.Transpose(op.Reshape(numbers, lead), perm=[0, 3, 1, 2, 4])
    lead = op.Concat(_ints(op, -1), op.Shape(numbers, start=2, end=5), axis=0)
    return op.Reshape(numbers, lead, _outputs=["bias_facts"])


def _span(op: Any, seen: Any, added: Any, key_length: Any) -> tuple[Any, Any, Any, Any]:
    """first, open_end, last, and whether there is any: seen, added [.., Tv] -> [.., 1] each."""
    seen = op.Cast(seen, to=int(INT32))
    first = op.ArgMax(seen, axis=-1, keepdims=1, _outputs=["first_seen"])
    last = op.ArgMax(seen, axis=-1, keepdims=1, select_last_index=1, _outputs=["last_seen"])
    last = op.Add(last, _ints(op, 1), _outputs=["seen_end"])
    later = op.And(added, op.GreaterOrEqual(_range(op, key_length), first))
    later = op.Cast(later, to=int(INT32), _outputs=["added_later"])
    some = op.Cast(_reduce(op, "ReduceMax", later, -1, 1), to=int(BOOL))
    begin = op.ArgMax(later, axis=-1, keepdims=1, _outputs=["first_added"])
    open_end = op.Min(op.Where(some, begin, last), last, _outputs=["open_end"])
    any_seen = op.Cast(_reduce(op, "ReduceMax", seen, -1, 1), to=int(BOOL), _outputs=["any_seen"])
    return first, open_end, last, any_seen


def _unless(op: Any, blind: Any, first: Any, open_end: Any, last: Any, key_length: Any) -> Any:
    """The three numbers side by side; (0, 0, Tv) where a query of the block sees no key."""
    zero = _ints(op, 0)
    return op.Concat(
        op.Where(blind, zero, first),
        op.Where(blind, zero, open_end),
        op.Where(blind, key_length, last),
        axis=-1,
        _outputs=["first_open_last"],
    )


# Nodes. Bodies hold the constants they use, so these are nodes too, not initializers.


def _ints(op: Any, *numbers: int) -> Any:
    return op.Constant(value_ints=list(numbers))


def _number(op: Any, number: float, dtype: ir.DataType) -> Any:
    return op.Constant(value=ir.tensor(np.array(number, dtype.numpy())))


def _range(op: Any, count: Any) -> Any:
    """0, 1, .. count - 1: int64[count]."""
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    return op.Range(zero, op.Squeeze(count), one, _outputs=["numbers"])


def _slice(op: Any, tensor: Any, begin: int, end: int, axis: int) -> Any:
    return op.Slice(tensor, _ints(op, begin), _ints(op, end), _ints(op, axis))


def _reduce(op: Any, kind: str, tensor: Any, axis: int, keepdims: int) -> Any:
    """ReduceMax or ReduceMin over one axis, which is an attribute before opset 18."""
    if op.version < 18:
        return getattr(op, kind)(tensor, axes=[axis], keepdims=keepdims)
    return getattr(op, kind)(tensor, _ints(op, axis), keepdims=keepdims)


def _view(name: str, dtype: ir.DataType, *dims: str | int) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype))


def _body(
    op: Any, trace: Callable[..., Any], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]
) -> ir.Graph:
    return op.builder.subgraph(trace, list(inputs), list(outputs), name=outputs[0].name)

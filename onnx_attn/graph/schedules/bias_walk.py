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

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from ..builder import scanned, subgraph
from ..nodes import ints, parts_of, view
from . import thresholds
from .bias_facts import Facts, bias_facts

__all__ = ["Facts", "bias_facts", "bias_walk", "walk_block"]

INT64 = ir.DataType.INT64


def walk_block(op: Any, query_length: Any, key_length: Any, alike: bool = False) -> Any:
    """Queries of a block, as even as they come: int64[1], at least 1.

    `alike`: whether all queries see the same keys, as under a key mask alone, so that small blocks
    leave out no more.
    """
    one = ints(op, 1)
    block = op.Div(ints(op, thresholds.BLOCK_PAIRS), op.Max(key_length, one))
    block = op.Max(block, ints(op, thresholds.SMALLEST_BLOCK))
    block = op.Min(block, ints(op, thresholds.LARGEST_BLOCK if alike else thresholds.WALK_BLOCK))
    latest = op.Sub(query_length, one)
    count = op.Add(op.Div(latest, block), one)
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
    table = op.Expand(facts.table, op.Concat(lead, ints(op, 1, 1), axis=0))
    key_length = op.Shape(key, start=2, end=3, _outputs=["key_length"])

    def rows(tensor: Any) -> Any:
        """[batch, heads, T, width] as [batch * heads, T, width]: no data moves."""
        shape = op.Concat(ints(op, -1), op.Shape(tensor, start=2, end=4), axis=0)
        return op.Reshape(tensor, shape, _outputs=["rows"])

    def of_row(op: Any, query: Any, key: Any, value: Any, table: Any) -> Any:
        def of_block(op: Any, numbers: Any) -> Any:
            parts = parts_of(op, numbers, facts.columns)
            queries = op.Slice(query, parts["start"], parts["end"], ints(op, 0))
            summed = _block_scores(op, queries, key, parts, facts, scores)
            weights = op.Softmax(summed, axis=-1, _outputs=["weights"])
            if drop is not None:
                weights = drop(op, weights)
            values = op.Slice(value, parts["first"], parts["last"], ints(op, 0))
            attended = op.MatMul(weights, values, _outputs=["attended"])
            if not weights_wanted:
                return attended
            zero, after = ints(op, 0), op.Sub(key_length, parts["last"])
            pads = op.Concat(zero, parts["first"], zero, after, axis=0)
            return attended, op.Pad(weights, pads, _outputs=["weights_of_all_keys"])

        width = sum(facts.columns.values())
        found = scanned(
            op,
            [op.Reshape(table, ints(op, -1, width), _outputs=["facts_of_row"])],
            subgraph(op, of_block, outputs("block"), [view("block_facts", INT64, width)]),
            ["attended_of_blocks", "weights_of_blocks"][: 1 + weights_wanted],
        )
        return [op.Gather(op.Flatten(part, axis=2), facts.kept, axis=0) for part in found]

    def outputs(rows: str) -> list[ir.Value]:
        declared = [view(f"attended_{rows}", facts.dtype, rows, "value_dim")]
        return [*declared, view(f"weights_{rows}", facts.dtype, rows, "Tv")][: 1 + weights_wanted]

    views = [
        view("query_of_row", facts.dtype, "Tq", "dim"),
        view("key_of_row", facts.dtype, "Tv", "dim"),
        view("value_of_row", facts.dtype, "Tv", "value_dim"),
        view("table_of_row", INT64, "facts"),
    ]
    found = scanned(
        op,
        [rows(query), rows(key), rows(value), op.Flatten(table, axis=2)],
        subgraph(op, of_row, outputs("Tq"), views),
        ["attended_of_rows", "weights_of_rows"][: 1 + weights_wanted],
    )
    shape = op.Concat(op.Shape(query, start=0, end=3), ints(op, -1), axis=0)
    return tuple(op.Reshape(part, shape) for part in found)


def _block_scores(
    op: Any, queries: Any, key: Any, parts: dict[str, Any], facts: Facts, scores: Any
) -> Any:
    """Scores of one block on its keys first..last, with all that is added: [block, keys]."""
    first, open_end, last = (parts[name] for name in ("first", "open_end", "last"))
    if facts.bias is None and facts.triangle is None and facts.mask is None:
        return scores(op, queries, key)
    free = scores(op, queries, op.Slice(key, first, open_end, ints(op, 0)))
    held = scores(op, queries, op.Slice(key, open_end, last, ints(op, 0)))
    if facts.bias is not None:
        piece = op.Slice(facts.bias, parts["bias_begin"], parts["bias_end"])
        piece = op.Squeeze(piece, ints(op, 0), _outputs=["bias_of_block"])
        held = op.Add(held, piece, _outputs=["scores_biased"])
    hidden = None
    if facts.triangle is not None:
        ends = parts["triangle_begin"], parts["triangle_end"]
        hidden = op.Slice(facts.triangle, *ends, ints(op, 1), _outputs=["causal_bias"])
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

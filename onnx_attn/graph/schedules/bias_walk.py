"""The walk over a bias: blocks of queries against the keys that an additive bias lets them see.

    output = softmax(scale * query @ key^T + bias) @ value

for any bias, causal triangle or key mask, and several of them together, without the score matrix.
What they hold says at run time, by three numbers a block, what need not be computed:

* `first`, `last`: the keys that some query of the block may see;
* `added`: whether anything is to be added to their scores.

Keys outside first..last weigh 0 beside those that are seen. A block with a query that sees no key
has (0, Tv, 1): it reads every key and adds what there is to add as it stands, so that a row of NaN
stays NaN and a uniform row stays uniform. Additions are made by Add, never within the product:
where a large penalty enters the sum decides the weights of such rows.

Heads go together, as the lanes of one product, and what is added is read once for all of them;
where their scores are too many, in groups of equal size.

The facts of a bias are found once for all layers that share it, and a bias is never expanded: not
to heads, not to the batch. Where all that is hidden follows from causal and a key mask, no bias is
made at all. Everything has at least one element: a Scan cannot walk nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from ..builder import branching, scanned, subgraph
from ..nodes import ints, numbered, one_number, parts_of, reduced, view
from . import thresholds
from .bias_facts import Facts, StepSize, bias_facts

__all__ = ["Facts", "StepSize", "bias_facts", "bias_walk", "step_size"]

BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64


def step_size(
    op: Any, heads: Any, query_length: Any, key_length: Any, alike: bool = False
) -> StepSize:
    """As many heads as fit with a few queries each, then as many queries, as even as they come.

    `alike`: whether all queries see the same keys, as under a key mask alone, so that small blocks
    leave out no more.
    """
    one = ints(op, 1)
    of_heads = op.Div(ints(op, thresholds.WALK_PAIRS), op.Max(key_length, one))
    most = op.Div(of_heads, ints(op, thresholds.SMALLEST_BLOCK), _outputs=["most_heads"])
    numbers = numbered(op, heads)
    counts = op.Add(numbers, one)
    divides = op.Equal(op.Mul(op.Div(heads, counts), counts), heads)
    fits = op.And(divides, op.Less(numbers, most), _outputs=["heads_fit"])
    group = reduced(op, "ReduceMax", op.Where(fits, counts, one), 0, 1)
    block = op.Max(op.Div(of_heads, group), ints(op, thresholds.SMALLEST_BLOCK))
    block = op.Min(block, ints(op, thresholds.LARGEST_BLOCK if alike else thresholds.WALK_BLOCK))
    latest = op.Sub(query_length, one)
    count = op.Add(op.Div(latest, block), one)
    return StepSize(group, op.Add(op.Div(latest, count), one, _outputs=["even_block"]))


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
        facts: Of what is added to the scores; of these lengths and heads.
        scores: Writes the scores of a step, [heads, block, dim] and [heads, keys, dim] ->
            [heads, block, keys], in the place of their product times the scale.
        drop: Writes what is done to the weights of a step before they meet the values.
        weights_wanted: Whether the weights are returned as well.
    """
    if isinstance(scale, ir.Value):
        query, scale = op.Mul(query, scale, _outputs=["query_scaled"]), None
    if scores is None:
        scores = product(scale, facts.dtype)
    batch, heads = (op.Shape(query, start=axis, end=axis + 1) for axis in (0, 1))
    group = op.Shape(facts.kept, start=0, end=1, _outputs=["heads_of_step"])
    groups = op.Div(heads, group)
    table = op.Expand(facts.table, op.Concat(batch, groups, ints(op, 1, 1), axis=0))
    rows = op.Mul(batch, groups, _outputs=["groups_of_batch"])
    query_length = op.Shape(query, start=2, end=3)
    key_length = op.Shape(key, start=2, end=3, _outputs=["key_length"])
    places = numbered(op, op.Max(query_length, key_length))

    def grouped(tensor: Any) -> Any:
        """[batch, heads, T, width] as [batch * groups, heads of a step, T, width]: a view."""
        shape = op.Concat(rows, group, op.Shape(tensor, start=2, end=4), axis=0)
        return op.Reshape(tensor, shape, _outputs=["grouped"])

    def of_group(op: Any, query: Any, key: Any, value: Any, table: Any) -> Any:
        def step(op: Any, numbers: Any) -> Any:
            parts = parts_of(op, numbers, facts.columns)
            # Gather, which copies with all threads, not Slice.
            own = op.Slice(places, parts["start"], parts["end"], ints(op, 0))
            seen = op.Slice(places, parts["first"], parts["last"], ints(op, 0))
            queries, keys = op.Gather(query, own, axis=1), op.Gather(key, seen, axis=1)
            summed = _step_scores(op, queries, keys, parts, facts, scores)
            weights = op.Softmax(summed, axis=-1, _outputs=["weights"])
            if drop is not None:
                weights = drop(op, weights)
            values = op.Gather(value, seen, axis=1)
            attended = op.MatMul(weights, values, _outputs=["attended"])
            if not weights_wanted:
                return attended
            zeros, after = ints(op, 0, 0), op.Sub(key_length, parts["last"])
            pads = op.Concat(zeros, parts["first"], zeros, after, axis=0)
            return attended, op.Pad(weights, pads, _outputs=["weights_of_all_keys"])

        width = sum(facts.columns.values())
        found = scanned(
            op,
            [op.Reshape(table, ints(op, -1, width), _outputs=["facts_of_steps"])],
            subgraph(op, step, outputs("block"), [view("facts_of_step", INT64, width)]),
            ["attended_of_steps", "weights_of_steps"][: 1 + weights_wanted],
        )
        return [op.Gather(op.Flatten(part, axis=3), facts.kept, axis=0) for part in found]

    def outputs(rows: str) -> list[ir.Value]:
        declared = [view(f"attended_{rows}", facts.dtype, "heads", rows, "value_dim")]
        if weights_wanted:
            declared.append(view(f"weights_{rows}", facts.dtype, "heads", rows, "Tv"))
        return declared

    views = [
        view("query_of_heads", facts.dtype, "heads", "Tq", "dim"),
        view("key_of_heads", facts.dtype, "heads", "Tv", "dim"),
        view("value_of_heads", facts.dtype, "heads", "Tv", "value_dim"),
        view("table_of_heads", INT64, "facts"),
    ]
    found = scanned(
        op,
        [grouped(query), grouped(key), grouped(value), op.Flatten(table, axis=2)],
        subgraph(op, of_group, outputs("Tq"), views),
        ["attended_of_heads", "weights_of_heads"][: 1 + weights_wanted],
    )
    lead = op.Shape(query, start=0, end=3)
    return tuple(
        op.Reshape(part, op.Concat(lead, op.Shape(part, start=3, end=4), axis=0)) for part in found
    )


def _step_scores(
    op: Any, queries: Any, keys: Any, parts: dict[str, Any], facts: Facts, scores: Any
) -> Any:
    """Scores of one step on its keys first..last, with all that is added: [heads, block, keys]."""

    def as_they_are(op: Any) -> Any:
        return scores(op, queries, keys)

    def with_added(op: Any) -> Any:
        summed = scores(op, queries, keys)
        if facts.bias is not None:
            piece = op.Slice(facts.bias, parts["bias_begin"], parts["bias_end"])
            piece = op.Squeeze(piece, ints(op, 0), _outputs=["bias_of_step"])
            summed = op.Add(summed, piece, _outputs=["scores_biased"])
        hidden = None
        if facts.triangle is not None:
            ends = parts["triangle_begin"], parts["triangle_end"]
            hidden = op.Slice(facts.triangle, *ends, ints(op, 1), _outputs=["causal_bias"])
        if facts.mask is not None:
            piece = op.Slice(facts.mask, parts["mask_begin"], parts["mask_end"])
            # One penalty, never two: it is what rows that see no key are ranked by.
            hidden = piece if hidden is None else op.Min(hidden, piece)
        if hidden is not None:
            summed = op.Add(summed, hidden, _outputs=["scores_hidden"])
        return summed

    if facts.bias is None and facts.triangle is None and facts.mask is None:
        return as_they_are(op)
    if "added" not in parts:
        return with_added(op)
    (summed,) = branching(
        op,
        op.Cast(parts["added"], to=int(BOOL), _outputs=["something_is_added"]),
        subgraph(op, with_added, [view("with_added", facts.dtype, "heads", "block", "keys")]),
        subgraph(op, as_they_are, [view("as_they_are", facts.dtype, "heads", "block", "keys")]),
        ["scores_of_step"],
    )
    return summed


def product(scale: float | None, dtype: ir.DataType) -> Callable[[Any, Any, Any], Any]:
    """scale * queries @ keys^T."""

    def scores(op: Any, queries: Any, keys: Any) -> Any:
        summed = op.MatMul(queries, op.Transpose(keys, perm=[0, 2, 1]), _outputs=["scores"])
        if scale is None:
            return summed
        return op.Mul(summed, one_number(op, scale, dtype), _outputs=["scores_scaled"])

    return scores

"""Causal attention of a sequence to itself without a value mask: queries in a few unrolled parts.

A part reads the keys before it and the keys beside it. Only the square beside it holds hidden
pairs, the same ones in every part, so the causal bias is one triangle and is added to that square
alone. Parts span the batch: the operators then split the work by batch rows, and what a core
computes it mostly reads again itself.
"""

from __future__ import annotations

from . import functions
from .dense import finished
from .guards import batch_of_query
from .thresholds import HIDDEN, query_length


def causal_halves(op, steps):
    """The output [batch, Tq, value_dim] in two parts, where Tq = Tv is even."""
    tensors = batch_of_query(op, steps).tensors
    query = steps.prepare_query(op, tensors.query)
    length = query_length(op, steps)
    half = op.Div(length, [2], _outputs=["half_length"])
    early = op.Slice(query, [0], half, [1], _outputs=["early_queries"])
    late = op.Slice(query, half, length, [1], _outputs=["late_queries"])
    before = op.Slice(tensors.key, [0], half, [1], _outputs=["early_keys"])
    beside = op.Slice(tensors.key, half, length, [1], _outputs=["late_keys"])
    seen = op.Slice(tensors.value, [0], half, [1], _outputs=["early_values"])
    triangle = causal_triangle(op, steps, half)
    parts = (
        part(op, steps, early, None, before, triangle, seen, 0),
        part(op, steps, late, before, beside, triangle, tensors.value, 1),
    )
    return joined(op, steps, parts)


def causal_parts(op, steps, count):
    """The output [batch, Tq, value_dim] in `count` parts, where Tq = Tv > count squared.

    All parts are equally long. Where they do not fit evenly the last one begins earlier, and what
    it repeats is cut off the part before it.
    """
    tensors = batch_of_query(op, steps).tensors
    query, key, value = tensors.query, tensors.key, tensors.value
    length = query_length(op, steps)
    size = op.Div(op.Add(length, [count - 1]), [count], _outputs=["part_length"])
    multiples = [op.Mul(size, [number], _outputs=["part_end"]) for number in range(2, count)]
    ends = [size, *multiples, length]
    starts = [[0], *ends[: count - 2], op.Sub(length, size, _outputs=["last_part_start"])]
    triangle = causal_triangle(op, steps, size)
    query = steps.prepare_query(op, query)
    parts = []
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        queries = op.Slice(query, start, end, [1], _outputs=["queries_of_part"])
        before = None
        if number > 0:
            before = op.Slice(key, [0], start, [1], _outputs=["keys_before"])
        beside = op.Slice(key, start, end, [1], _outputs=["keys_beside"])
        # All values to the last part, so that too many of them fail there.
        last = number == count - 1
        seen = value if last else op.Slice(value, [0], end, [1], _outputs=["values_seen"])
        parts.append(part(op, steps, queries, before, beside, triangle, seen, number))
    once = op.Sub(starts[-1], starts[-2], _outputs=["queries_not_repeated"])
    parts[-2] = op.Slice(parts[-2], [0], once, [1], _outputs=["attended_once"])
    return joined(op, steps, parts)


def part(op, steps, queries, before, beside, triangle, values, number):
    """Queries of one part on the keys before them, if there are any, and on those beside them."""
    scores = op.Add(steps.scores(op, queries, beside), triangle, _outputs=["scores_beside"])
    if before is not None:
        scores = op.Concat(
            steps.scores(op, queries, before), scores, axis=2, _outputs=["scores_masked"]
        )
    weights = op.call_inline(functions.softmax_weights, scores, _outputs=["weights"])
    return steps.weighted_sum(op, steps.drop(op, weights, draw=number), values)


def joined(op, steps, parts):
    """The parts as one output, under the query mask."""
    output = op.Concat(*parts, axis=1, _outputs=["attended"])
    return (finished(op, steps, output),)


def causal_triangle(op, steps, length):
    """The causal bias of the keys beside as many queries: [length, length]."""
    hidden = op.Expand(steps.number(op, HIDDEN), op.Concat(length, length, axis=0))
    return op.Trilu(hidden, op.Constant(value_int=1), upper=1, _outputs=["causal_triangle"])

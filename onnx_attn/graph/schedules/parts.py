"""Causal attention of a sequence to itself: queries in a few unrolled parts.

A part reads the keys before it and the keys beside it. Only the square beside it holds hidden
pairs, the same ones in every part, so the causal bias is one triangle. Parts span the batch: the
operators then split the work by batch rows, and what a core computes it mostly reads again itself.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .. import formulas
from ..guards import LENGTHS, batch_of_query
from .dense import finished, mask_bias
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
    scores = masked_beside(op, steps, early, before, triangle)
    attended_early = weighted(op, steps, scores, seen, 0)
    scores = masked_beside(op, steps, late, beside, triangle, before)
    attended_late = weighted(op, steps, scores, tensors.value, 1)
    return joined(op, steps, (attended_early, attended_late))


def causal_parts(op, steps, count, bias_of_all_keys=False):
    """The output [batch, Tq, value_dim] in `count` parts, where Tq = Tv > count squared.

    All parts are equally long but the last, which is what remains. With `bias_of_all_keys` the
    causal bias is as wide as the keys that a part sees: one addition, and no joining of scores.
    Only this form knows a value mask, and only one that shows every query a key.
    """
    tensors = batch_of_query(op, steps).tensors
    length = query_length(op, steps)
    size = op.Div(op.Add(length, [count - 1]), [count], _outputs=["part_length"])
    inner = [op.Mul(size, [number], _outputs=["part_end"]) for number in range(1, count)]
    starts, ends = [[0], *inner], [*inner, length]
    own, seen = positions_of_parts(op, length, starts, ends)
    rest = op.Sub(length, starts[-1], _outputs=["last_part_length"])

    value_bias = None
    if bias_of_all_keys:
        if steps.tensors.value_mask is not None:
            value_bias = mask_bias(op, steps, None)  # [batch or 1, 1, Tv or 1]
        width = op.Mul(size, [count], _outputs=["bias_width"])
        whole = causal_triangle(op, steps, size, width)
    else:
        triangle = causal_triangle(op, steps, size)

    def at_once(number, queries):
        key, bias = tensors.key, whole
        if number < count - 1:
            key = rows(op, key, seen[number], "keys_seen")
            unseen = op.Sub(width, ends[number], _outputs=["unseen_length"])
            bias = op.Slice(bias, unseen, width, [1], _outputs=["bias_of_part"])
        else:
            shape = op.Concat(rest, length, axis=0)
            bias = op.Slice(bias, [0, 0], shape, [0, 1], _outputs=["bias_of_last_part"])
        scores = op.Add(steps.scores(op, queries, key), bias, _outputs=["scores_masked"])
        if value_bias is None:
            return scores
        # -1e9 twice weighs what -1e9 once does next to a key that is seen: nothing.
        if number == count - 1:
            return steps.masked(op, scores, value_bias)
        hidden = op.Slice(value_bias, [0], ends[number], [2], _outputs=["value_bias_of_part"])
        return op.Add(scores, hidden, _outputs=["scores_masked"])

    def in_two(number, queries):
        beside, bias = rows(op, tensors.key, own[number], "keys_beside"), triangle
        if number == count - 1:
            shape = op.Concat(rest, rest, axis=0)
            bias = op.Slice(bias, [0, 0], shape, [0, 1], _outputs=["triangle_of_last_part"])
        before = None
        if number > 0:
            before = rows(op, tensors.key, seen[number - 1], "keys_before")
        return masked_beside(op, steps, queries, beside, bias, before)

    query = steps.prepare_query(op, tensors.query)
    parts = []
    for number in range(count):
        queries = rows(op, query, own[number], "queries_of_part")
        scores = (at_once if bias_of_all_keys else in_two)(number, queries)
        # All values to the last part, so that too many of them fail there.
        values = tensors.value
        if number < count - 1:
            values = rows(op, values, seen[number], "values_seen")
            values.producer().name = f"values_seen__{LENGTHS}"
        parts.append(weighted(op, steps, scores, values, number))
    return joined(op, steps, parts)


def positions_of_parts(op, length, starts, ends):
    """Each part's own positions, and those up to its end: lists of int64[n]."""
    every = op.Range(0, op.Squeeze(length), 1, _outputs=["positions"])

    def between(start, end):
        return op.Slice(every, start, end, [0], _outputs=["positions_between"])

    own = [between(start, end) for start, end in zip(starts, ends, strict=True)]
    return own, [own[0], *(between([0], end) for end in ends[1:-1])]


def rows(op, tensor, positions, name):
    """`tensor` at `positions` of its axis 1.

    Gather, not Slice: it copies with all threads, each of them batch rows that it will need itself.
    """
    return op.Gather(tensor, positions, axis=1, _outputs=[name])


def masked_beside(op, steps, queries, beside, triangle, before=None):
    """Scores of `queries` on keys before them, if there are any, and on those beside them."""
    scores = op.Add(steps.scores(op, queries, beside), triangle, _outputs=["scores_beside"])
    if before is None:
        return scores
    earlier = steps.scores(op, queries, before)
    return op.Concat(earlier, scores, axis=2, _outputs=["scores_masked"])


def weighted(op, steps, scores, values, number):
    """softmax(scores) @ values for one part; `number` tells draws of dropout apart."""
    weights = op.call_inline(formulas.softmax_weights, scores, _outputs=["weights"])
    return steps.weighted_sum(op, steps.drop(op, weights, draw=number), values)


def joined(op, steps, parts):
    """The parts as one output, under the query mask."""
    return (finished(op, steps, op.Concat(*parts, axis=1, _outputs=["attended"])),)


def causal_triangle(op, steps, length, width=None):
    """The causal bias of `length` queries on as many keys, or on `width` that end with those.

    [length, length] or [length, width].
    """
    shape = op.Concat(length, length if width is None else width, axis=0)
    number = ir.tensor(np.array([HIDDEN], steps.config.floats.compute))
    hidden = op.ConstantOfShape(shape, value=number, _outputs=["all_hidden"])
    first = op.Constant(value_int=1)
    if width is not None:
        before = op.Sub(width, length, _outputs=["keys_before_all"])
        first = op.Squeeze(op.Add(before, [1]), _outputs=["first_hidden_key"])
    return op.Trilu(hidden, first, upper=1, _outputs=["causal_triangle"])

"""Causal attention of a sequence to itself: queries in a few unrolled parts.

A part reads the keys before it and the keys beside it. Only the square beside it holds hidden
pairs, the same ones in every part, so the causal bias is one triangle. Parts span the batch: the
operators then split the work by batch rows, and what a core computes it mostly reads again itself.

Taken where Tq = Tv. But the shapes fit for every Tq and Tv: runtimes infer them in branches that
they never take, and refuse a file in which they do not fit. So all parts but the last are the same
share of the shorter length, and the last one is what remains of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir

from .. import formulas, sizes
from ..builder import OpBuilder, Results
from ..formulas import HIDDEN
from ..guards import Rule, batch_of_query, rule
from ..sizes import Size
from ..steps import Steps
from .dense import finished, mask_bias


def causal_halves(op: OpBuilder, steps: Steps) -> Results:
    """The output [batch, Tq, value_dim] in two parts."""
    steps = batch_of_query(op, steps.in_arithmetic(op))
    tensors = steps.tensors
    query = steps.prepare_query(op, tensors.query)
    queries, keys = steps.size(op, "Tq"), steps.size(op, "Tv")
    half = sizes.div(op, sizes.smaller(op, queries, keys), 2, "half_length")

    def split(tensor: ir.Value, length: Size, name: str) -> tuple[ir.Value, ir.Value]:
        cut, end = sizes.in_graph(half), sizes.in_graph(length)
        early = op.Slice(tensor, [0], cut, [1], _outputs=[f"early_{name}"])
        return early, op.Slice(tensor, cut, end, [1], _outputs=[f"late_{name}"])

    early, late = split(query, queries, "queries")
    before, beside = split(tensors.key, keys, "keys")
    seen = op.Slice(tensors.value, [0], sizes.in_graph(half), [1], _outputs=["early_values"])
    scores = steps.scores(op, late, beside)
    late_lengths = sizes.sub(op, queries, half), sizes.sub(op, keys, half)
    if steps.knows("Tq", "Tv"):
        shape: Any = list(late_lengths)
    else:
        shape = op.Shape(scores, start=1, _outputs=["late_lengths"])
    triangle = causal_triangle(op, steps, shape)
    masked = op.Add(scores, triangle, _outputs=["scores_beside"])
    earlier = steps.scores(op, late, before)
    late_scores = op.Concat(earlier, masked, axis=2, _outputs=["scores_masked"])
    attended_late = weighted(op, steps, late_scores, tensors.value, 1)
    if late_lengths != (half, half):
        early_lengths = sizes.vector(op, half, half)
        triangle = op.Slice(triangle, [0, 0], early_lengths, [0, 1], _outputs=["early_triangle"])
    early_scores = op.Add(steps.scores(op, early, before), triangle, _outputs=["scores_masked"])
    attended_early = weighted(op, steps, early_scores, seen, 0)
    return joined(op, steps, [attended_early, attended_late])


@dataclass(frozen=True)
class Cut:
    """Where queries and keys are cut into `count` parts.

    `own` and `seen` are positions, int64[n] each: those of each part but the last, and the keys up
    to the end of it. `own_queries` and `own_keys` are those of the last part.
    """

    count: int
    queries: Size
    keys: Size
    size: Size
    starts: list[Size]
    own: list[ir.Value]
    seen: list[ir.Value]
    own_queries: ir.Value
    own_keys: ir.Value


def cut(op: OpBuilder, steps: Steps, count: int) -> Cut:
    """`count` parts, all of one length but the last, which is what remains."""
    queries, keys = steps.size(op, "Tq"), steps.size(op, "Tv")
    size = sizes.div(op, sizes.smaller(op, queries, keys), count, "part_length")
    starts: list[Size] = [0, size]
    starts += [sizes.mul(op, size, number, "part_start") for number in range(2, count)]
    longest = sizes.larger(op, queries, keys)
    every = op.Range(0, sizes.scalar(op, longest), 1, _outputs=["positions"])

    def between(start: Size, end: Size) -> ir.Value:
        bounds = sizes.in_graph(start), sizes.in_graph(end)
        return op.Slice(every, *bounds, [0], _outputs=["positions_between"])

    own = [between(start, end) for start, end in pairwise(starts)]
    seen = [own[0], *(between(0, end) for end in starts[2:])]
    last = starts[-1]
    own_queries = between(last, queries)
    own_keys = own_queries if queries == keys else between(last, keys)
    return Cut(count, queries, keys, size, starts, own, seen, own_queries, own_keys)


def short_parts(op: OpBuilder, steps: Steps, count: int) -> Results:
    """The output [batch, Tq, value_dim]; the causal bias of a part is as wide as the keys it sees.

    One addition to all scores, and no joining of them. Knows a value mask that shows every query a
    key.
    """
    steps = batch_of_query(op, steps.in_arithmetic(op))
    parts = cut(op, steps, count)
    last = parts.starts[-1]
    value_bias = None
    if steps.tensors.value_mask is not None:
        value_bias = mask_bias(op, steps, None)  # [batch or 1, 1, Tv or 1]
    rest = sizes.sub(op, parts.queries, last, "last_part_length")
    shape = sizes.vector(op, rest, parts.keys)
    first_hidden = sizes.add(op, last, 1, "first_hidden_key")
    whole = causal_triangle(op, steps, shape, sizes.scalar(op, first_hidden))
    end = sizes.vector(op, parts.size, sizes.add(op, last, parts.size))

    def scores_of_part(number: int, queries: ir.Value) -> ir.Value:
        key, bias = steps.tensors.key, whole
        if number < count - 1:
            key = rows(op, key, parts.seen[number], "keys_seen")
            start = sizes.sub(op, last, parts.starts[number], "unseen_length")
            bias = op.Slice(
                bias, sizes.vector(op, 0, start), end, [0, 1], _outputs=["bias_of_part"]
            )
        scores = op.Add(steps.scores(op, queries, key), bias, _outputs=["scores_masked"])
        if value_bias is None:
            return scores
        # -1e9 twice weighs what -1e9 once does next to a key that is seen: nothing.
        if number == count - 1:
            masked = op.Add(scores, value_bias, _outputs=["scores_masked"])
            return steps.of_scores(op, masked, scores, queries=rest)
        until = sizes.in_graph(parts.starts[number + 1])
        hidden = op.Slice(value_bias, [0], until, [2], _outputs=["value_bias_of_part"])
        masked = op.Add(scores, hidden, _outputs=["scores_masked"])
        return rule(masked, "scores", Rule.VALUE_MASK)

    return attend_parts(op, steps, parts, scores_of_part)


def long_parts(op: OpBuilder, steps: Steps, count: int) -> Results:
    """The output [batch, Tq, value_dim]; the causal bias is a square, added to the keys beside."""
    steps = batch_of_query(op, steps.in_arithmetic(op))
    parts = cut(op, steps, count)
    last = parts.starts[-1]
    rest = sizes.sub(op, parts.queries, last), sizes.sub(op, parts.keys, last)
    whole = triangle = causal_triangle(op, steps, sizes.vector(op, *rest))
    if rest != (parts.size, parts.size):
        square = sizes.vector(op, parts.size, parts.size)
        triangle = op.Slice(whole, [0, 0], square, [0, 1], _outputs=["triangle_of_part"])

    def scores_of_part(number: int, queries: ir.Value) -> ir.Value:
        is_last = number == count - 1
        own = parts.own_keys if is_last else parts.own[number]
        beside = steps.scores(op, queries, rows(op, steps.tensors.key, own, "keys_beside"))
        bias = whole if is_last else triangle
        masked = op.Add(beside, bias, _outputs=["scores_beside"])
        if number == 0:
            return masked
        before = rows(op, steps.tensors.key, parts.seen[number - 1], "keys_before")
        earlier = steps.scores(op, queries, before)
        return op.Concat(earlier, masked, axis=2, _outputs=["scores_masked"])

    return attend_parts(op, steps, parts, scores_of_part)


def attend_parts(
    op: OpBuilder,
    steps: Steps,
    parts: Cut,
    scores_of_part: Callable[[int, ir.Value], ir.Value],
) -> Results:
    """The output of all parts, given the scores of each on the keys that it sees."""
    query = steps.prepare_query(op, steps.tensors.query)
    results: list[ir.Value] = []
    for number in range(parts.count):
        is_last = number == parts.count - 1
        own = parts.own_queries if is_last else parts.own[number]
        scores = scores_of_part(number, rows(op, query, own, "queries_of_part"))
        # All values to the last part, so that too many of them fail there.
        values = steps.tensors.value
        if not is_last:
            values = rows(op, values, parts.seen[number], "values_seen")
            rule(values, "values_seen", Rule.LENGTHS)
        results.append(weighted(op, steps, scores, values, number))
    return joined(op, steps, results)


def rows(op: OpBuilder, tensor: ir.Value, positions: ir.Value, name: str) -> ir.Value:
    """`tensor` at `positions` of its axis 1.

    Gather, not Slice: it copies with all threads, each of them batch rows that it will need itself.
    """
    return op.Gather(tensor, positions, axis=1, _outputs=[name])


def weighted(
    op: OpBuilder, steps: Steps, scores: ir.Value, values: ir.Value, number: int
) -> ir.Value:
    """softmax(scores) @ values for one part; `number` tells draws of dropout apart."""
    weights = op.call_inline(formulas.softmax_weights, scores, _outputs=["weights"])
    return steps.weighted_sum(op, steps.drop(op, weights, draw=number), values)


def joined(op: OpBuilder, steps: Steps, parts: list[ir.Value]) -> Results:
    """The parts as one output, under the query mask."""
    return (finished(op, steps, op.Concat(*parts, axis=1, _outputs=["attended"])),)


def causal_triangle(op: OpBuilder, steps: Steps, shape: Any, first_hidden: Any = 1) -> ir.Value:
    """HIDDEN from the key `first_hidden` on in the first row, one later in each next; else 0."""
    number = ir.tensor(np.array([HIDDEN], steps.config.floats.compute))
    hidden = op.ConstantOfShape(shape, value=number, _outputs=["all_hidden"])
    if isinstance(first_hidden, int):
        first_hidden = op.Constant(value_int=first_hidden)
    return op.Trilu(hidden, first_hidden, upper=1, _outputs=["causal_triangle"])

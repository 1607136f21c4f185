"""The auto schedule: one file that looks at its shapes and takes the form that is fastest there.

All arithmetic is inside the branches: what passes through an If from outside is copied.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import sizes
from ..builder import Form, OpBuilder, Results
from ..sizes import Size
from ..steps import Steps
from .choice import (
    asked_at_run_time,
    batch_is_small,
    enough_is_shown,
    four_parts_suit,
    halves_suit,
    long_four_suit,
    nothing_is_hidden,
    pairs_of_dense,
    parts_suit,
    query_is_small,
    something_is_empty,
)
from .dense import dense_masked, small_dense
from .parts import causal_halves, long_parts, short_parts
from .tiled import walk

LongPlain = Callable[[OpBuilder, Steps], Results]


def auto(op: OpBuilder, steps: Steps, long_plain: LongPlain | None = None) -> Results:
    """The output and, where wanted, the weights: [batch, Tq, value_dim], [batch, Tq, Tv].

    `long_plain`, where given, stands in for blocks where no key is hidden.
    """

    def large(op: OpBuilder) -> Results:
        if not steps.masks:
            return by_length(op, steps, long_plain)
        return steps.branches(
            op,
            nothing_is_hidden(op, steps, *steps.masks),
            then=("unmasked", lambda op: by_length(op, steps.unmasked(), long_plain)),
            otherwise=("masked", lambda op: by_length(op, steps, long_plain)),
        )

    return steps.branches(
        op,
        query_is_small(op, steps),
        then=("small", lambda op: small_dense(op, steps)),
        otherwise=("large", large),
    )


def by_length(op: OpBuilder, steps: Steps, long_plain: LongPlain | None) -> Results:
    """Dense, in causal parts, by `long_plain` or in blocks: by the lengths of query and key."""
    if steps.scores_wanted and steps.plain:
        # The score matrix is made anyway, and no part of it can be left out.
        return dense_masked(op, steps)
    queries, keys = steps.size(op, "Tq"), steps.size(op, "Tv")
    pairs = sizes.mul(op, queries, keys, "pairs")
    fused = long_plain is not None
    in_parts = steps.config.causal and steps.has_dot_scores and not steps.scores_wanted

    def short(op: OpBuilder) -> Results:
        return dense_masked(op, steps)

    def in_rows(op: OpBuilder) -> Results:
        if steps.plain and long_plain is not None:
            return long_plain(op, steps)
        return walk(op, steps)

    def long(op: OpBuilder) -> Results:
        if in_parts:
            return by_parts(op, steps, in_rows)
        if not steps.plain or fused or not steps.has_dot_scores:
            return in_rows(op)
        pairs = sizes.mul(op, steps.size(op, "Tq"), steps.size(op, "Tv"), "pairs")
        small = batch_is_small(op, steps, asked_at_run_time(op, steps, pairs))
        return steps.branches(op, small, then=("at_once", short), otherwise=("in_rows", in_rows))

    leads_to_rows = not in_parts and (not steps.plain or not steps.has_dot_scores)
    asked = asked_at_run_time(op, steps, pairs) if leads_to_rows else pairs
    few = sizes.less(op, asked, pairs_of_dense(steps, fused), "few_pairs")
    suits = sizes.either(op, few, something_is_empty(op, steps), name="dense_suits")
    return steps.branches(op, suits, then=("short", short), otherwise=("long", long))


def by_parts(op: OpBuilder, steps: Steps, in_rows: Form) -> Results:
    """Two, four or eight causal parts, or else blocks: fewer questions where time is short."""

    def lengths(op: OpBuilder) -> tuple[Size, Size, Size]:
        queries, keys = steps.size(op, "Tq"), steps.size(op, "Tv")
        pairs = sizes.mul(op, queries, keys, "pairs")
        scores = sizes.mul(op, steps.size(op, "batch"), pairs, "scores_of_batch")
        return queries, keys, scores

    def in_four(op: OpBuilder) -> Results:
        return short_parts(op, steps, 4)

    def not_in_halves(op: OpBuilder) -> Results:
        queries, keys, scores = lengths(op)
        suit = parts_suit(op, queries, keys, asked_at_run_time(op, steps, scores))
        return steps.branches(op, suit, then=("in_parts", in_parts), otherwise=("in_rows", in_rows))

    def in_parts(op: OpBuilder) -> Results:
        return steps.branches(
            op,
            four_parts_suit(op, steps.size(op, "Tq")),
            then=("in_four", in_four),
            otherwise=("in_longer_parts", in_longer_parts),
        )

    def in_longer_parts(op: OpBuilder) -> Results:
        return steps.branches(
            op,
            long_four_suit(op, lengths(op)[2]),
            then=("in_long_four", lambda op: long_parts(op, steps, 4)),
            otherwise=("in_eight", lambda op: long_parts(op, steps, 8)),
        )

    queries, keys, scores = lengths(op)
    mask = steps.tensors.value_mask
    if mask is None:
        return steps.branches(
            op,
            halves_suit(op, queries, keys, scores),
            then=("in_halves", lambda op: causal_halves(op, steps)),
            otherwise=("not_in_halves", not_in_halves),
        )
    parts, four = parts_suit(op, queries, keys, scores), four_parts_suit(op, queries)
    suit = sizes.both(op, parts, four, name="four_parts_suit")
    if suit is not False:
        suit = sizes.both(op, suit, enough_is_shown(op, mask), name="masked_parts_suit")
    return steps.branches(op, suit, then=("in_four", in_four), otherwise=("in_rows", in_rows))

"""The auto schedule: one file that looks at its shapes and takes the form that is fastest there.

All arithmetic is inside the branches: what passes through an If from outside is copied.
"""

from __future__ import annotations

from ..steps import Steps, branches
from .dense import masked_dense, nothing_is_hidden, small_dense
from .parts import causal_halves, causal_parts
from .thresholds import (
    batch_is_small,
    four_parts_suit,
    halves_suit,
    key_length,
    long_four_suit,
    masked_parts_suit,
    nothing_to_attend,
    pairs_of_dense,
    parts_suit,
    query_is_small,
    query_length,
)
from .tiled import walk


def auto(op, steps: Steps, scores_wanted: bool, long_plain=None):
    """The output and, where wanted, the weights: [batch, Tq, value_dim], [batch, Tq, Tv].

    `long_plain(op, steps)`, where given, stands in for blocks where no key is hidden.
    """

    def small(op):
        return small_dense(op, steps, scores_wanted)

    def large(op):
        masks = [
            mask
            for mask in (steps.tensors.query_mask, steps.tensors.value_mask)
            if mask is not None
        ]
        if not masks:
            return by_length(op, steps, scores_wanted, long_plain)
        return branches(
            op,
            steps,
            nothing_is_hidden(op, *masks),
            {
                "unmasked": lambda op: by_length(op, steps.unmasked(), scores_wanted, long_plain),
                "masked": lambda op: by_length(op, steps, scores_wanted, long_plain),
            },
            scores_wanted,
        )

    return branches(
        op, steps, query_is_small(op, steps), {"small": small, "large": large}, scores_wanted
    )


def by_length(op, steps, scores_wanted, long_plain=None):
    """Dense, in causal parts, by `long_plain` or in blocks: by the lengths of query and key."""
    fused = long_plain is not None
    plain = not steps.config.causal and steps.tensors.value_mask is None
    lengths = query_length(op, steps), key_length(op, steps)
    pairs = op.Mul(*lengths, _outputs=["pairs"])

    def short(op):
        return masked_dense(op, steps, scores_wanted)

    def in_rows(op):
        if plain and fused:
            return long_plain(op, steps)
        return walk(op, steps, scores_wanted)

    def long(op):
        if plain:
            forms = {"at_once": short, "in_rows": in_rows}
            return branches(
                op, steps, batch_is_small(op, steps, pairs, fused), forms, scores_wanted
            )
        if not steps.has_dot_scores or scores_wanted or not steps.config.causal:
            return in_rows(op)
        batch = op.Shape(steps.tensors.query, start=0, end=1, _outputs=["batch_size"])
        scores = op.Mul(batch, pairs, _outputs=["scores_of_batch"])
        if steps.tensors.value_mask is not None:
            forms = {"in_four": lambda op: in_four(op, steps), "in_rows": in_rows}
            suit = masked_parts_suit(op, steps, lengths, scores)
            return branches(op, steps, suit, forms, False)
        return by_parts(op, steps, lengths, scores, in_rows)

    if scores_wanted and plain:
        # The score matrix is made anyway, and no part of it can be left out.
        return short(op)
    limit = pairs_of_dense(steps, plain, fused, scores_wanted)
    few = op.Less(pairs, [limit], _outputs=["few_pairs"])
    if not plain:
        few = op.Or(few, nothing_to_attend(op, steps), _outputs=["dense_suits"])
    return branches(op, steps, few, {"short": short, "long": long}, scores_wanted)


def by_parts(op, steps, lengths, scores, in_rows):
    """Two, four or eight causal parts, or else blocks: fewer questions where time is short."""

    def not_in_halves(op):
        forms = {"in_parts": in_parts, "in_rows": in_rows}
        return branches(op, steps, parts_suit(op, lengths, scores), forms, False)

    def in_parts(op):
        forms = {
            "in_four": lambda op: in_four(op, steps),
            "in_longer_parts": in_longer_parts,
        }
        return branches(op, steps, four_parts_suit(op, lengths), forms, False)

    def in_longer_parts(op):
        forms = {
            "in_long_four": lambda op: causal_parts(op, steps, 4),
            "in_eight": lambda op: causal_parts(op, steps, 8),
        }
        return branches(op, steps, long_four_suit(op, scores), forms, False)

    forms = {"in_halves": lambda op: causal_halves(op, steps), "not_in_halves": not_in_halves}
    return branches(op, steps, halves_suit(op, lengths, scores), forms, False)


def in_four(op, steps):
    """Four causal parts of short sequences."""
    return causal_parts(op, steps, 4, bias_of_all_keys=True)

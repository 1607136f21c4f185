"""The auto schedule: one file that looks at its shapes and takes the form that is fastest there.

All arithmetic is inside the branches: what passes through an If from outside is copied.
"""

from __future__ import annotations

from .causal import causal_blocks
from .dense import nothing_is_hidden, small_dense
from .pieces import Steps, branches
from .thresholds import causal_block, dense_suits, query_is_small
from .tiled import walk


def auto(op, steps: Steps, scores_wanted: bool):
    """The output and, where wanted, the weights: [batch, Tq, value_dim], [batch, Tq, Tv]."""

    def small(op):
        return small_dense(op, steps, scores_wanted)

    def large(op):
        masks = [
            mask
            for mask in (steps.tensors.query_mask, steps.tensors.value_mask)
            if mask is not None
        ]
        if not masks:
            return by_length(op, steps, scores_wanted)
        return branches(
            op,
            steps,
            nothing_is_hidden(op, *masks),
            {
                "unmasked": lambda op: by_length(op, steps.unmasked(), scores_wanted),
                "masked": lambda op: by_length(op, steps, scores_wanted),
            },
            scores_wanted,
        )

    return branches(
        op, steps, query_is_small(op, steps), {"small": small, "large": large}, scores_wanted
    )


def by_length(op, steps, scores_wanted):
    """Dense or in blocks, by the lengths of query and key."""

    def short(op):
        return small_dense(op, steps, scores_wanted)

    def long(op):
        spans_batch = steps.config.causal and steps.has_dot_scores and not scores_wanted
        if steps.tensors.value_mask is not None or not spans_batch:
            return walk(op, steps, scores_wanted)
        block, suits = causal_block(op, steps)
        return branches(
            op,
            steps,
            suits,
            {
                "in_causal_blocks": lambda op: causal_blocks(op, steps, block),
                "in_rows": lambda op: walk(op, steps, scores_wanted),
            },
            scores_wanted,
        )

    if scores_wanted and not steps.config.causal and steps.tensors.value_mask is None:
        # The score matrix is made anyway, and no part of it can be left out.
        return short(op)
    return branches(
        op,
        steps,
        dense_suits(op, steps),
        {"short": short, "long": long},
        scores_wanted,
    )

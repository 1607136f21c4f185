"""The dense schedule: the whole score matrix at once. Fewest operators, memory Tq x Tv."""

from __future__ import annotations

from . import functions
from .pieces import Steps, subgraph


def dense(op, steps: Steps, scores_wanted: bool):
    """The attended values and, where wanted, the weights: [batch, Tq, value_dim], [batch, Tq, Tv].

    A value mask that hides nothing costs no pass over the scores: a small `If` looks first.
    """
    tensors = steps.tensors
    query = steps.prepare_query(op, tensors.query)
    future = None
    if steps.config.causal:
        future = op.call_inline(functions.causal_bias, query, tensors.key, _outputs=["future_bias"])

    def attend(op, bias):
        attended, weights = steps.attend(op, query, tensors.key, tensors.value, bias)
        return (attended, weights) if scores_wanted else (attended,)

    if tensors.value_mask is None:
        return attend(op, future)

    def masked(op):
        return attend(op, mask_bias(op, steps, tensors.value_mask, future))

    def unmasked(op):
        return attend(op, future)

    def outputs(branch):
        declared = [steps.value_named(f"attended_{branch}", "batch", "Tq", "value_dim")]
        if scores_wanted:
            declared.append(steps.value_named(f"weights_{branch}", "batch", "Tq", "Tv"))
        return declared

    results = op.If(
        nothing_is_hidden(op, tensors.value_mask),
        then_branch=subgraph(op, unmasked, outputs("unmasked")),
        else_branch=subgraph(op, masked, outputs("masked")),
        _outputs=["attended", "weights"] if scores_wanted else ["attended"],
    )
    return tuple(results) if scores_wanted else (results,)


def mask_bias(op, steps, value_mask, future):
    """The bias of value_mask AND, where `future` is given, causal."""
    if future is None:
        return op.call_inline(
            functions.value_mask_bias, value_mask, steps.tensors.query, _outputs=["value_bias"]
        )
    return op.call_inline(
        functions.value_and_causal_bias, value_mask, future, _outputs=["masked_bias"]
    )


def nothing_is_hidden(op, value_mask):
    """True where value_mask is [[True]], which stands for no mask.

    Every True counts 1, every False 2: only a single True sums to 1. An empty mask sums to 0.
    """
    counts = op.Where(value_mask, 1.0, 2.0, _outputs=["hidden_counts_twice"])
    total = op.ReduceSum(counts, keepdims=0, _outputs=["mask_total"])
    return op.Equal(total, 1.0, _outputs=["nothing_is_hidden"])

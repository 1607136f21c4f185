"""The dense schedule: the whole score matrix at once. Fewest operators, memory Tq x Tv."""

from __future__ import annotations

from .. import formulas
from ..guards import BATCHES, batch_of_query, one_batch
from ..steps import Steps, branches


def dense(op, steps: Steps, scores_wanted: bool):
    """The output and, where wanted, the weights: [batch, Tq, value_dim], [batch, Tq, Tv].

    A value mask that hides nothing costs no pass over the scores: a small `If` looks first.
    """
    steps = one_batch(op, steps)
    tensors = steps.tensors
    query = steps.prepare_query(op, tensors.query)
    future = future_bias(op, steps, query)

    def unmasked(op):
        return attend(op, steps, query, future, scores_wanted)

    def masked(op):
        return attend(op, steps, query, mask_bias(op, steps, future), scores_wanted)

    if tensors.value_mask is None:
        attended, *weights = unmasked(op)
    else:
        attended, *weights = branches(
            op,
            steps,
            nothing_is_hidden(op, tensors.value_mask),
            {"unmasked": unmasked, "masked": masked},
            scores_wanted,
        )
    return (finished(op, steps, attended), *weights)


def masked_dense(op, steps: Steps, scores_wanted: bool):
    """As `dense`, but a value mask is always added: no If where masks are known to hide."""
    return attend_masked(op, one_batch(op, steps), scores_wanted)


def small_dense(op, steps: Steps, scores_wanted: bool):
    """As `masked_dense` with fewer operators, for scores that need no place found beforehand."""
    return attend_masked(op, batch_of_query(op, steps), scores_wanted)


def attend_masked(op, steps, scores_wanted):
    query = steps.prepare_query(op, steps.tensors.query)
    bias = future_bias(op, steps, query)
    if steps.tensors.value_mask is not None:
        bias = mask_bias(op, steps, bias)
    attended, *weights = attend(op, steps, query, bias, scores_wanted)
    return (finished(op, steps, attended), *weights)


def attend(op, steps, query, bias, scores_wanted):
    attended, weights = steps.attend(op, query, steps.tensors.key, steps.tensors.value, bias)
    return (attended, weights) if scores_wanted else (attended,)


def future_bias(op, steps, query):
    """The bias of causal [Tq, Tv], None where the layer is not causal."""
    if not steps.config.causal:
        return None
    return op.call_inline(formulas.causal_bias, query, steps.tensors.key, _outputs=["future_bias"])


def mask_bias(op, steps, future):
    """The bias of value_mask AND, where `future` is given, causal."""
    value_mask = steps.tensors.value_mask
    if future is None:
        return op.call_inline(
            formulas.value_mask_bias, value_mask, steps.tensors.query, _outputs=["value_bias"]
        )
    return op.call_inline(
        formulas.value_and_causal_bias, value_mask, future, _outputs=["masked_bias"]
    )


def finished(op, steps, attended):
    """`attended`, [batch, Tq, value_dim], under the query mask, if there is one.

    The Reshape refuses a mask that is longer than an axis of 1 and would stretch it.
    """
    query_mask = steps.tensors.query_mask
    if query_mask is None:
        return attended
    shape = op.Shape(attended, _outputs=["output_shape"])
    masked = op.call_inline(
        formulas.masked_output, attended, query_mask, _outputs=["output_masked"]
    )
    output = op.Reshape(masked, shape, _outputs=["output_checked"])
    output.producer().name = f"output__{BATCHES}"
    return output


def nothing_is_hidden(op, *masks):
    """True where every mask is [[True]], which stands for no mask: bool[].

    A True counts 1, a False 2: only a single True sums to 1. An empty mask sums to 0.
    """
    totals = []
    for mask in masks:
        counts = op.Where(mask, 1.0, 2.0, _outputs=["hidden_counts_twice"])
        # keepdims: older runtimes refuse to reduce an empty axis away.
        totals.append(op.ReduceSum(counts, keepdims=1, _outputs=["mask_total"]))
    product = totals[0]
    for total in totals[1:]:
        product = op.Mul(product, total, _outputs=["mask_totals"])
    return op.Equal(op.Squeeze(product), 1.0, _outputs=["nothing_is_hidden"])

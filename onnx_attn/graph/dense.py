"""The dense schedule: the whole score matrix at once. Fewest operators, memory Tq x Tv."""

from __future__ import annotations

from . import functions
from .guards import one_batch
from .pieces import Steps, branches


def dense(op, steps: Steps, scores_wanted: bool):
    """The output and, where wanted, the weights: [batch, Tq, value_dim], [batch, Tq, Tv].

    A value mask that hides nothing costs no pass over the scores: a small `If` looks first.
    """
    steps, finish = checked(op, steps)
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
    return (finish(op, steps, attended), *weights)


def masked_dense(op, steps: Steps, scores_wanted: bool):
    """As `dense`, but a value mask is always added: no If where masks are known to hide."""
    steps, finish = checked(op, steps)
    return attend_masked(op, steps, scores_wanted, finish)


def small_dense(op, steps: Steps, scores_wanted: bool):
    """As `masked_dense` with fewer operators, for outputs so small that a copy costs nothing."""
    return attend_masked(op, steps, scores_wanted, finished)


def attend_masked(op, steps, scores_wanted, finish):
    query = steps.prepare_query(op, steps.tensors.query)
    bias = future_bias(op, steps, query)
    if steps.tensors.value_mask is not None:
        bias = mask_bias(op, steps, bias)
    attended, *weights = attend(op, steps, query, bias, scores_wanted)
    return (finish(op, steps, attended), *weights)


def checked(op, steps):
    """Checked tensors, and who finishes the output: without a query mask nothing is left to do.

    The Reshape of `finished` copies the output: a twentieth of the time at 32x128x128x64.
    """
    if steps.tensors.query_mask is not None:
        return steps, finished
    return one_batch(op, steps), as_attended


def as_attended(_op, _steps, attended):
    """The output without a query mask, of checked tensors."""
    return attended


def attend(op, steps, query, bias, scores_wanted):
    attended, weights = steps.attend(op, query, steps.tensors.key, steps.tensors.value, bias)
    return (attended, weights) if scores_wanted else (attended,)


def future_bias(op, steps, query):
    """The bias of causal [Tq, Tv], None where the layer is not causal."""
    if not steps.config.causal:
        return None
    return op.call_inline(functions.causal_bias, query, steps.tensors.key, _outputs=["future_bias"])


def mask_bias(op, steps, future):
    """The bias of value_mask AND, where `future` is given, causal."""
    value_mask = steps.tensors.value_mask
    if future is None:
        return op.call_inline(
            functions.value_mask_bias, value_mask, steps.tensors.query, _outputs=["value_bias"]
        )
    return op.call_inline(
        functions.value_and_causal_bias, value_mask, future, _outputs=["masked_bias"]
    )


def finished(op, steps, attended):
    """`attended` under the query mask, if its shape is [batch, Tq, value_dim].

    Any other shape is the runtime's error. Broadcasting would take a query, key or value of batch
    1 beside others, or a mask longer than an axis of 1, and give more rows than the query has. The
    smallest batch is the one that such a result cannot have.
    """
    tensors = steps.tensors
    if tensors.query_mask is not None:
        attended = op.call_inline(
            functions.masked_output, attended, tensors.query_mask, _outputs=["output_masked"]
        )
    inputs = {"query": tensors.query, "key": tensors.key, "value": tensors.value}
    if tensors.key is tensors.value:
        del inputs["key"]
    batches = [
        op.Shape(tensor, end=1, _outputs=[f"{name}_batch"]) for name, tensor in inputs.items()
    ]
    smallest = op.Min(*batches, _outputs=["smallest_batch"])
    query_length = op.Shape(tensors.query, start=1, end=2, _outputs=["query_length"])
    value_dim = op.Shape(tensors.value, start=2, end=3, _outputs=["value_dim_size"])
    # No 0 for a length as it is: ONNX Runtime then takes the Reshape for one that changes nothing.
    shape = op.Concat(smallest, query_length, value_dim, axis=0, _outputs=["output_shape"])
    output = op.Reshape(attended, shape, _outputs=["output_checked"])
    output.producer().name = "output__batches_and_masks_must_fit_the_query"
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

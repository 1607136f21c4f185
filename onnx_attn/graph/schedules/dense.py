"""The dense schedule: the whole score matrix at once. Fewest operators, memory Tq x Tv."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from .. import formulas
from ..builder import OpBuilder, Results
from ..guards import (
    Rule,
    batch_misfit,
    batch_of_query,
    fits,
    misfit,
    refused_unless_zero,
    rule,
)
from ..steps import Steps
from .choice import nothing_is_hidden


def dense(op: OpBuilder, steps: Steps) -> Results:
    """The output and, where wanted, the weights: [batch, Tq, value_dim], [batch, Tq, Tv].

    A value mask that hides nothing costs no pass over the scores: a small `If` looks first.
    """
    mask = steps.tensors.value_mask
    if mask is None:
        return dense_masked(op, steps)
    attended, *weights = steps.branches(
        op,
        nothing_is_hidden(op, steps, mask),
        then=("unmasked", lambda op: attend_all(op, steps.in_arithmetic(op), False)),
        otherwise=("masked", lambda op: attend_all(op, steps.in_arithmetic(op))),
    )
    return (finished(op, steps, attended), *weights)


def dense_masked(op: OpBuilder, steps: Steps) -> Results:
    """As `dense`, but a value mask is always added: no If where masks are known to hide."""
    attended, *weights = attend_all(op, steps.in_arithmetic(op))
    return (finished(op, steps, attended), *weights)


def small_dense(op: OpBuilder, steps: Steps) -> Results:
    """As `dense_masked` with fewer operators, for small scores and tensors that have elements."""
    steps = batch_of_query(op, steps.in_arithmetic(op))
    attended, *weights = attend_all(op, steps)
    return (finished(op, steps, attended), *weights)


def attend_all(op: OpBuilder, steps: Steps, with_value_mask: bool = True) -> Results:
    """All queries on all keys, before the query mask."""
    tensors = steps.tensors
    misfits = [] if steps.filled else batch_misfit(op, steps)
    query = steps.prepare_query(op, tensors.query)
    bias = future_bias(op, steps, query)
    if tensors.value_mask is not None and with_value_mask:
        bias = mask_bias(op, steps, bias)
    elif tensors.value_mask is not None:
        steps = steps.unmasked()
    return steps.attend(op, query, tensors.key, tensors.value, bias, misfits)


def future_bias(op: OpBuilder, steps: Steps, query: ir.Value) -> ir.Value | None:
    """The bias of causal [Tq, Tv], None where the layer is not causal."""
    if not steps.config.causal:
        return None
    if steps.knows("Tq", "Tv"):
        hidden = op.Expand(
            steps.number(op, formulas.HIDDEN), [steps.known["Tq"], steps.known["Tv"]]
        )
        return op.Trilu(hidden, op.Constant(value_int=1), upper=1, _outputs=["future_bias"])
    return op.call_inline(formulas.causal_bias, query, steps.tensors.key, _outputs=["future_bias"])


def mask_bias(op: OpBuilder, steps: Steps, future: ir.Value | None) -> ir.Value:
    """The bias of value_mask AND, where `future` is given, causal."""
    value_mask = steps.tensors.value_mask
    if future is None:
        return op.call_inline(
            formulas.value_mask_bias, value_mask, steps.tensors.query, _outputs=["value_bias"]
        )
    bias = op.call_inline(
        formulas.value_and_causal_bias, value_mask, future, _outputs=["masked_bias"]
    )
    return rule(bias, "masked_bias", Rule.VALUE_MASK)


def finished(op: OpBuilder, steps: Steps, attended: ir.Value) -> ir.Value:
    """`attended`, [batch, Tq, value_dim], under the query mask, if there is one.

    A mask that is longer than an axis of 1 would stretch it: the Reshape refuses that.
    """
    query_mask = steps.tensors.query_mask
    if query_mask is None:
        return attended
    masked = op.call_inline(
        formulas.masked_output, attended, query_mask, _outputs=["output_masked"]
    )
    rule(masked, "output", Rule.BATCHES)
    if fits(query_mask, (steps.known.get("batch"), steps.known.get("Tq"))):
        return masked
    if steps.knows("batch", "Tq", "value_dim"):
        shape: Any = [steps.known[dim] for dim in ("batch", "Tq", "value_dim")]
    else:
        shape = op.Shape(attended, _outputs=["output_shape"])
    if steps.may_be_empty("batch", "Tq", "value_dim"):
        misfits = [misfit(op, op.Shape(masked), shape, Rule.BATCHES)]
        return refused_unless_zero(op, masked, 3, misfits, "output")
    return rule(op.Reshape(masked, shape, _outputs=["output_checked"]), "output", Rule.BATCHES)

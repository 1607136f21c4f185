"""Shape rules as nodes that fail: a failing node's name reaches the runtime's message.

Nodes that compute and cannot take wrong shapes bear the rule's name. Where blocks, slices and
broadcasting would hide a wrong shape, a tensor is reshaped, which moves no data, to a shape that
only a right one fits. Sizes fixed in the file need no rule: the runtime refuses others itself.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from . import sizes
from .builder import OpBuilder
from .sizes import Size

if TYPE_CHECKING:
    from .steps import Steps

RULE_KEY = "onnx_attn.rule"


class Rule(Enum):
    """What shapes have to be. A node that enforces rules has them in its name."""

    LENGTHS = "key_and_value_must_have_the_same_length"
    DIMS = "query_and_key_must_have_the_same_dim"
    SCALE_DIM = "scale_query_and_key_must_have_the_same_dim"
    BATCHES = "batches_and_masks_must_fit_the_query"
    VALUE_MASK = "value_mask_must_fit_the_key"
    HEADS = "batches_and_heads_must_fit_the_query"
    BIAS = "bias_must_fit_the_scores"
    FUSED = "query_key_and_value_must_fit"


def rule(value: ir.Value, what: str, *rules: Rule) -> ir.Value:
    """`value`, whose node is named after what it computes and the `rules` it enforces."""
    node = value.producer()
    assert node is not None
    node.name = "__".join((what, *(each.value for each in rules)))
    node.metadata_props[RULE_KEY] = node.name
    return value


def guarded(op: OpBuilder, steps: Steps) -> Steps:
    """The same layer on tensors of one batch size, key and value of one length.

    Slices up to one bound hide lengths that differ, and a row of batch 1 stretches over all others.
    Each tensor is reshaped to the smallest batch and length of all: only equal ones fit. The
    smallest is taken by Min because ONNX Runtime deletes a Reshape to a dim that has the same name.
    """
    tensors = steps.tensors
    if steps.knows("batch", "Tv"):
        return steps
    shared = tensors.key is tensors.value
    keyed = [tensors.key] if shared else [tensors.key, tensors.value]
    every = (tensors.query, *keyed)
    batch = steps.known.get("batch")
    if batch is None:
        batches = [op.Shape(tensor, start=0, end=1) for tensor in every]
        batch = op.Min(*batches, _outputs=["smallest_batch"])
    length = steps.known.get("Tv")
    if length is None:
        lengths = [op.Shape(tensor, start=1, end=2) for tensor in keyed]
        length = op.Min(*lengths, _outputs=["smallest_length"])

    def check(tensor: ir.Value, name: str, length: Size, width: Size, *rules: Rule) -> ir.Value:
        shape = sizes.vector(op, batch, length, width)
        return rule(op.Reshape(tensor, shape, _outputs=["checked"]), name, *rules)

    both, width = (Rule.LENGTHS, Rule.BATCHES), steps.size(op, "value_dim")
    query = tensors.query
    if not steps.knows("batch"):
        rows, dim = steps.size(op, "Tq"), steps.size(op, "dim")
        query = check(query, "query", rows, dim, Rule.BATCHES)
    key_dim = steps.known.get("dim") or op.Shape(tensors.key, start=2, end=3)
    key = check(tensors.key, "key", length, key_dim, *both)
    value = key if shared else check(tensors.value, "value", length, width, *both)
    return replace(steps, tensors=replace(tensors, query=query, key=key, value=value))


def batch_of_query(op: OpBuilder, steps: Steps) -> Steps:
    """The same layer on key and value of the query's batch size; others are the runtime's error.

    For queries that are not empty, since a dim of 0 in a Reshape is the tensor's own. Fewest
    operators; but ONNX Runtime then does not know the shape of the scores before a run, for which
    see `one_batch`.
    """
    if steps.knows("batch"):
        return steps
    tensors = steps.tensors
    batch = op.Shape(tensors.query, start=0, end=1, _outputs=["query_batch"])
    shape = sizes.vector(op, batch, 0, 0)

    def check(tensor: ir.Value, name: str) -> ir.Value:
        return rule(op.Reshape(tensor, shape, _outputs=[f"{name}_checked"]), name, Rule.BATCHES)

    key = check(tensors.key, "key")
    value = key if tensors.value is tensors.key else check(tensors.value, "value")
    return replace(steps, tensors=replace(tensors, key=key, value=value))


def one_batch(op: OpBuilder, steps: Steps) -> Steps:
    """The same layer on tensors of one batch size; others are the runtime's error.

    For forms that multiply whole tensors, so that MatMul refuses all other shapes that do not fit.
    Each axis of the value is to be longer by the difference of the batch sizes, so that only none
    fits. The value bears it: ONNX Runtime then still knows the shape of scores and weights before a
    run, and its memory planning gives both a place beforehand
    (https://onnxruntime.ai/docs/performance/tune-performance/memory.html), worth 0.5 of 6 ms at
    16x512x512x64.
    """
    if steps.knows("batch"):
        return steps
    tensors = steps.tensors
    inputs = [tensors.query, tensors.value]
    if tensors.key is not tensors.value:
        inputs.append(tensors.key)
    batches = [op.Shape(tensor, start=0, end=1) for tensor in inputs]
    difference = op.Sub(op.Max(*batches), op.Min(*batches), _outputs=["batch_difference"])
    shape = op.Add(op.Shape(tensors.value), difference, _outputs=["value_shape"])
    checked = op.Reshape(tensors.value, shape, _outputs=["value_checked"])
    return replace(steps, tensors=replace(tensors, value=rule(checked, "value", Rule.BATCHES)))


def mask_of_rows(
    op: OpBuilder, mask: ir.Value, batch: Size, length: Size, name: str, broken: Rule
) -> ir.Value:
    """A mask of every batch row, [batch, length]; one that does not fit is the runtime's error.

    Expand alone would let a mask longer than an axis of 1 stretch that axis.
    """
    if fits(mask, (batch, length), exactly=True):
        return mask
    shape = sizes.vector(op, batch, length)
    expanded = rule(op.Expand(mask, shape, _outputs=["mask_expanded"]), name, broken)
    if fits(mask, (batch, length)):
        return expanded
    return rule(op.Reshape(expanded, shape, _outputs=["mask_of_rows"]), name, broken)


def fits(mask: ir.Value, axes: tuple[Size | None, ...], exactly: bool = False) -> bool:
    """Whether the dims of `mask` are known to fit `axes`: each 1 (unless `exactly`) or equal."""
    dims: Any = mask.shape
    return all(
        isinstance(dim, int) and ((dim == 1 and not exactly) or dim == axis)
        for dim, axis in zip(dims, axes, strict=True)
    )

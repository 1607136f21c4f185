"""Shape rules as nodes that fail: a failing node's name reaches the runtime's message.

Nodes that compute and cannot take wrong shapes bear the rule's name. Where blocks, slices and
broadcasting would hide a wrong shape, a tensor is reshaped, which moves no data, to a shape that
only a right one fits. Sizes fixed in the file need no rule: the runtime refuses others itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx_ir as ir

from . import sizes
from .builder import OpBuilder
from .sizes import Size

if TYPE_CHECKING:
    from .steps import Steps

RULE_KEY = "onnx_attn.rule"

# Taken off a size for each by which tensors differ: more than any has, so that less than -1 is
# left, which no Reshape takes. Runtimes that compute shapes in 32 bits know the number.
PENALTY = 2**30


class Rule(Enum):
    """What shapes have to be. A node that enforces rules has them in its name."""

    LENGTHS = "key_and_value_must_have_the_same_length"
    DIMS = "query_and_key_must_have_the_same_dim"
    FEATURES = "dim_must_not_be_0"
    SCALE_DIM = "scale_query_and_key_must_have_the_same_dim"
    BATCHES = "batches_and_masks_must_fit_the_query"
    VALUE_MASK = "value_mask_must_fit_the_key"
    HEADS = "batches_and_heads_must_fit_the_query"
    BIAS = "bias_must_fit_the_scores"
    SCALAR = "must_be_one_number"
    FUSED = "query_key_and_value_must_fit"


def rule(value: ir.Value, what: str, *rules: Rule) -> ir.Value:
    """`value`, whose node is named after what it computes and the `rules` it enforces."""
    node = value.producer()
    assert node is not None
    node.name = "__".join((what, *(each.value for each in rules)))
    node.metadata_props[RULE_KEY] = node.name
    return value


def checked_scalar(op: OpBuilder, scalar: ir.Value, name: str) -> ir.Value:
    """A scalar that a caller feeds, as [1]. ONNX Runtime itself takes any shape for a scalar."""
    return rule(op.Reshape(scalar, [1], _outputs=[f"{name}_checked"]), name, Rule.SCALAR)


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

    For tensors that all have elements, since a dim of 0 in a Reshape is the tensor's own. Fewest
    operators; but ONNX Runtime then does not know the shape of the scores before a run, for which
    see `batch_misfit`.
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
    return replace(steps, tensors=replace(tensors, key=key, value=value), filled=True)


class Misfit(NamedTuple):
    """Numbers that have to be 0, and the rules that are broken where one is more."""

    numbers: ir.Value  # int64[1] or [rank]
    rules: tuple[Rule, ...]


def batch_misfit(op: OpBuilder, steps: Steps) -> list[Misfit]:
    """By how much the batch sizes of query, key and value differ; all of a batch where dim is 0.

    For forms that multiply whole tensors, so that MatMul refuses all other shapes that do not fit.
    """
    tensors, rules = steps.tensors, list[Rule]()
    batches: list[Any]
    if steps.knows("batch"):
        batches = [[steps.known["batch"]]]
        largest: Any = batches[0]
    else:
        every = dict.fromkeys((tensors.query, tensors.value, tensors.key))
        batches = [op.Shape(tensor, start=0, end=1) for tensor in every]
        largest = op.Max(*batches)
        rules.append(Rule.BATCHES)
    if not steps.knows("dim") and not steps.knows("batch", "Tq", "Tv"):
        features = op.Shape(tensors.query, start=2, end=3)
        batches.append(op.Mul(batches[0], features, _outputs=["none_or_a_batch_at_least"]))
        rules.append(Rule.FEATURES)
    if not rules:
        return []
    difference = op.Sub(largest, op.Min(*batches), _outputs=["batch_difference"])
    return [Misfit(difference, tuple(rules))]


def of_features(op: OpBuilder, steps: Steps) -> Steps:
    """The same layer on a query of features, where no form asks whether there are elements.

    ONNX Runtime leaves scores of no features as its memory was, from the second batch row on.
    """
    if steps.knows("dim") or not steps.knows("batch", "Tq", "Tv"):
        return steps
    query = with_features(op, steps.tensors.query, 3)
    return replace(steps, tensors=replace(steps.tensors, query=query))


def with_features(op: OpBuilder, query: ir.Value, rank: int) -> ir.Value:
    """A query whose last dim is not 0; another is the runtime's error."""
    features = op.Shape(query, start=rank - 1, end=rank)
    none = op.Sub([1], op.Min(features, [1]), _outputs=["no_features"])
    return refused_unless_zero(op, query, rank, [Misfit(none, (Rule.FEATURES,))], "query")


def misfit(op: OpBuilder, shape: Any, wanted: Any, broken: Rule) -> Misfit:
    """0 for each dim that is as wanted, more than 0 for another: int64[rank]."""
    difference = op.Sub(shape, wanted, _outputs=["difference"])
    return Misfit(op.Mul(difference, difference, _outputs=["misfit"]), (broken,))


def refused_unless_zero(
    op: OpBuilder, tensor: ir.Value, rank: int, misfits: Sequence[Misfit], what: str
) -> ir.Value:
    """`tensor` as it is, where all misfits are 0.

    A Reshape takes 0 for the tensor's own dim, and no number below -1: so also tensors without
    elements, which fit any shape of none, are refused. (Where and Equal take twice the time.)
    """
    every = [each.numbers for each in misfits]
    total = reduce(lambda a, b: op.Add(a, b, _outputs=["misfits"]), every)
    shape = op.Mul(total, op.Constant(value_ints=[-2] * rank), _outputs=["same_or_invalid"])
    checked = op.Reshape(tensor, shape, _outputs=[f"{what}_checked"])
    checked.dtype = tensor.dtype
    return rule(checked, what, *(broken for each in misfits for broken in each.rules))


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
    if isinstance(batch, int) and isinstance(length, int):
        return rule(op.Reshape(expanded, shape, _outputs=["mask_of_rows"]), name, broken)
    misfits = [misfit(op, op.Shape(expanded), shape, broken)]
    return refused_unless_zero(op, expanded, 2, misfits, name)


def fits(mask: ir.Value, axes: tuple[Size | None, ...], exactly: bool = False) -> bool:
    """Whether the dims of `mask` are known to fit `axes`: each 1 (unless `exactly`) or equal."""
    dims: Any = mask.shape
    return all(
        isinstance(dim, int) and ((dim == 1 and not exactly) or dim == axis)
        for dim, axis in zip(dims, axes, strict=True)
    )

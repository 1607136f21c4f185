"""The questions that choose a form: of sizes, answered while writing if known; and of masks."""

from __future__ import annotations

from functools import reduce

import onnx_ir as ir

from .. import sizes
from ..builder import OpBuilder
from ..sizes import Size, Truth
from ..steps import Steps
from . import thresholds


def query_is_small(op: OpBuilder, steps: Steps) -> Truth:
    """Whether nothing is worth looking at twice. A query or a value of no elements says no.

    For products: elements of query or value, the fewer, times Tq. So many there are at most, also
    where keys are few.
    """
    size = steps.elements(op, "query", "batch", "Tq", "dim")
    if steps.has_dot_scores:
        times, limit = "Tq", thresholds.SMALL_QUERY
    else:
        times, limit = "Tv", thresholds.DENSE_FEATURES
    if not isinstance(size, int) and not steps.knows("batch", "Tv", "value_dim"):
        values = steps.count(op, steps.tensors.value, "value_size")
        if not steps.has_dot_scores:
            values = op.Mul(values, limit, _outputs=["none_or_many"])
        size = op.Min(size, values, _outputs=["elements"])
    work = sizes.mul(op, size, steps.size(op, times), "work")
    if isinstance(work, int):
        return work < limit
    lowest = op.Constant(value=ir.tensor(1))
    within = op.Clip(work, lowest, steps.tied(op, limit - 1), _outputs=["work_within"])
    return op.Equal(work, within, _outputs=["query_is_small"])


def pairs_of_dense(steps: Steps, fused: bool) -> int:
    """Tq * Tv below which the dense form is at least as fast."""
    if not steps.has_dot_scores:
        return 1
    if steps.scores_wanted and steps.config.causal and steps.tensors.value_mask is None:
        return thresholds.CAUSAL_SCORES_PAIRS
    if not steps.plain:
        return thresholds.CAUSAL_PAIRS if steps.config.causal else thresholds.MASKED_PAIRS
    return thresholds.FUSED_PAIRS if fused else thresholds.PLAIN_PAIRS


def something_is_empty(op: OpBuilder, steps: Steps) -> Truth:
    """Whether a tensor has no elements, so that there are no blocks to walk.

    A size that is fixed is 1 at least; a free value_dim or dim of 0 is walked as any other.
    """
    if steps.knows("batch", "Tq", "Tv"):
        return False
    tensors = {"query": steps.tensors.query, "key": steps.tensors.key, "value": steps.tensors.value}
    counts = [
        steps.count(op, tensor, f"{name}_size")
        for name, tensor in tensors.items()
        if name != "key" or tensor is not steps.tensors.value
    ]
    smallest = op.Min(*counts, _outputs=["smallest_size"])
    return op.Equal(smallest, steps.tied(op, 0), _outputs=["something_is_empty"])


def batch_is_small(op: OpBuilder, steps: Steps, pairs: Size) -> Truth:
    """Whether all scores of plain attention may be held at once."""
    scores = sizes.mul(op, steps.size(op, "batch"), pairs, "scores_of_batch")
    return sizes.less(op, scores, thresholds.PLAIN_SCORES, "batch_is_small")


def halves_suit(op: OpBuilder, queries: Size, keys: Size, scores: Size) -> Truth:
    """Whether there are so few `scores` that starting operators weighs more than halves do.

    Causal parts are for sequences that attend to themselves.
    """
    square = sizes.equal(op, queries, keys, "one_key_for_each_query")
    few = sizes.less(op, scores, thresholds.HALVES_SCORES, "few_scores")
    return sizes.both(op, square, few, name="halves_suit")


def parts_suit(op: OpBuilder, queries: Size, keys: Size, scores: Size) -> Truth:
    """Whether parts of the whole batch are not too large for its `scores`."""
    square = sizes.equal(op, queries, keys, "one_key_for_each_query")
    few = sizes.less(op, scores, 8 * thresholds.PART_SCORES + 1, "not_many_scores")
    return sizes.both(op, square, few, name="parts_suit")


def four_parts_suit(op: OpBuilder, queries: Size) -> Truth:
    """Whether a bias as wide as the keys costs less than joining scores."""
    return sizes.less(op, queries, thresholds.FOUR_PARTS_QUERIES, "four_parts_suit")


def long_four_suit(op: OpBuilder, scores: Size) -> Truth:
    """Whether so few `scores` do not repay the operators of eight parts."""
    return sizes.less(op, scores, thresholds.LONG_FOUR_SCORES, "long_four_suit")


def enough_is_shown(op: OpBuilder, mask: ir.Value) -> ir.Value:
    """Whether each row of a causal value mask sees a key, and the mask hides few: bool[].

    In integers: converters to float16 leave the target of a Cast as it was.
    """
    shown = op.Cast(mask, to=int(ir.DataType.INT32), _outputs=["shown_keys"])
    # A causal query sees the first key if anything.
    first = op.Slice(shown, [0], [1], [1], _outputs=["first_keys"])
    all_see = op.ReduceMin(first, keepdims=1, _outputs=["all_queries_see"])
    count = op.Mul(op.ReduceSum(shown, keepdims=1), all_see, _outputs=["shown_count"])
    total = op.Cast(op.Squeeze(count), to=int(ir.DataType.INT64))
    weighed = op.Mul(total, thresholds.SHOWN_ONE_OF, _outputs=["shown_count_weighed"])
    return op.Less(op.Size(mask), weighed, _outputs=["enough_is_shown"])


def nothing_is_hidden(op: OpBuilder, steps: Steps, *masks: ir.Value) -> Truth:
    """Whether every mask is [[True]], which stands for no mask: one element, and that is True.

    A False behind the last element stands for the first of an empty mask.
    """
    if any(isinstance(dim, int) and dim > 1 for mask in masks for dim in mask.shape or ()):
        return False
    counts = [op.Size(mask, _outputs=["mask_size"]) for mask in masks]
    count = reduce(lambda a, b: op.Mul(a, b, _outputs=["mask_sizes"]), counts)
    answers = [op.Equal(count, steps.tied(op, 1), _outputs=["masks_of_one"])]
    false = op.Constant(value=ir.tensor([False]))
    for mask in masks:
        numbers = op.Concat(op.Reshape(mask, [-1]), false, axis=0, _outputs=["mask_in_line"])
        answers.append(op.Gather(numbers, op.Constant(value_int=0), _outputs=["first_of_mask"]))
    return reduce(lambda a, b: op.And(a, b, _outputs=["nothing_is_hidden"]), answers)


def asked_at_run_time(op: OpBuilder, steps: Steps, size: Size) -> Size:
    """`size`, from the graph, in a way that no tool can compute before a run.

    ONNX Runtime crashes where it inlines an If whose answer it knows inside another such If, and
    the branch holds a Scan (docs/schedules.md). Sizes that a tool or a neighbour fixes make both
    known. The number of nonzero elements among none is a 0 that it cannot know.
    """
    if isinstance(size, int):
        return size
    none = op.Slice(steps.tensors.query, [0], [0], [0], _outputs=["no_queries"])
    none = op.Cast(none, to=int(ir.DataType.BOOL), _outputs=["no_bools"])
    zero = op.Size(op.NonZero(none), _outputs=["zero_at_run_time"])
    return op.Add(size, zero, _outputs=["asked_at_run_time"])

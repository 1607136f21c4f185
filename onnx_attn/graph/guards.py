"""Shape rules that blocks would hide, as nodes that fail: their names reach the runtime's message.

Slices up to one bound hide lengths that differ, and a row of batch 1 stretches over all others.
Each tensor is reshaped, which moves no data, to the smallest batch and length of all: only equal
ones fit. The smallest is taken by Min because a Reshape to a dim that merely has the same name is
deleted by ONNX Runtime as one that changes nothing.
"""

from __future__ import annotations

from dataclasses import replace

from .steps import Steps

BATCHES = "batches_and_masks_must_fit_the_query"
LENGTHS = "key_and_value_must_have_the_same_length"


def guarded(op, steps: Steps):
    """The same layer on checked tensors, with the batch size and Tv: int64[1]."""
    tensors = steps.tensors
    shared = tensors.key is tensors.value
    keyed = [tensors.key] if shared else [tensors.key, tensors.value]
    batches = [op.Shape(tensor, start=0, end=1) for tensor in (tensors.query, *keyed)]
    batch = op.Min(*batches, _outputs=["smallest_batch"])
    lengths = [op.Shape(tensor, start=1, end=2) for tensor in keyed]
    length = op.Min(*lengths, _outputs=["smallest_length"])

    def check(tensor, name, *dims):
        width = op.Shape(tensor, start=2, end=3)
        checked = op.Reshape(tensor, op.Concat(*dims, width, axis=0), _outputs=["checked"])
        checked.producer().name = name
        return checked

    queries = op.Shape(tensors.query, start=1, end=2)
    query = check(tensors.query, f"query__{BATCHES}", batch, queries)
    key = check(tensors.key, f"key__{LENGTHS}__{BATCHES}", batch, length)
    value = key
    if not shared:
        value = check(tensors.value, f"value__{LENGTHS}__{BATCHES}", batch, length)
    checked = replace(tensors, query=query, key=key, value=value)
    # Of the checked key, so that no mask is measured against the length before it is checked.
    length = op.Shape(key, start=1, end=2, _outputs=["key_length"])
    return Steps(steps.config, checked), batch, length


def batch_of_query(op, steps: Steps):
    """The same layer on key and value of the query's batch size; others are the runtime's error.

    A dim of 0 in a Reshape is the tensor's own. Fewest operators; but ONNX Runtime no longer knows
    the shape of the scores before a run, for which see `one_batch`.
    """
    tensors = steps.tensors
    batch = op.Shape(tensors.query, start=0, end=1, _outputs=["query_batch"])
    shape = op.Concat(batch, [0, 0], axis=0, _outputs=["shape_in_batch"])

    def check(tensor, name):
        checked = op.Reshape(tensor, shape, _outputs=[f"{name}_checked"])
        checked.producer().name = f"{name}__{BATCHES}"
        return checked

    key = check(tensors.key, "key")
    value = key if tensors.value is tensors.key else check(tensors.value, "value")
    return Steps(steps.config, replace(tensors, key=key, value=value))


def one_batch(op, steps: Steps):
    """The same layer on tensors of one batch size; others are the runtime's error.

    For forms that multiply whole tensors, so that MatMul refuses all other shapes that do not fit.
    Each axis of the value is to be longer by the difference of the batch sizes, so that only none
    fits. The value bears it, because ONNX Runtime then still knows the shape of scores and weights
    before a run, and gives both a place beforehand: 0.5 of 6 ms at 16x512x512x64.
    """
    tensors = steps.tensors
    inputs = [tensors.query, tensors.value]
    if tensors.key is not tensors.value:
        inputs.append(tensors.key)
    batches = [op.Shape(tensor, start=0, end=1) for tensor in inputs]
    difference = op.Sub(op.Max(*batches), op.Min(*batches), _outputs=["batch_difference"])
    shape = op.Add(op.Shape(tensors.value), difference, _outputs=["value_shape"])
    checked = op.Reshape(tensors.value, shape, _outputs=["value_checked"])
    checked.producer().name = f"value__{BATCHES}"
    return Steps(steps.config, replace(tensors, value=checked))


def mask_of_rows(op, mask, batch, length, name):
    """A mask of every batch row, [batch, length]; one that does not fit is the runtime's error.

    Expand alone would let a mask longer than an axis of 1 stretch that axis.
    """
    shape = op.Concat(batch, length, axis=0)
    expanded = op.Expand(mask, shape, _outputs=["mask_expanded"])
    rows = op.Reshape(expanded, shape, _outputs=["mask_of_rows"])
    expanded.producer().name = rows.producer().name = name
    return rows

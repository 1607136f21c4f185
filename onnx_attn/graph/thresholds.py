"""Every block size and threshold of the schedules, each with the measurement behind it."""

from __future__ import annotations

# What Keras adds to a hidden score.
HIDDEN = -1e9

BLOCK = 128


def block_size(op, steps, query_length, key_length):
    """Query rows of one block: int64[1]."""
    return op.Min(query_length, [BLOCK], _outputs=["block"])


def dense_suits(op, steps):
    """True where the dense form is at least as fast: bool[]. Always so if a tensor is empty."""
    tensors = steps.tensors
    pairs = op.Mul(
        op.Squeeze(op.Shape(tensors.query, start=1, end=2)),
        op.Squeeze(op.Shape(tensors.key, start=1, end=2)),
        _outputs=["pairs"],
    )
    return op.Less(pairs, 300 * 300, _outputs=["dense_suits"])

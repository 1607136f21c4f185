"""Every block size and threshold of the schedules; docs/schedules.md has the measurements."""

from __future__ import annotations

# What Keras adds to a hidden score.
HIDDEN = -1e9

# Query elements up to which an If costs more than a pass over masks that hide nothing.
SMALL_QUERY = 8192

# Scores of one batch row up to which the dense form wins: causal, masked, plain.
CAUSAL_PAIRS = 300 * 300
MASKED_PAIRS = 300 * 300
PLAIN_PAIRS = 2048 * 2048

# Scores of one block: beyond, they leave the cache.
BLOCK_PAIRS = 2**20
# Features of one block where every pair of positions has `dim` of them.
BLOCK_FEATURES = 2**20
SMALLEST_BLOCK, LARGEST_BLOCK = 64, 512
CAUSAL_BLOCK = 128

# Query rows of one causal block that spans the batch, and the scores it may hold.
BATCH_BLOCK = 128
BATCH_BLOCK_PAIRS = 2**21


def query_is_small(op, steps):
    """True where nothing is worth looking at twice, empty queries included: bool[]."""
    size = op.Size(steps.tensors.query, _outputs=["query_size"])
    return op.Less(size, SMALL_QUERY, _outputs=["query_is_small"])


def dense_suits(op, steps, scores_wanted):
    """True where the dense form is at least as fast, or a tensor is empty: bool[]."""
    tensors = steps.tensors
    pairs = op.Mul(query_length(op, steps), key_length(op, steps), _outputs=["pairs"])
    if steps.config.causal:
        limit = CAUSAL_PAIRS
    elif tensors.value_mask is not None:
        limit = MASKED_PAIRS
    else:
        limit = PLAIN_PAIRS
    few = op.Less(op.Squeeze(pairs), limit, _outputs=["few_pairs"])
    nothing = op.Equal(op.Size(tensors.value), 0, _outputs=["value_is_empty"])
    return op.Or(few, nothing, _outputs=["dense_suits"])


def something_is_empty(op, steps):
    """True where a tensor has no elements, so that there are no blocks to walk: bool[]."""
    tensors = steps.tensors
    empty = [
        op.Equal(op.Size(tensor), 0, _outputs=["is_empty"])
        for tensor in (tensors.query, tensors.key, tensors.value)
    ]
    return op.Or(op.Or(empty[0], empty[1]), empty[2], _outputs=["something_is_empty"])


def block_size(op, steps):
    """Query rows of one block of a batch row: int64[1], at least 1.

    The blocks of a row are of one size, as even as they come: little is left to fill up.
    """
    queries, keys = query_length(op, steps), key_length(op, steps)
    if not steps.has_dot_scores:
        dim = op.Shape(steps.tensors.query, start=2, end=3)
        features = op.Mul(keys, dim, _outputs=["features_of_query"])
        block = op.Max(op.Div([BLOCK_FEATURES], features), [1])
        block = op.Min(block, [LARGEST_BLOCK])
    elif steps.config.causal:
        block = op.Max(op.Div([2 * BLOCK_PAIRS], keys), [SMALLEST_BLOCK])
        block = op.Min(block, [CAUSAL_BLOCK])
    else:
        block = op.Max(op.Div([BLOCK_PAIRS], keys), [SMALLEST_BLOCK])
        block = op.Min(block, [LARGEST_BLOCK])
    return even_blocks(op, queries, block)


def even_blocks(op, queries, block):
    """The size of ceil(queries / block) blocks of equal size that hold all queries: int64[1]."""
    count = op.Div(op.Add(queries, op.Sub(block, [1])), block, _outputs=["block_count"])
    return op.Div(op.Add(queries, op.Sub(count, [1])), count, _outputs=["block"])


def query_length(op, steps):
    """Tq: int64[1]."""
    return op.Shape(steps.tensors.query, start=1, end=2, _outputs=["query_length"])


def key_length(op, steps):
    """Tv: int64[1]."""
    return op.Shape(steps.tensors.key, start=1, end=2, _outputs=["key_length"])

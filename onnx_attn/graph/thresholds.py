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
# Features, of which concat and additive scores have `dim` for every pair: dense up to the first
# number, beyond in blocks of the second, which the cache holds.
DENSE_FEATURES, BLOCK_FEATURES = 2**20, 2**18
SMALLEST_BLOCK, LARGEST_BLOCK = 64, 512
CAUSAL_BLOCK = 128

# Query rows of one causal block that spans the batch: many rows fill both cores with less.
BATCH_BLOCK, MANY_ROWS_BLOCK = 128, 64
# (batch - 1) * Tv * Tv up to which a block of the whole batch beats the batch row by row.
BATCH_PAIRS = 5 * 2**20
# Key elements up to which such a block, and its copy of the keys, stay small.
BATCH_BLOCK_KEYS = 2**21


def query_is_small(op, steps):
    """True where nothing is worth looking at twice, empty queries included: one bool."""
    size = op.Size(steps.tensors.query, _outputs=["query_size"])
    if not steps.has_dot_scores:
        features = op.Mul(size, key_length(op, steps), _outputs=["features_of_batch"])
        return op.Less(features, [DENSE_FEATURES], _outputs=["query_is_small"])
    return op.Less(size, SMALL_QUERY, _outputs=["query_is_small"])


def dense_suits(op, steps):
    """True where the dense form is at least as fast, or a tensor is empty: bool[1]."""
    tensors = steps.tensors
    pairs = op.Mul(query_length(op, steps), key_length(op, steps), _outputs=["pairs"])
    if not steps.has_dot_scores:
        limit = 1
    elif steps.config.causal:
        limit = CAUSAL_PAIRS
    elif tensors.value_mask is not None:
        limit = MASKED_PAIRS
    else:
        limit = PLAIN_PAIRS
    few = op.Less(pairs, [limit], _outputs=["few_pairs"])
    nothing = op.Equal(op.Size(tensors.value), 0, _outputs=["value_is_empty"])
    return op.Or(few, nothing, _outputs=["dense_suits"])


def causal_block(op, steps):
    """Query rows of one block that spans the batch, int64[1], and whether such blocks suit.

    They do, bool[1], where they hold all queries with none left over, where each query has a key
    of its own, and where the batch is not too large.
    """
    queries, keys = query_length(op, steps), key_length(op, steps)
    batch = op.Shape(steps.tensors.query, start=0, end=1, _outputs=["batch_size"])
    many_rows = op.Less(queries, op.Mul(batch, [512]), _outputs=["many_rows"])
    block = even_blocks(op, queries, op.Where(many_rows, [MANY_ROWS_BLOCK], [BATCH_BLOCK]))
    even = op.Equal(op.Mod(queries, block), [0], _outputs=["blocks_are_even"])
    keyed = op.LessOrEqual(queries, keys, _outputs=["queries_have_keys"])
    pairs = op.Mul(op.Sub(batch, [1]), op.Mul(keys, keys), _outputs=["pairs_of_other_rows"])
    few = op.And(
        op.LessOrEqual(pairs, [BATCH_PAIRS], _outputs=["few_pairs"]),
        op.LessOrEqual(op.Size(steps.tensors.key), BATCH_BLOCK_KEYS, _outputs=["few_keys"]),
    )
    return block, op.And(op.And(even, keyed), few, _outputs=["causal_blocks_suit"])


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

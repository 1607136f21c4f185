"""Every block size and threshold of the schedules; docs/schedules.md has the measurements."""

from __future__ import annotations

import onnx_ir as ir

# What Keras adds to a hidden score.
HIDDEN = -1e9

# Query elements times Tq, which is what scores of a sequence with itself take, up to which an If
# costs more than a pass over masks that hide nothing.
SMALL_QUERY = 2**20

# Scores of one batch row up to which the dense form wins: over causal ones, over causal ones that
# are returned, over masked and plain blocks, and over MultiHeadAttention.
CAUSAL_PAIRS = 300 * 300
CAUSAL_SCORES_PAIRS = 700 * 700
MASKED_PAIRS = 300 * 300
PLAIN_PAIRS = 2000 * 2000
FUSED_PAIRS = 1024 * 1024
# Scores of the batch up to which plain attention stays dense beyond PLAIN_PAIRS.
PLAIN_SCORES = 2**24

# Scores of one block: 6 MiB of float32.
BLOCK_PAIRS = 3 * 2**19
# Features, of which concat and additive scores have `dim` for every pair: dense up to the first
# number, beyond in blocks of the second, which the cache holds.
DENSE_FEATURES, BLOCK_FEATURES = 2**20, 2**18
SMALLEST_BLOCK, LARGEST_BLOCK = 64, 512
# Lanes of a block, which is a multiple of them; and the keys up to which it has more than one.
LANES, LANE_KEYS = 2, 8192
CAUSAL_BLOCK = 256

# Scores of the batch up to which two causal halves suffice; the queries for which four parts with a
# bias of all keys do; and the scores for which four without it do.
HALVES_SCORES = 3 * 2**18
FOUR_PARTS_QUERIES = 700
LONG_FOUR_SCORES = 2**21
# Share of the keys that a value mask shows, from which on parts beat rows cut to their lengths.
SHOWN_SHARE = 0.5
# Scores of the batch in the largest of eight parts: beyond, blocks need less memory and time.
PART_SCORES = 2**22

# Queries of a block in the walk over a bias, beyond and up to so many keys: where queries see
# different keys, small blocks leave out more of them, and long rows weigh more than starting nodes.
WALK_BLOCK, SHORT_WALK_BLOCK, WALK_KEYS = 256, 128, 1024


def query_is_small(op, steps):
    """True where nothing is worth looking at twice, empty queries included: one bool."""
    size = op.Size(steps.tensors.query, _outputs=["query_size"])
    if not steps.has_dot_scores:
        features = op.Mul(size, key_length(op, steps), _outputs=["features_of_batch"])
        return op.Less(features, [DENSE_FEATURES], _outputs=["query_is_small"])
    work = op.Mul(size, query_length(op, steps), _outputs=["query_size_by_length"])
    return op.Less(work, [SMALL_QUERY], _outputs=["query_is_small"])


def pairs_of_dense(steps, plain, fused, scores_wanted):
    """Tq * Tv below which the dense form is at least as fast: a number."""
    if not steps.has_dot_scores:
        return 1
    if scores_wanted and steps.config.causal and steps.tensors.value_mask is None:
        return CAUSAL_SCORES_PAIRS
    if not plain:
        return CAUSAL_PAIRS if steps.config.causal else MASKED_PAIRS
    return FUSED_PAIRS if fused else PLAIN_PAIRS


def nothing_to_attend(op, steps):
    """True where there are no values, so that there are no blocks to walk: one bool."""
    return op.Equal(op.Size(steps.tensors.value), 0, _outputs=["value_is_empty"])


def batch_is_small(op, steps, pairs, fused):
    """True where all scores of plain attention may be held at once, or there are none: bool[1]."""
    nothing = nothing_to_attend(op, steps)
    if fused or not steps.has_dot_scores:
        return nothing
    batch = op.Shape(steps.tensors.query, start=0, end=1, _outputs=["batch_size"])
    scores = op.Mul(batch, pairs, _outputs=["scores_of_batch"])
    return op.Or(nothing, op.Less(scores, [PLAIN_SCORES]), _outputs=["batch_is_small"])


def halves_suit(op, lengths, scores):
    """True where halves are even, and so few `scores` that starting operators weighs more: bool[1].

    Causal parts are for sequences that attend to themselves.
    """
    queries, keys = lengths
    square = op.Equal(queries, keys, _outputs=["one_key_for_each_query"])
    even = op.Equal(op.Mod(queries, [2]), [0], _outputs=["even_query_length"])
    few = op.Less(scores, [HALVES_SCORES], _outputs=["few_scores"])
    return op.And(op.And(square, even), few, _outputs=["halves_suit"])


def parts_suit(op, lengths, scores):
    """True where parts of the whole batch are not too large for its `scores`: bool[1]."""
    square = op.Equal(*lengths, _outputs=["one_key_for_each_query"])
    few = op.LessOrEqual(scores, [8 * PART_SCORES], _outputs=["not_many_scores"])
    return op.And(square, few, _outputs=["parts_suit"])


def four_parts_suit(op, lengths):
    """True where a bias as wide as the keys costs less than joining scores: bool[1]."""
    return op.Less(lengths[0], [FOUR_PARTS_QUERIES], _outputs=["four_parts_suit"])


def long_four_suit(op, scores):
    """True where so few `scores` do not repay the operators of eight parts: bool[1]."""
    return op.Less(scores, [LONG_FOUR_SCORES], _outputs=["long_four_suit"])


def masked_parts_suit(op, steps, lengths, scores):
    """True where four parts suit, all queries see a key, and masks hide few of them: bool[1]."""
    parts, four = parts_suit(op, lengths, scores), four_parts_suit(op, lengths)
    suit = op.And(parts, four, _outputs=["four_parts_suit"])
    shown = op.Cast(steps.tensors.value_mask, to=int(ir.DataType.FLOAT), _outputs=["shown_keys"])
    # A causal query sees the first key if anything.
    first = op.Slice(shown, [0], [1], [1], _outputs=["first_keys"])
    all_see = op.ReduceMin(first, keepdims=1, _outputs=["all_queries_see"])
    share = op.ReduceMean(shown, keepdims=1, _outputs=["shown_share"])
    enough = op.Less(SHOWN_SHARE, op.Mul(all_see, share), _outputs=["enough_is_shown"])
    return op.And(suit, op.Squeeze(enough), _outputs=["masked_parts_suit"])


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
    else:
        block = op.Max(op.Div([BLOCK_PAIRS], keys), [SMALLEST_BLOCK])
        block = op.Min(block, [CAUSAL_BLOCK if steps.config.causal else LARGEST_BLOCK])
    # ceil(queries / block) blocks of equal size, rounded up to whole lanes.
    count = op.Div(op.Add(queries, op.Sub(block, [1])), block, _outputs=["block_count"])
    lanes = op.Mul(count, [LANES], _outputs=["lane_count"])
    lane = op.Div(op.Add(queries, op.Sub(lanes, [1])), lanes, _outputs=["lane"])
    return op.Mul(lane, [LANES], _outputs=["block"])


def walk_block(op, queries, keys, alike=False):
    """Query rows of one block in the walk over a bias, as even as they come: int64[1].

    `alike`: whether all queries see the same keys, so that small blocks leave out no more.
    """
    block = op.Max(op.Div([BLOCK_PAIRS], keys), [SMALLEST_BLOCK])
    limit = [WALK_BLOCK]
    if not alike:
        many = op.Less([WALK_KEYS], keys, _outputs=["many_keys"])
        limit = op.Where(many, limit, [SHORT_WALK_BLOCK])
    return even_blocks(op, queries, op.Min(block, limit))


def even_blocks(op, queries, block):
    """The size of as few blocks of at most `block` queries as there can be: int64[1]."""
    last = op.Sub(queries, [1])
    count = op.Add(op.Div(last, block), [1], _outputs=["block_count"])
    return op.Add(op.Div(last, count), [1], _outputs=["block"])


def lanes_of(op, keys):
    """Lanes of a block against `keys` (int64[1]): int64[1]."""
    many = op.Less([LANE_KEYS], keys, _outputs=["many_keys"])
    return op.Where(many, [1], [LANES], _outputs=["lanes"])


def query_length(op, steps):
    """Tq: int64[1]."""
    return op.Shape(steps.tensors.query, start=1, end=2, _outputs=["query_length"])


def key_length(op, steps):
    """Tv: int64[1]."""
    return op.Shape(steps.tensors.key, start=1, end=2, _outputs=["key_length"])

"""Every block size and threshold of the schedules, as numbers alone.

docs/schedules.md has the measurements behind each, under the heading named beside it.
"""

from __future__ import annotations

# "Dense or not". Elements of query or value, the fewer, times Tq, which is what scores of a
# sequence with itself take, up to which an If costs more than a pass over masks that hide nothing.
SMALL_QUERY = 2**20

# "Dense or not". Scores of one batch row up to which the dense form wins: over causal ones, over
# causal ones that are returned, over masked and plain blocks.
CAUSAL_PAIRS = 300 * 300
CAUSAL_SCORES_PAIRS = 700 * 700
MASKED_PAIRS = 300 * 300
PLAIN_PAIRS = 2000 * 2000
# "fused". The same over MultiHeadAttention.
FUSED_PAIRS = 1024 * 1024
# "Dense or not". Scores of the batch up to which plain attention stays dense beyond PLAIN_PAIRS.
PLAIN_SCORES = 2**24

# "Blocks of rows". Scores of one block: 6 MiB of float32.
BLOCK_PAIRS = 3 * 2**19
# "Features", of which concat and additive scores have `dim` for every pair: dense up to the first
# number, beyond in blocks of the second, which the cache holds.
DENSE_FEATURES, BLOCK_FEATURES = 2**20, 2**18
# "Blocks of rows".
SMALLEST_BLOCK, LARGEST_BLOCK = 64, 512
CAUSAL_BLOCK = 256
# "Blocks of rows". Lanes of a block, which is a multiple of them; and the keys up to which it has
# more than one.
LANES, LANE_KEYS = 2, 8192

# "Causal parts". Scores of the batch up to which two causal halves suffice; the queries for which
# four parts with a bias of all keys do; and the scores for which four without it do.
HALVES_SCORES = 3 * 2**18
FOUR_PARTS_QUERIES = 700
LONG_FOUR_SCORES = 2**21
# "Causal parts". Scores of the batch in the largest of eight parts: beyond, blocks need less memory
# and time.
PART_SCORES = 2**22
# "Causal parts under a value mask". Of so many keys a value mask shows one at least, where parts
# beat rows cut to their lengths.
SHOWN_ONE_OF = 2

# "The walk over a bias". Scores of one step, of all heads that go together; and the queries of a
# block, where it has not too many scores.
WALK_PAIRS = 3 * 2**19
WALK_BLOCK = 128

"""The layer in onnxscript: formulas, steps, schedules, and the model they make.

Words of these modules, and of the subgraphs that Netron shows:

* schedule: a way to write the layer as a graph; `auto` holds several forms and asks which to take.
* form: one way to compute the output; small, short (dense), in_halves, in_four, in_eight, in_rows.
* bias: what is added to scores before softmax: 0, or HIDDEN (-1e9) where a key is hidden.
* query sees key: the value mask shows it and, where causal, it is not in the query's future.
* fully masked: a query that sees no key; Keras then weighs all keys, each score 1e9 lower.
* part: a share of the queries of the whole batch; a block: some queries of one row, in a Scan.
* row: one batch row of the outer Scan; a window: the keys that some query of it may see.
* before, beside: keys ahead of a part or block, and those at its own positions, half hidden.
* lanes: two halves of a block with keys of their own each, so that cores share no scores.
* rule: what shapes have to be; the node that fails bears its name (`guards.Rule`).
"""

# onnxscript functions are graphs in Python syntax, which a type checker cannot follow.
# pyright: reportUnknownVariableType=false

from .formulas import (
    additive_scores,
    causal_bias,
    dot_product_attention,
    dot_row_scores,
    dot_scores,
    dot_scores_float64,
    feature_column,
    masked_dot_row_scores,
    masked_output,
    masked_scores,
    query_key_features,
    scaled_query,
    softmax_weights,
    value_and_causal_bias,
    value_mask_bias,
    weighted_sum,
)

__all__ = [
    "additive_scores",
    "causal_bias",
    "dot_product_attention",
    "dot_row_scores",
    "dot_scores",
    "dot_scores_float64",
    "feature_column",
    "masked_dot_row_scores",
    "masked_output",
    "masked_scores",
    "query_key_features",
    "scaled_query",
    "softmax_weights",
    "value_and_causal_bias",
    "value_mask_bias",
    "weighted_sum",
]

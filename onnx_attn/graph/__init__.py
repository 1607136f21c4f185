"""The layer in onnxscript: formulas, steps, schedules, and the model they make."""

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

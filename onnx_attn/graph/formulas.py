"""The formulas of dot-product attention, one onnxscript function each.

They are ordinary onnxscript functions: call them from your own `@script` graph, then flatten the
model with `onnx.inliner.inline_local_functions`, so that runtimes see standard ops only. All use
opset 17 and rank 3 tensors, in any float type.
"""

from __future__ import annotations

from onnxscript import opset17 as op
from onnxscript import script
from onnxscript.values import Opset

from ..configuration import HIDDEN

FUNCTION_DOMAIN = Opset("onnx_attn", 1)


@script(FUNCTION_DOMAIN, default_opset=op)
def scaled_query(query, scale):
    """query * scale: [batch, Tq, dim].

    (scale * query) @ key^T is scale * (query @ key^T) with batch*Tq*dim products instead of
    batch*Tq*Tv, and leaves Transpose and MatMul free to fuse.
    """
    query_scaled = op.Mul(query, scale)
    return query_scaled


@script(FUNCTION_DOMAIN, default_opset=op)
def dot_scores(query, key):
    """query @ key^T: [batch, Tq, dim] x [batch, Tv, dim] -> [batch, Tq, Tv]."""
    key_transposed = op.Transpose(key, perm=[0, 2, 1])  # [batch, dim, Tv]
    scores = op.MatMul(query, key_transposed)  # [batch, Tq, Tv]
    return scores


@script(FUNCTION_DOMAIN, default_opset=op)
def dot_scores_float64(query, key):
    """`dot_scores` for float64: [batch, Tq, dim] x [batch, Tv, dim] -> [batch, Tq, Tv].

    Transposed by Einsum: ONNX Runtime before 1.26 fuses Transpose and MatMul of float64 into an
    operator that it has no kernel for, and then refuses the file.
    """
    key_transposed = op.Einsum(key, equation="bkd->bdk")  # [batch, dim, Tv]
    scores = op.MatMul(query, key_transposed)  # [batch, Tq, Tv]
    return scores


@script(FUNCTION_DOMAIN, default_opset=op)
def dot_row_scores(query, key):
    """query @ key^T of one batch row: [Tq, dim] x [Tv, dim] -> [Tq, Tv]."""
    scores = op.Gemm(query, key, transB=1)  # [Tq, Tv]
    return scores


@script(FUNCTION_DOMAIN, default_opset=op)
def masked_dot_row_scores(query, key, bias):
    """query @ key^T + bias of one batch row, in one pass: [Tq, dim], [Tv, dim], [Tv] -> [Tq, Tv].

    Only for queries that see a key. Where in the sum a kernel adds -1e9 is its own affair; hidden
    keys next to a visible one weigh 0 either way, but a query without any needs `masked_scores`.
    """
    scores = op.Gemm(query, key, bias, transB=1)  # [Tq, Tv]
    return scores


@script(FUNCTION_DOMAIN, default_opset=op)
def value_mask_bias(value_mask, like):
    """0 where a key may be seen, -1e9 where not: [batch, Tv] -> [batch, 1, Tv].

    The bias has the float type of `like`, which is otherwise not read.
    """
    visible = op.CastLike(op.Constant(value_float=0.0), like)
    hidden = op.CastLike(op.Constant(value_float=HIDDEN), like)
    value_mask_of_rows = op.Unsqueeze(value_mask, op.Constant(value_ints=[1]))  # [batch, 1, Tv]
    value_bias = op.Where(value_mask_of_rows, visible, hidden)
    return value_bias


@script(FUNCTION_DOMAIN, default_opset=op)
def causal_bias(query, key):
    """0 where j <= i, -1e9 where j > i, top-left aligned for every Tq and Tv: [Tq, Tv]."""
    query_length = op.Shape(query, start=1, end=2)
    key_length = op.Shape(key, start=1, end=2)
    hidden = op.CastLike(op.Constant(value_float=HIDDEN), query)
    everywhere_hidden = op.Expand(hidden, op.Concat(query_length, key_length, axis=0))  # [Tq, Tv]
    future_bias = op.Trilu(everywhere_hidden, op.Constant(value_int=1), upper=1)
    return future_bias


@script(FUNCTION_DOMAIN, default_opset=op)
def value_and_causal_bias(value_mask, future_bias):
    """value_mask AND causal as one bias: [batch, Tv], [Tq, Tv] -> [batch, Tq, Tv].

    One -1e9, never two: adding both would push a doubly masked key below a singly masked one.
    """
    hidden = op.CastLike(op.Constant(value_float=HIDDEN), future_bias)
    value_mask_of_rows = op.Unsqueeze(value_mask, op.Constant(value_ints=[1]))  # [batch, 1, Tv]
    masked_bias = op.Where(value_mask_of_rows, future_bias, hidden)  # [batch, Tq, Tv]
    return masked_bias


@script(FUNCTION_DOMAIN, default_opset=op)
def masked_scores(scores, bias):
    """scores + bias: what is hidden keeps its score, 1e9 lower, as in Keras."""
    scores_masked = op.Add(scores, bias)
    return scores_masked


@script(FUNCTION_DOMAIN, default_opset=op)
def softmax_weights(scores):
    """softmax over the keys: [batch, Tq, Tv]."""
    weights = op.Softmax(scores, axis=-1)
    return weights


@script(FUNCTION_DOMAIN, default_opset=op)
def weighted_sum(weights, value):
    """weights @ value: [batch, Tq, Tv] x [batch, Tv, value_dim] -> [batch, Tq, value_dim]."""
    attended = op.MatMul(weights, value)
    return attended


@script(FUNCTION_DOMAIN, default_opset=op)
def masked_output(output, query_mask):
    """output where query_mask is True, 0 where False: [batch, Tq, value_dim]."""
    zero = op.CastLike(op.Constant(value_float=0.0), output)
    query_mask_of_rows = op.Unsqueeze(query_mask, op.Constant(value_ints=[2]))  # [batch, Tq, 1]
    output_masked = op.Where(query_mask_of_rows, output, zero)
    return output_masked


@script(FUNCTION_DOMAIN, default_opset=op)
def dot_product_attention(query, value, key, bias):
    """All of it for a bias that broadcasts to [batch, Tq, Tv]: the output and the weights."""
    scores = dot_scores(query, key)
    scores_masked = masked_scores(scores, bias)
    weights = softmax_weights(scores_masked)
    output = weighted_sum(weights, value)
    return output, weights


@script(FUNCTION_DOMAIN, default_opset=op)
def query_key_features(query, key):
    """query + key for every pair: [batch, Tq, dim], [batch, Tv, dim] -> [batch, Tq, Tv, dim]."""
    query_of_pairs = op.Unsqueeze(query, op.Constant(value_ints=[2]))  # [batch, Tq, 1, dim]
    key_of_pairs = op.Unsqueeze(key, op.Constant(value_ints=[1]))  # [batch, 1, Tv, dim]
    features = op.Add(query_of_pairs, key_of_pairs)  # [batch, Tq, Tv, dim]
    return features


@script(FUNCTION_DOMAIN, default_opset=op)
def additive_scores(features, feature_weights):
    """sum_d weight_d * tanh(features_d): [batch, Tq, Tv, dim], [dim, 1] -> [batch, Tq, Tv].

    A MatMul with one column weighs and sums in a single pass. ONNX Runtime's ReduceSum keeps the
    last axis of empty tensors even with keepdims=0, so it would not do.
    """
    squashed = op.Tanh(features)
    scores_of_pairs = op.MatMul(squashed, feature_weights)  # [batch, Tq, Tv, 1]
    scores = op.Squeeze(scores_of_pairs, op.Constant(value_ints=[3]))  # [batch, Tq, Tv]
    return scores


@script(FUNCTION_DOMAIN, default_opset=op)
def feature_column(query, key):
    """The shape [dim, 1] of the weights of features.

    Query and key of different dim broadcast where one of them is 1. |2 * query - key| then is
    neither dim, also where the other is 0, so that the product of features and weights refuses.
    """
    query_dim = op.Shape(query, start=2, end=3)
    key_dim = op.Shape(key, start=2, end=3)
    more_than_key = op.Sub(query_dim, key_dim)
    dim = op.Abs(op.Add(query_dim, more_than_key))
    column = op.Concat(dim, op.Constant(value_ints=[1]), axis=0)
    return column

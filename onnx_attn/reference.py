"""Keras attention in NumPy float64: the oracle of the tests, with no ONNX in it."""

from __future__ import annotations

from typing import Literal

import numpy as np

from .arrays import Array
from .configuration import HIDDEN


def attention(
    query: Array,
    value: Array,
    key: Array | None = None,
    *,
    query_mask: Array | None = None,
    value_mask: Array | None = None,
    score_mode: Literal["dot", "concat", "additive"] = "dot",
    scale: Array | float | None = None,
    concat_score_weight: Array | float = 1.0,
    causal: bool = False,
    bias: Array | None = None,
    compute: str = "float32",
) -> tuple[Array, Array]:
    """Output and attention scores of tf.keras.layers.Attention or AdditiveAttention.

    Args:
        query: float[batch, Tq, dim], or [batch, heads, Tq, dim]: then value, key and results have
            an axis of heads as well, and every head reads the same masks.
        value: float[batch, Tv, value_dim].
        key: float[batch, Tv, dim]; None takes `value`.
        query_mask: bool[batch or 1, Tq or 1].
        value_mask: bool[batch or 1, Tv or 1].
        score_mode: "additive" is AdditiveAttention.
        scale: scalar, or [dim] for "additive"; None leaves it out.
        concat_score_weight: scalar of score_mode="concat".
        causal: hide key j from query i where j > i.
        bias: float, added to the scores before masks hide any; each axis 1 or that of the scores.
        compute: type of the arithmetic that is modelled. `score + bias` and then `score - 1e9` are
            rounded to it: in float32 the latter keeps multiples of 64 only, which decides a fully
            masked row.

    Returns:
        output float64[batch, Tq, value_dim] and weights float64[batch, Tq, Tv].
    """
    query, value = query.astype(np.float64), value.astype(np.float64)
    key = value if key is None else key.astype(np.float64)
    scores = raw_scores(query, key, score_mode, scale, concat_score_weight)
    if bias is not None:
        scores = (scores.astype(compute) + bias.astype(compute)).astype(np.float64)
    allowed = np.ones(scores.shape, np.bool_)
    heads = (None,) * (scores.ndim - 3)
    if value_mask is not None:
        allowed &= value_mask[:, *heads, None, :]
    if causal:
        allowed &= np.tri(*scores.shape[-2:], dtype=np.bool_)
    hidden = (scores.astype(compute) + np.array(HIDDEN, compute)).astype(np.float64)
    weights = softmax(np.where(allowed, scores, hidden))
    output = weights @ value
    if query_mask is not None:
        output = np.where(query_mask[:, *heads, :, None], output, 0.0)
    return output, weights


def raw_scores(
    query: Array,
    key: Array,
    score_mode: Literal["dot", "concat", "additive"],
    scale: Array | float | None,
    concat_score_weight: Array | float = 1.0,
) -> Array:
    """Scores before masks: [batch, Tq, Tv] or [batch, heads, Tq, Tv]."""
    factor = np.float64(1.0) if scale is None else np.asarray(scale, np.float64)
    if score_mode == "dot":
        return (query * factor) @ key.swapaxes(-1, -2)
    features = query[..., :, None, :] + key[..., None, :, :]  # [batch, Tq, Tv, dim]
    if score_mode == "additive":
        return (np.tanh(features) * factor).sum(-1)
    return np.asarray(concat_score_weight, np.float64) * np.tanh(factor * features).sum(-1)


def softmax(scores: Array) -> Array:
    """Softmax over the last axis; an empty axis stays empty."""
    if scores.shape[-1] == 0:
        return scores
    grown = np.exp(scores - scores.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)

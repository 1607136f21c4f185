"""Dropout in training: it drops, at the rate asked for, and only then."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_attn import Attention, AttentionSession
from onnx_attn.reference import attention

RNG = np.random.default_rng(0)
QUERY = RNG.standard_normal((4, 64, 8)).astype(np.float32)
VALUE = RNG.standard_normal((4, 96, 8)).astype(np.float32)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_keep_rate_and_growth(rate: float, dtype: str) -> None:
    layer = Attention(dropout=rate, dtype=dtype)
    output, scores = layer([QUERY, VALUE], training=True, return_attention_scores=True)
    _, weights = layer([QUERY, VALUE], return_attention_scores=True)
    visible = weights > 1e-4  # smaller float16 weights round to 0 without being dropped
    kept = (scores != 0) & visible
    count = visible.sum()
    deviation = np.sqrt(rate * (1 - rate) / count)
    assert abs(kept.sum() / count - (1 - rate)) < 5 * deviation
    tolerance = {"rtol": 2e-3 if dtype == "float16" else 1e-5, "atol": 1e-4}
    grown = weights.astype(np.float64) / (1 - rate)
    np.testing.assert_allclose(scores[kept], grown[kept], **tolerance)
    np.testing.assert_allclose(
        output,
        scores.astype(np.float64) @ VALUE,
        rtol=5e-3,
        atol=2e-2 if dtype == "float16" else 1e-4,
    )


def test_every_position_is_kept_and_dropped() -> None:
    """A poor generator may keep one element in every run or in none."""
    layer = Attention(dropout=0.5, seed=7)
    kept = np.zeros((4, 64, 96))
    for _ in range(200):
        _, scores = layer([QUERY, VALUE], training=True, return_attention_scores=True)
        kept += scores != 0
    assert kept.min() > 50
    assert kept.max() < 150


def test_two_runs_differ_and_a_seed_repeats_the_first() -> None:
    layer = Attention(dropout=0.5, seed=3)
    first, second = (layer([QUERY, VALUE], training=True) for _ in range(2))
    assert not np.array_equal(first, second)
    again = Attention(dropout=0.5, seed=3)([QUERY, VALUE], training=True)
    np.testing.assert_array_equal(again, first)
    other = Attention(dropout=0.5, seed=4)([QUERY, VALUE], training=True)
    assert not np.array_equal(other, first)


def test_a_training_file_drops_only_when_told() -> None:
    model = Attention(dropout=0.5, causal=True).to_onnx(training=True)
    session = AttentionSession(model.SerializeToString(), device="cpu")
    wanted, _ = attention(QUERY, VALUE, causal=True)
    for calm in (session(QUERY, VALUE), session(QUERY, VALUE, training=False)):
        np.testing.assert_allclose(calm, wanted, rtol=1e-5, atol=2e-6)
    assert np.abs(session(QUERY, VALUE, training=True) - wanted).max() > 0.1


def test_dropout_without_training_in_the_layer_call_is_inference() -> None:
    wanted, _ = attention(QUERY, VALUE)
    layer = Attention(dropout=0.9)
    np.testing.assert_allclose(layer([QUERY, VALUE], training=None), wanted, rtol=1e-5, atol=2e-6)
    still = Attention(dropout=0.0)([QUERY, VALUE], training=True)
    np.testing.assert_allclose(still, wanted, rtol=1e-5, atol=2e-6)

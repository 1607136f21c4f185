"""Biases of every kind against the nodes that exporters write, at scores up to 300."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from attention_spellings import LOWEST, Writer
from model_pairs import Runner, small_blocks, walked

__all__ = ["small_blocks"]

T, BATCH, HEADS, DIM = 61, 2, 3, 8
i, j = np.mgrid[:T, :T]
random = np.random.default_rng(7)
VISIBLE = {
    "all": j >= 0,
    "causal": j <= i,
    "tail": j < 40,
    "front": j >= 25,
    "causal and tail": (j <= i) & (j < 40),
    "causal and front": (j <= i) & (j >= 25),
    "gaps": random.random((1, T)) < 0.5,
    "causal and gaps": (j <= i) & (random.random((1, T)) < 0.7),
    "window": (j <= i) & (j > i - 9),
    "both sides": abs(i - j) < 6,
    "prefix": (j <= i) | (j < 12),
    "anti-causal": j >= i,
    "off by one": j < i,
    "bottom right": j <= i - 10,
    "one hole": j != 30,
    "random": random.random((T, T)) < 0.3,
    "blocks": i // 10 == j // 10,
    "empty rows": (i % 7 != 3) & (j <= i),
    "nothing": j < 0,
}
PENALTIES = {"-1e4": -1e4, "-1e9": -1e9, "lowest": LOWEST, "-inf": -np.inf}
ADDED = {
    "alibi": np.where(j <= i, -(i - j) * 0.05, LOWEST),
    "alibi by head": -abs(i - j)[None, None] * np.array([0.5, 0.25, 0.125])[None, :, None, None],
    "relative by head": random.standard_normal((1, HEADS, T, T)),
    "relative and tail": random.standard_normal((1, HEADS, T, T)) + np.where(j < 40, 0, -1e9),
    "weak": np.where(j <= i, 0.0, -5.0),
    "less weak": np.where(j <= i, 0.0, -500.0),
    "constant": np.full((1, 1), 3.0),
    "by query": random.standard_normal((T, 1)),
    "by batch": random.standard_normal((BATCH, 1, 1, T)),
}


@cache
def model(scale: float) -> Any:
    w = Writer()
    names = ("query", "key", "value")
    q, k, v = (w.input(name, ir.DataType.FLOAT, "batch", "heads", "T", DIM) for name in names)
    bias = w.input("bias", ir.DataType.FLOAT, "rb", "rh", "rq", "rv")
    scores = w.op.MatMul(q, w.op.Transpose(k, perm=[0, 1, 3, 2]))
    scores = w.op.Add(w.op.Mul(scores, w.constant(scale)), bias)
    weights = w.op.Softmax(scores, axis=-1, _name="softmax")
    return w.model(out=(w.op.MatMul(weights, v), ("batch", "heads", "T", DIM)))


CASES = [f"{mask}, {penalty}" for mask in VISIBLE for penalty in PENALTIES if mask != "all"]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("case", [*CASES, *ADDED])
def test_bias_is_what_it_was(case: str) -> None:
    if case in ADDED:
        bias = ADDED[case]
    else:
        mask, penalty = case.rsplit(", ", 1)
        bias = np.where(VISIBLE[mask], 0.0, PENALTIES[penalty])
    bias = bias.astype(np.float32)
    bias = bias.reshape(*[1] * (4 - bias.ndim), *bias.shape)
    before, after = runners(0.125)
    for largest in (1.0, 300.0):
        q, k, v = np.random.default_rng(1).standard_normal((3, BATCH, HEADS, T, DIM))
        reached = abs(np.einsum("bhid,bhjd->bhij", q, k)).max() * 0.125
        factor = np.sqrt(largest / reached)
        feeds = {"query": q * factor, "key": k * factor, "value": v, "bias": bias}
        feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
        old, new = before(feeds)[0], after(feeds)[0]
        np.testing.assert_array_equal(np.isnan(old), np.isnan(new))
        np.testing.assert_allclose(new, old, rtol=0, atol=1e-6 * np.nanmax(abs(v)))


def runners(scale: float) -> tuple[Runner, Runner]:
    return Runner(model(scale)), Runner(walked(model(scale)))

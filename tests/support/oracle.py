"""What a call must give: layers of every mode, their weights, the float64 reference."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnx_attn import AdditiveAttention, Attention
from onnx_attn.reference import attention
from strategies import TOLERANCE, Case

MODES = ("dot", "concat", "additive")


def make_layer(mode: str, **arguments: Any) -> Any:
    if mode == "additive":
        return AdditiveAttention(**arguments)
    return Attention(score_mode=mode, **arguments)


def weights_for(mode: str, use_scale: bool, dim: int, rng: np.random.Generator) -> dict[str, Any]:
    weights: dict[str, Any] = {}
    if use_scale:
        shape = (dim,) if mode == "additive" else ()
        weights["scale"] = rng.uniform(-1.5, 1.5, shape)
    if mode == "concat":
        weights["concat_score_weight"] = rng.uniform(-1.5, 1.5, ())
    return weights


def close(got: np.ndarray, wanted: np.ndarray, dtype: str) -> None:
    assert got.dtype.name == dtype
    np.testing.assert_allclose(got.astype(np.float64), wanted, **TOLERANCE[dtype])


def wanted_of(case: Case, mode: str, causal: bool, weights: dict[str, Any], dtype: str) -> Any:
    return attention(
        case.query,
        case.value,
        case.key,
        query_mask=case.query_mask,
        value_mask=case.value_mask,
        score_mode=mode,
        causal=causal,
        compute="float64" if dtype == "float64" else "float32",
        **{name: weight.astype(np.float64) for name, weight in weights.items()},
    )

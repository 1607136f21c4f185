"""The numbers of real Keras layers, through the layer, the file, and ONNX Runtime alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnx_attn import AdditiveAttention, Attention, AttentionSession
from onnx_attn.reference import attention

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "index.json").read_text())["cases"]
CALLS = {case["name"]: case for case in CASES if case["kind"] == "layer_call"}

# Keras differs from Keras here; we follow the newer one, or compute in float32 (README).
DIVERGES = {
    "float16_fullmask_nan": "16-bit Keras overflows to NaN; we mask in float32",
    "nan_query_row_qmask": "Keras 2 keeps NaN under a query mask; Keras 3.15 and we give 0",
}


def load(case: dict[str, Any]) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / case["file"]) as arrays:
        return dict(arrays)


def make_layer(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    kind = {"Attention": Attention, "AdditiveAttention": AdditiveAttention}[case["layer"]]
    arguments = {key: value for key, value in case["init"].items()}
    layer = kind(causal=case["causal"], dtype=case["dtype"], **arguments)
    weights = [arrays[name] for name in ("scale", "concat_score_weight") if name in arrays]
    if weights:
        layer.set_weights(weights)
    return layer


def inputs_of(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [arrays[name] for name in ("query", "value", "key") if name in arrays]


def mask_of(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> list[np.ndarray | None] | None:
    if case.get("mask_list") is not None:
        return [None if name is None else arrays[name] for name in case["mask_list"]]
    if "query_mask" in arrays or "value_mask" in arrays:
        return [arrays.get("query_mask"), arrays.get("value_mask")]
    return None


def tolerance(case: dict[str, Any]) -> dict[str, Any]:
    return case.get("tolerance", {"rtol": 1e-5, "atol": 2e-6})


@pytest.mark.parametrize("name", sorted(set(CALLS) - set(DIVERGES)))
def test_layer_gives_keras_numbers(name: str) -> None:
    case = CALLS[name]
    arrays = load(case)
    layer = make_layer(case, arrays)
    output, scores = layer(
        inputs_of(arrays), mask=mask_of(case, arrays), return_attention_scores=True
    )
    wanted = arrays["output"]
    assert output.shape == wanted.shape
    if "output_dtype" in case:
        assert output.dtype.name == case["output_dtype"]
    compare(output, wanted, case)
    if "scores" in arrays:
        compare(scores, arrays["scores"], case)
    plain = layer(inputs_of(arrays), mask=mask_of(case, arrays))
    np.testing.assert_array_equal(plain, output)


def compare(got: np.ndarray, wanted: np.ndarray, case: dict[str, Any]) -> None:
    np.testing.assert_allclose(
        got.astype(np.float64), wanted.astype(np.float64), **tolerance(case)
    )

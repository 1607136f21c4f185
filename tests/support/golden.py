"""Cases made by running real Keras layers: `tests/graph/golden`, described in its index.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from onnx_attn import AdditiveAttention, Attention
from onnx_attn.configuration import DTYPES, numpy_dtype

GOLDEN = Path(__file__).parents[1] / "graph" / "golden"


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
    arguments = dict(case["init"])
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


def compare(got: np.ndarray, wanted: np.ndarray, case: dict[str, Any]) -> None:
    np.testing.assert_allclose(got.astype(np.float64), wanted.astype(np.float64), **tolerance(case))


def file_case(case: dict[str, Any]) -> bool:
    """Whether a case can be fed to a file as it is: rank 3, one batch, the file's dtype."""
    shapes = case["shapes"]
    tensors = [shapes[name] for name in ("query", "value", "key") if name in shapes]
    same = len({tuple(shape[:-2]) for shape in tensors}) == 1
    cast = case.get("input_dtype", case["dtype"]) != case["dtype"]
    masks = all(len(shapes.get(name, [0, 0])) == 2 for name in ("query_mask", "value_mask"))
    return all(len(shape) == 3 for shape in tensors) and same and masks and not cast


FILE_CASES = sorted(
    name for name, case in CALLS.items() if file_case(case) and name not in DIVERGES
)


def feeds_of(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    dtype = numpy_dtype(DTYPES[case["dtype"]].tensor)
    tensors = dict(zip(("query", "value", "key"), inputs_of(arrays), strict=False))
    feeds = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    masks = mask_of(case, arrays) or [None, None]
    for name, mask in zip(("query_mask", "value_mask"), masks, strict=False):
        if mask is not None:
            feeds[name] = mask
    return feeds

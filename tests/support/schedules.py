"""Files of every schedule: their sessions, thresholds that small tensors cross, wrong shapes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from onnx_attn import AttentionSession
from onnx_attn.graph.schedules import thresholds
from oracle import make_layer
from strategies import Case

SHRUNK = {
    "SMALL_QUERY": 12,
    "CAUSAL_PAIRS": 70,
    "CAUSAL_SCORES_PAIRS": 40,
    "MASKED_PAIRS": 10,
    "PLAIN_PAIRS": 10,
    "FUSED_PAIRS": 10,
    "PLAIN_SCORES": 100,
    "LANE_KEYS": 12,
    "BLOCK_PAIRS": 16,
    "DENSE_FEATURES": 20,
    "BLOCK_FEATURES": 40,
    "SMALLEST_BLOCK": 2,
    "LARGEST_BLOCK": 4,
    "CAUSAL_BLOCK": 3,
    "HALVES_SCORES": 300,
    "FOUR_PARTS_QUERIES": 25,
    "LONG_FOUR_SCORES": 2500,
}


SESSIONS: dict[Any, Any] = {}


@pytest.fixture(params=["real", "shrunk"])
def limits(request: pytest.FixtureRequest) -> Any:
    """Real thresholds, or ones that small tensors cross."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "shrunk":
            for name, number in SHRUNK.items():
                assert hasattr(thresholds, name)
                patch.setattr(thresholds, name, number)
        yield request.param


def model_of(mode: str, arguments: dict[str, Any], **options: Any) -> onnx.ModelProto:
    layer = make_layer(mode, **arguments)
    if mode == "additive" and arguments.get("use_scale", True):
        layer.build(4)
    return layer.to_onnx(**options)


def session_for(limits: str, mode: str, arguments: dict[str, Any], **options: Any) -> Any:
    which = repr((limits, mode, sorted(arguments.items()), sorted(options.items())))
    if which not in SESSIONS:
        model = model_of(mode, arguments, **options).SerializeToString()
        SESSIONS[which] = AttentionSession(model, device="cpu")
    return SESSIONS[which]


def stretched(case: Case, longest: int) -> Case:
    """`case` stretched to lengths beyond a block: its positions repeated, scaled, masks drawn."""
    rng = np.random.default_rng(longest)

    def stretch(array: np.ndarray | None, length: int) -> np.ndarray | None:
        if array is None or array.shape[1] <= 1:
            return array
        places = np.sort(rng.integers(0, array.shape[1], length))
        taken = array[:, places]
        return taken if array.dtype == np.bool_ else taken * rng.uniform(0.5, 1, taken.shape)

    queries = longest if case.query.shape[1] > 1 else 1
    keys = queries if case.key.shape[1] == case.query.shape[1] else max(1, longest * 3 // 4)
    keys = keys if case.key.shape[1] > 1 else case.key.shape[1]
    tensors = {
        name: stretch(array, queries if name.startswith("query") else keys)
        for name, array in vars(case).items()
    }
    kind = case.query.dtype
    return Case(
        **{
            name: array if array is None or array.dtype == np.bool_ else array.astype(kind)
            for name, array in tensors.items()
        }
    )


def masks_for(case: Case) -> list[str]:
    """What a file may be exported with to take the masks of `case`."""
    needed = {name for name in ("query", "value") if vars(case)[f"{name}_mask"] is not None}
    takes = {"both": {"query", "value"}, "query": {"query"}, "value": {"value"}, "none": set[str]()}
    return [masks for masks, names in takes.items() if needed <= names]


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def raw(model: onnx.ModelProto, record: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if record is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(record / "record")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def nodes_run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], folder: Path) -> Counter[str]:
    """How often each operator ran, as ONNX Runtime recorded it."""
    session = raw(model, folder)
    session.run(None, feeds)
    record = json.loads(Path(session.end_profiling()).read_text())
    return Counter(
        event["args"]["op_name"]
        for event in record
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    )


# Shapes that must fail, on both sides of auto's threshold; `GOOD` says the others.
GOOD = {"query": (2, 400, 32), "value": (2, 404, 8), "key": (2, 404, 32)}


MASKS = {"query_mask": (2, 400), "value_mask": (2, 404)}


WRONG: dict[str, dict[str, tuple[int, ...]]] = {
    "value shorter": {"value": (2, 403, 8)},
    "value longer": {"value": (2, 405, 8)},
    "value of length 1": {"value": (2, 1, 8)},
    "key of length 1": {"key": (2, 1, 32)},
    "key of batch 1": {"key": (1, 404, 32)},
    "value of batch 1": {"value": (1, 404, 8)},
    "key and value of batch 1": {"key": (1, 404, 32), "value": (1, 404, 8)},
    "query of batch 1": {"query": (1, 400, 32), "query_mask": (1, 400)},
    "key of batch 3": {"key": (3, 404, 32)},
    "value of batch 3": {"value": (3, 404, 8)},
    "batch and dim trade places": {"query": (1, 400, 64), "query_mask": (1, 400)},
    "value's batch and length trade places": {"value": (1, 808, 8)},
    "dim of key": {"key": (2, 404, 31)},
    "dim of key is 1": {"key": (2, 404, 1)},
    "query_mask too long": {"query_mask": (2, 401)},
    "query_mask too short": {"query_mask": (2, 399)},
    "query_mask of batch 3": {"query_mask": (3, 400)},
    "value_mask too long": {"value_mask": (2, 405)},
    "value_mask too short": {"value_mask": (2, 403)},
    "value_mask of batch 3": {"value_mask": (3, 404)},
    "value_mask of batch 0": {"value_mask": (0, 404)},
    "value_mask of length 0": {"value_mask": (2, 0)},
    "masks of a larger batch": {
        "query": (1, 400, 32),
        "value": (1, 404, 8),
        "key": (1, 404, 32),
        "query_mask": (4, 400),
        "value_mask": (4, 404),
    },
}


# Lengths of GOOD and WRONG in each form: small ones take dense, square ones causal parts.
LENGTHS: dict[str, dict[int, int]] = {
    "small": {length: length - 397 for length in range(399, 406)},
    "large": {},
    "halves": {403: 399, 404: 400, 405: 401, 808: 800},
    "four parts": {399: 400, 400: 401, 401: 402, 403: 400, 404: 401, 405: 402, 808: 802},
}


def shaped(shapes: dict[str, tuple[int, ...]], lengths: dict[int, int]) -> dict[str, np.ndarray]:
    """Ones of these shapes, their lengths replaced by `lengths`."""
    return {
        name: np.ones(
            [lengths.get(length, length) for length in shape],
            np.bool_ if "mask" in name else np.float32,
        )
        for name, shape in shapes.items()
    }

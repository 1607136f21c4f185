"""A model against its rewritten form, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from onnx_attn.graph.schedules import thresholds
from onnx_attn.rewrite.normal import read_source
from onnx_attn.rewrite.proof import difference
from onnx_attn.rewrite.rewriting import Builder

PADDINGS = ("none", "tails", "front", "gaps", "an empty row")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk in many blocks at small sizes, and where they are less small in groups of heads."""
    for name in ("WALK_BLOCK", "LARGEST_BLOCK", "SMALLEST_BLOCK"):
        monkeypatch.setattr(thresholds, name, 6)
    monkeypatch.setattr(thresholds, "WALK_PAIRS", 700)


def walked(model: onnx.ModelProto | str) -> onnx.ModelProto:
    """The model rewritten throughout, walking at every size."""
    builder = Builder(read_source(model), walk_from=1)
    assert [site.reason for site in builder.sites] == [None] * len(builder.sites)
    return builder.build([site.name for site in builder.sites])


class Runner:
    """A model in a session of one thread."""

    def __init__(self, model: onnx.ModelProto | str) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        data = model if isinstance(model, str) else model.SerializeToString()
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(data, options, providers=providers)

    def __call__(self, feeds: Mapping[str, Any]) -> list[Any]:
        return list(self.session.run(None, dict(feeds)))


def worst(old: list[Any], new: list[Any]) -> float:
    return max(difference(a, b) for a, b in zip(old, new, strict=True))


def shown(rows: int, length: int, padding: str, seed: int = 0) -> Any:
    """1 where a position counts: int64[rows, length]."""
    flags = np.ones((rows, length), np.int64)
    for row in range(rows):
        hidden = min(length - 1, length * (row + 1) // (rows + 1))
        if padding == "tails":
            flags[row, length - hidden :] = 0
        elif padding == "front":
            flags[row, :hidden] = 0
        elif padding == "gaps":
            flags[row] = np.random.default_rng(seed + row).random(length) < 0.6
            flags[row, 0] = 1
        elif padding == "an empty row" and row == rows - 1:
            flags[row] = 0
    return flags


def feeds_of(
    model: onnx.ModelProto, batch: int, length: int, padding: str, seed: int = 0
) -> dict[str, Any]:
    """Feeds for models of spellings.py."""
    random = np.random.default_rng(seed)
    sizes = {"batch": batch, "seq": length, "memory_seq": length // 2 + 3}
    feeds: dict[str, Any] = {}
    for value in model.graph.input:
        shape = [
            sizes[dim.dim_param] if dim.dim_param else dim.dim_value
            for dim in value.type.tensor_type.shape.dim
        ]
        if value.name == "mask":
            feeds["mask"] = shown(shape[0], shape[1], padding, seed)
        else:
            feeds[value.name] = random.standard_normal(shape).astype(np.float32)
    return feeds


def cases(model: onnx.ModelProto) -> Iterator[dict[str, Any]]:
    """Feeds of several lengths under every padding."""
    for batch, length in ((3, 29), (1, 6), (2, 1)):
        for padding in PADDINGS:
            yield feeds_of(model, batch, length, padding)

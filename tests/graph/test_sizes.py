"""Promise: sizes that are fixed, at export or later, break no branch, and leave no question open.

Files run in child processes, since ONNX Runtime has crashed on such files.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnx_attn import AdditiveAttention, Attention

ALL = {"batch": 1, "Tq": 16, "Tv": 16, "dim": 64, "value_dim": 64}
LENGTHS = [1, 2, 5, 7, 9, 10, 12, 18, 20, 26, 34, 65, 129, 255, 511, 701]
PAIRS = [(1, 4), (1, 50), (2, 7), (5, 3), (64, 3)]

LAYERS: dict[str, Any] = {
    "plain": lambda: Attention(),
    "causal": lambda: Attention(causal=True),
    "causal, scale": lambda: Attention(causal=True, use_scale=True),
    "concat": lambda: Attention(score_mode="concat"),
    "additive": lambda: AdditiveAttention(use_scale=False),
}

CHILD = """
import json, sys
import numpy as np, onnxruntime as ort
ort.set_default_logger_severity(4)
path, pairs, levels = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
LEVELS = [getattr(ort.GraphOptimizationLevel, name) for name in
          ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")]
def opened(level, **sizes):
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = 1
    for name, size in sizes.items():
        options.add_free_dimension_override_by_name(name, size)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
free = opened(0)
draw = np.random.default_rng(0)
for tq, tv in pairs:
    feeds = {
        "query": draw.standard_normal((2, tq, 4), np.float32),
        "value": draw.standard_normal((2, tv, 3), np.float32),
        "key": draw.standard_normal((2, tv, 4), np.float32),
        "query_mask": draw.random((2, tq)) > 0.3,
        "value_mask": draw.random((2, tv)) > 0.3,
    }
    feeds = {i.name: feeds[i.name] for i in free.get_inputs()}
    expected = free.run(None, feeds)
    for sizes in (
        {"Tq": tq}, {"Tq": tq, "Tv": tv},
        {"batch": 2, "Tq": tq, "Tv": tv, "value_dim": 3},
        {"batch": 2, "Tq": tq, "Tv": tv, "dim": 4, "value_dim": 3},
    ):
        for level in levels:
            for got, want in zip(opened(level, **sizes).run(None, feeds), expected):
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5, err_msg=str(sizes))
"""


def run_fixed(path: Path, pairs: list[tuple[int, int]], levels: list[int]) -> None:
    arguments = [str(path), json.dumps(pairs), json.dumps(levels)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-600:]}"


@pytest.mark.parametrize("masks", ["none", "both"])
@pytest.mark.parametrize("name", LAYERS)
def test_sizes_fixed_later_break_no_branch(name: str, masks: str, tmp_path: Path) -> None:
    path = LAYERS[name]().export(tmp_path / "free.onnx", masks=masks)
    run_fixed(path, [(7, 7), (1, 50), (5, 3), (64, 3)], [3])


@pytest.mark.soak
@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("schedule", ["auto", "dense", "tiled"])
@pytest.mark.parametrize("masks", ["none", "both"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_size_and_level(
    name: str, masks: str, schedule: str, scores: bool, tmp_path: Path
) -> None:
    options = {"masks": masks, "schedule": schedule, "return_attention_scores": scores}
    path = LAYERS[name]().export(tmp_path / "free.onnx", **options)
    lengths = sorted({*range(1, 41), *LENGTHS})
    run_fixed(path, [*((length, length) for length in lengths), *PAIRS], [0, 1, 2, 3])


@pytest.mark.parametrize("lengths", [(64, 3), (3000, 3000), (4096, 4096)])
@pytest.mark.parametrize("name", LAYERS)
def test_fixed_files_open(name: str, lengths: tuple[int, int], tmp_path: Path) -> None:
    dims = {"batch": 2, "Tq": lengths[0], "Tv": lengths[1], "value_dim": 4}
    path = LAYERS[name]().export(tmp_path / "fixed.onnx", masks="none", dims=dims)
    code = (
        "import onnxruntime, sys\n"
        "onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-600:]}"


@pytest.mark.parametrize("length", [301, 333, 511, 701, 1001, 1503])
def test_uneven_parts_of_known_lengths(length: int) -> None:
    """Shapes are inferred while a file is written: parts of two lengths add up to all."""
    for dims in ({"Tq": length, "Tv": length}, {**ALL, "Tq": length, "Tv": length}):
        for heads in (False, True):
            for masks in ("none", "both"):
                model = Attention(causal=True).to_onnx(masks=masks, dims=dims, heads=heads)
                onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_a_small_fixed_file_is_the_bare_nodes() -> None:
    model = Attention().to_onnx(masks="none", dims=ALL)
    assert operators(model) == ["Transpose", "MatMul", "Softmax", "MatMul"]


def test_a_long_fixed_file_is_still_the_walk() -> None:
    dims = {"batch": 1, "Tq": 16384, "Tv": 16384, "dim": 64, "value_dim": 64}
    found = operators(Attention(causal=True).to_onnx(masks="none", dims=dims))
    assert "Scan" in found
    assert "If" not in found
    assert "Shape" not in found


@pytest.mark.parametrize("schedule", ["auto", "dense"])
@pytest.mark.parametrize("name", LAYERS)
def test_fixed_sizes_leave_no_shape_open(name: str, schedule: str) -> None:
    model = LAYERS[name]().to_onnx(
        masks="none", schedule=schedule, dims=ALL | {"Tq": 512, "Tv": 512}
    )
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert not {"If", "Shape", "Size"} & set(operators(model))
    if "Scan" in operators(model):
        return
    values = {value.name: value.type.tensor_type.shape for value in inferred.graph.value_info}
    for node in model.graph.node:
        for output in set(node.output) - {"output"}:
            assert all(dim.HasField("dim_value") for dim in values[output].dim), output


def test_a_mask_of_one_is_still_a_mask() -> None:
    dims = ALL | {"value_mask_batch": 1, "value_mask_Tv": 1}
    assert "Where" in operators(Attention().to_onnx(masks="value", dims=dims))


def test_the_mask_is_asked_only_where_it_may_stand_for_none() -> None:
    dims = ALL | {"value_mask_batch": 1, "value_mask_Tv": 16}
    found = operators(Attention().to_onnx(masks="value", schedule="dense", dims=dims))
    assert "If" not in found

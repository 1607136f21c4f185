"""Promise: bodies stand on their own, so that tools may rename, merge, extract, convert a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import compose

from onnx_attn import Attention

CASES = [
    (schedule, masks, causal)
    for schedule in ("auto", "dense", "tiled")
    for masks in ("both", "none")
    for causal in (False, True)
]


def layer_of(scale: float, causal: bool) -> Attention:
    layer = Attention(use_scale=True, causal=causal)
    layer.set_weights([scale])
    return layer


def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def feeds_of(model: onnx.ModelProto, length: int) -> dict[str, Any]:
    draw = np.random.default_rng(3)
    return {
        given.name: draw.random((2, length)) > 0.2
        if given.name.endswith("mask")
        else draw.standard_normal((2, length, 8), np.float32)
        for given in model.graph.input
    }


@pytest.mark.parametrize("length", [5, 400])
@pytest.mark.parametrize(("schedule", "masks", "causal"), CASES)
def test_two_files_in_one_model(schedule: str, masks: Any, causal: bool, length: int) -> None:
    made = [
        layer_of(scale, causal).to_onnx(schedule=schedule, masks=masks) for scale in (0.3, -1.2)
    ]
    prefixed: list[onnx.ModelProto] = []
    for model, prefix in zip(made, ("a_", "b_"), strict=True):
        renamed = compose.add_prefix(model, prefix)
        onnx.checker.check_model(renamed, full_check=True)
        del renamed.metadata_props[:]
        prefixed.append(renamed)
    merged = compose.merge_models(*prefixed, io_map=[("a_output", "b_query")])
    onnx.checker.check_model(merged, full_check=True)
    feeds = feeds_of(merged, length)
    first = {name[2:]: value for name, value in feeds.items() if name.startswith("a_")}
    second = {name[2:]: value for name, value in feeds.items() if name.startswith("b_")}
    expected = run(made[1], second | {"query": run(made[0], first)})
    np.testing.assert_allclose(run(merged, feeds), expected, rtol=1e-5, atol=1e-6)


FIXED = {"batch": 2, "Tq": 400, "Tv": 400, "dim": 8, "value_dim": 8}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dims": FIXED},
        {"heads": True},
        {"heads": True, "dims": FIXED | {"heads": 3}},
        {"bias": True},
        {"bias": True, "dims": FIXED},
        {"bias": True, "heads": True},
        {"bias": True, "heads": True, "dims": FIXED | {"heads": 3}},
    ],
    ids=lambda options: "-".join(options) or "free",
)
@pytest.mark.parametrize(("schedule", "masks", "causal"), CASES)
def test_a_file_extracted_again(
    schedule: str, masks: Any, causal: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    model = layer_of(0.3, causal).to_onnx(schedule=schedule, masks=masks, **options)
    onnx.save(model, tmp_path / "whole.onnx")
    names = [given.name for given in model.graph.input]
    onnx.utils.extract_model(tmp_path / "whole.onnx", tmp_path / "part.onnx", names, ["output"])
    feeds = feeds_of(model, 400)
    if "heads" in options:
        for name in ("query", "value", "key"):
            feeds[name] = np.stack([feeds[name] * size for size in (0.5, 1.0, 2.0)], axis=1)
    if "bias" in options:
        rank = 4 if "heads" in options else 3
        bias = np.random.default_rng(4).standard_normal((400, 400), np.float32)
        feeds["bias"] = bias.reshape((1,) * (rank - 2) + bias.shape)
    extracted = onnx.load(tmp_path / "part.onnx")
    np.testing.assert_array_equal(run(extracted, feeds), run(model, feeds))


@pytest.mark.parametrize("masks", ["none", "both"])
@pytest.mark.parametrize("schedule", ["auto", "dense", "tiled"])
def test_a_training_file_extracted_again(schedule: str, masks: Any, tmp_path: Path) -> None:
    """What the branches of a training file read is an input of the nodes around them, too."""
    layer = Attention(use_scale=True, causal=True, dropout=0.5)
    layer.set_weights([0.3])
    for scores in (False, True):
        options = {"schedule": schedule, "masks": masks, "return_attention_scores": scores}
        model = layer.to_onnx(training=True, **options)
        whole, part = tmp_path / "whole.onnx", tmp_path / "part.onnx"
        onnx.save(model, whole)
        names = [given.name for given in model.graph.input]
        outputs = [output.name for output in model.graph.output]
        onnx.utils.extract_model(whole, part, names, outputs)
        feeds = feeds_of(model, 400) | {"training": np.array(False)}
        np.testing.assert_array_equal(run(onnx.load(part), feeds), run(model, feeds))


@pytest.mark.parametrize("schedule", ["auto", "dense", "tiled", "fused"])
def test_a_file_printed_and_parsed(schedule: str) -> None:
    model = Attention(use_scale=True).to_onnx(schedule=schedule)
    again = onnx.parser.parse_model(onnx.printer.to_text(model))
    feeds = feeds_of(model, 400)
    np.testing.assert_array_equal(run(again, feeds), run(model, feeds))


@pytest.mark.parametrize("length", [1, 2, 5, 7, 9, 12, 18, 34, 65])
def test_behind_an_encoder_of_fixed_length(length: int) -> None:
    attention = compose.add_prefix(Attention(causal=True).to_onnx(masks="none"), "a_")
    dims = f"2,{length},8"
    encoder = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        encoder (float[{dims}] x) => (float[{dims}] q, float[{dims}] v, float[{dims}] k)
        {{ q = Tanh(x) v = Neg(x) k = Abs(x) }}"""
    )
    del attention.metadata_props[:]
    links = [("q", "a_query"), ("v", "a_value"), ("k", "a_key")]
    merged = compose.merge_models(encoder, attention, io_map=links)
    x = np.random.default_rng(0).standard_normal((2, length, 8), np.float32)
    feeds = {"query": np.tanh(x), "value": -x, "key": np.abs(x)}
    expected = run(Attention(causal=True).to_onnx(masks="none"), feeds)
    np.testing.assert_allclose(run(merged, {"x": x}), expected, rtol=1e-5, atol=1e-6)

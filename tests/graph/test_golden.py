"""The numbers of real Keras layers, through the layer, the file, and ONNX Runtime alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from golden import (
    CALLS,
    CASES,
    DIVERGES,
    FILE_CASES,
    compare,
    feeds_of,
    inputs_of,
    load,
    make_layer,
    mask_of,
)
from onnx_attn import Attention, AttentionSession
from onnx_attn.reference import attention


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


@pytest.mark.parametrize("inputs", ["required", "optional"])
@pytest.mark.parametrize("name", FILE_CASES)
def test_file_in_the_session_gives_keras_numbers(name: str, inputs: str, tmp_path: Path) -> None:
    case = CALLS[name]
    arrays = load(case)
    path = make_layer(case, arrays).export(
        tmp_path / "model.onnx", inputs=inputs, return_attention_scores=True
    )
    session = AttentionSession(path, device="cpu")
    results = session.run(feeds_of(case, arrays))
    compare(results["output"], arrays["output"], case)
    if "scores" in arrays:
        compare(results["attention_scores"], arrays["scores"], case)


@pytest.mark.parametrize("name", [n for n in FILE_CASES if "bfloat16" not in CALLS[n]["dtype"]])
def test_file_alone_gives_keras_numbers_and_the_bits_of_the_session(
    name: str, tmp_path: Path
) -> None:
    """A user with onnxruntime and the file, no import of ours: every input fed by name."""
    case = CALLS[name]
    arrays = load(case)
    path = make_layer(case, arrays).export(tmp_path / "model.onnx")
    feeds = feeds_of(case, arrays)
    feeds.setdefault("key", feeds["value"])
    feeds.setdefault("query_mask", np.array([[True]]))
    feeds.setdefault("value_mask", np.array([[True]]))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    plain = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (output,) = plain.run(["output"], feeds)
    compare(output, arrays["output"], case)
    session = AttentionSession(path, device="cpu", threads=2)
    np.testing.assert_array_equal(session.run(feeds)["output"], output)


@pytest.mark.parametrize("name", sorted(DIVERGES))
def test_where_keras_disagrees_with_itself(name: str) -> None:
    case = CALLS[name]
    arrays = load(case)
    output = make_layer(case, arrays)(inputs_of(arrays), mask=mask_of(case, arrays))
    if name == "nan_query_row_qmask":
        np.testing.assert_allclose(output, arrays["output__keras3151_tf"], rtol=1e-5, atol=2e-6)
    else:
        wanted, _ = attention(*inputs_of(arrays)[:2], value_mask=arrays["value_mask"])
        np.testing.assert_allclose(output, wanted, rtol=2e-3)
        assert np.isnan(arrays["output"]).all()


def cases_of(kind: str) -> list[dict[str, Any]]:
    found = [case for case in CASES if case["kind"] == kind]
    assert found, f"no golden case of kind {kind}"
    return found


def by_name(case: dict[str, Any]) -> str:
    return case["name"]


@pytest.mark.parametrize("case", cases_of("calculate_scores"), ids=by_name)
def test_raw_scores(case: dict[str, Any]) -> None:
    """Scores before the softmax: read out of the graph by asking for that value."""
    arrays = load(case)
    layer = make_layer(case, arrays)
    model = layer.to_onnx(masks="none", schedule="dense")
    model.graph.output.add(name="scores")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feeds = {"query": arrays["query"], "key": arrays["key"], "value": arrays["key"]}
    (scores,) = session.run(["scores"], feeds)
    np.testing.assert_allclose(scores, arrays["raw_scores"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("case", cases_of("apply_scores"), ids=by_name)
def test_scores_and_mask_to_output(case: dict[str, Any]) -> None:
    """With an identity for keys, the queries are the raw scores."""
    arrays = load(case)
    raw = arrays["raw_scores"]
    key = np.broadcast_to(np.eye(raw.shape[-1], dtype=np.float32), (len(raw), *raw.shape[-1:] * 2))
    output, scores = Attention()(
        [raw, arrays["value"], key],
        mask=[None, arrays["scores_mask"]],
        return_attention_scores=True,
    )
    np.testing.assert_allclose(scores, arrays["scores"], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(output, arrays["output"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("case", cases_of("score_mask"), ids=by_name)
def test_causal_mask(case: dict[str, Any]) -> None:
    """Equal scores: the keys that get any weight are the ones the mask allows."""
    mask = load(case)["mask"]
    rows, columns = mask.shape[-2:]
    query, value = np.zeros((1, rows, 2), np.float32), np.zeros((1, columns, 2), np.float32)
    _, scores = Attention(causal=case["causal"])([query, value], return_attention_scores=True)
    np.testing.assert_array_equal(scores[0] > 0, mask.reshape(rows, columns))


@pytest.mark.parametrize("case", cases_of("compute_mask"), ids=by_name)
def test_compute_mask(case: dict[str, Any]) -> None:
    arrays = load(case)
    tensors = [np.zeros((1, 3, 2), np.float32)] * 2
    mask = [arrays.get("query_mask"), arrays.get("value_mask")]
    computed = Attention().compute_mask(tensors, mask)
    np.testing.assert_array_equal(computed, arrays["computed_mask"])
    assert Attention().compute_mask(tensors) is None
    assert Attention().compute_mask(tensors, [None, arrays["value_mask"]]) is None


@pytest.mark.parametrize("case", cases_of("shape"), ids=by_name)
def test_shapes(case: dict[str, Any]) -> None:
    arrays = load(case)
    layer = make_layer(case, {})
    shapes = [
        tuple(int(size) for size in arrays[f"{name}_shape"])
        for name in ("query", "value", "key")
        if f"{name}_shape" in arrays
    ]
    wanted = tuple(int(size) for size in arrays["output_shape"])
    assert layer.compute_output_shape(shapes) == wanted
    tensors = [np.ones(shape, np.float32) for shape in shapes]
    masks = [arrays.get("query_mask"), arrays.get("value_mask")]
    output, scores = layer(tensors, mask=masks, return_attention_scores=True)
    assert output.shape == wanted
    if "scores_shape" in arrays:
        assert scores.shape == tuple(int(size) for size in arrays["scores_shape"])


@pytest.mark.parametrize("case", cases_of("initial_weight"), ids=by_name)
def test_initial_weights(case: dict[str, Any]) -> None:
    arrays = load(case)
    (scale,) = Attention(**case["init"]).get_weights()
    np.testing.assert_array_equal(scale, arrays["scale"])
    assert Attention(use_scale=False).get_weights() == []


def test_every_golden_case_is_tested() -> None:
    kinds = {case["kind"] for case in CASES}
    assert kinds == {
        "layer_call",
        "calculate_scores",
        "apply_scores",
        "score_mask",
        "compute_mask",
        "shape",
        "initial_weight",
    }

"""Promise: a fused file gives Keras's numbers by ONNX Runtime's own operator, or is not written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnx_attn import AdditiveAttention, Attention, AttentionSession, InputError
from oracle import close, wanted_of
from schedules import (
    GOOD,
    LENGTHS,
    MASKS,
    WRONG,
    masks_for,
    model_of,
    nodes_run,
    numbers,
    raw,
    session_for,
    shaped,
)
from strategies import Case, cases

OPERATOR = "MultiHeadAttention"


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_fused_agrees_with_the_reference(limits: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["float32", "float16", "bfloat16", "mixed_float16"]))
    tensor = dtype.removeprefix("mixed_")
    case: Case = data.draw(cases(tensor, largest=20))
    use_scale = data.draw(st.booleans())
    scale = {"scale": np.array(-0.75, np.float32)} if use_scale else {}
    kind = "float32" if dtype.startswith("mixed") else case.query.dtype
    typed = {name: weight.astype(kind) for name, weight in scale.items()}
    session = session_for(
        limits,
        "dot",
        {"use_scale": use_scale, "dtype": dtype},
        masks=data.draw(st.sampled_from(masks_for(case))),
        scale="input" if use_scale else "constant",
        schedule="fused",
    )
    output = session.run({**case.feeds(), **typed})["output"]
    close(output, wanted_of(case, "dot", False, typed, tensor)[0], tensor)


@pytest.mark.parametrize("masks", ["both", "query", "value", "none"])
def test_the_operator_runs_where_nothing_is_hidden(masks: str, tmp_path: Path) -> None:
    model = model_of("dot", {}, schedule="fused", masks=masks)
    feeds: dict[str, Any] = {
        "query": numbers(1, 1100, 16),
        "value": numbers(1, 1200, 8, seed=1),
        "key": numbers(1, 1200, 16, seed=2),
    }
    if masks in ("both", "query"):
        feeds["query_mask"] = np.array([[True]])
    if masks in ("both", "value"):
        feeds["value_mask"] = np.array([[True]])
    assert nodes_run(model, feeds, tmp_path)[OPERATOR] == 1
    (output,) = raw(model).run(None, feeds)
    (dense,) = raw(model_of("dot", {}, schedule="dense", masks=masks)).run(None, feeds)
    np.testing.assert_allclose(output, dense, rtol=1e-5, atol=2e-6)
    if masks in ("both", "query"):
        feeds["query_mask"] = np.arange(1100)[None] >= 100
        # Under both masks a query mask alone goes by the branch for masks.
        assert nodes_run(model, feeds, tmp_path)[OPERATOR] == (masks == "query")
        (output,) = raw(model).run(None, feeds)
        np.testing.assert_array_equal(output[:, :100], 0)
        np.testing.assert_allclose(output[:, 100:], dense[:, 100:], rtol=1e-5, atol=2e-6)


def test_large_scores_and_rows_without_a_key() -> None:
    query, key, value = numbers(2, 1100, 4), numbers(2, 1100, 4, seed=1), numbers(2, 1100, 3)
    mask = np.arange(1100)[None] < np.array([[0], [700]])
    sessions = [
        AttentionSession(model_of("dot", {}, schedule=schedule).SerializeToString(), device="cpu")
        for schedule in ("fused", "dense")
    ]
    for factor in (1.0, 1e4):
        for value_mask in (None, mask):
            fused, dense = (
                session(query * np.float32(factor), value, key, value_mask=value_mask)
                for session in sessions
            )
            np.testing.assert_allclose(fused, dense, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("layer", "options", "reason"),
    [
        (Attention(causal=True), {}, "causal=True"),
        (Attention(score_mode="concat"), {}, "no dot products"),
        (AdditiveAttention(use_scale=False), {}, "no dot products"),
        (Attention(dtype="float64"), {}, "float64"),
        (Attention(), {"return_attention_scores": True}, "return_attention_scores=True"),
        (Attention(dropout=0.5), {"training": True}, "training=True"),
    ],
)
def test_what_it_cannot_do_is_refused(layer: Any, options: Any, reason: str) -> None:
    with pytest.raises(InputError, match=f"cannot do .*{reason}.*schedule='auto'"):
        layer.to_onnx(schedule="fused", **options)


def test_the_file_says_what_it_needs(tmp_path: Path) -> None:
    path = Attention(dtype="float16").export(tmp_path / "a.onnx", schedule="fused")
    model = onnx.load(path)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["onnx_attn.runtime"] == "onnxruntime, computes in float32"
    assert "needs ONNX Runtime" in model.doc_string
    assert {entry.domain: entry.version for entry in model.opset_import} == {
        "": 17,
        "com.microsoft": 1,
    }
    onnx.checker.check_model(model, full_check=True)
    again = Attention.load(path).export(tmp_path / "b.onnx")
    assert again.read_bytes() == path.read_bytes()
    other = onnx.load(Attention().export(tmp_path / "c.onnx"))
    assert "onnx_attn.runtime" not in {entry.key for entry in other.metadata_props}
    assert [entry.domain for entry in other.opset_import] == [""]


@pytest.mark.parametrize("given_masks", ["both", "one", "query", "none"])
@pytest.mark.parametrize("size", ["small", "fused"])
def test_raw_files_fail_on_shapes_that_do_not_fit(size: str, given_masks: str) -> None:
    masks = "both" if given_masks == "one" else given_masks
    session = raw(model_of("dot", {}, schedule="fused", masks=masks))
    taken = {entry.name for entry in session.get_inputs()}
    longer = {length: length + 800 for length in range(399, 406)} | {808: 2408}
    lengths = LENGTHS["small"] if size == "small" else longer
    own = {"query_mask": (1, 1), "value_mask": (1, 1)} if given_masks == "one" else MASKS

    def feeds(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        made = shaped({**GOOD, **own, **shapes}, lengths)
        return {name: array for name, array in made.items() if name in taken}

    (output,) = session.run(None, feeds({}))
    assert output.shape == (*feeds({})["query"].shape[:2], 8)
    for shapes in WRONG.values():
        masks_differ = any("mask" in name for name in shapes)
        if (given_masks == "one" and masks_differ) or not set(shapes) <= taken:
            continue
        with pytest.raises(Exception, match="ONNXRuntimeError"):
            session.run(None, feeds(shapes))

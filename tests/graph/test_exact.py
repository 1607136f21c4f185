"""Promise: exact. What Keras computes, in every corner, against the float64 reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from onnx_attn import Attention, AttentionSession
from onnx_attn.configuration import numpy_dtype
from onnx_attn.reference import attention
from oracle import MODES, close, make_layer, wanted_of, weights_for
from strategies import Case, cases

SESSIONS: dict[Any, Any] = {}


def session_for(mode: str, arguments: dict[str, Any], **options: Any) -> AttentionSession:
    """One session per file for the whole module: opening one costs more than a run."""
    which = repr((mode, sorted(arguments.items()), sorted(options.items())))
    if which not in SESSIONS:
        layer = make_layer(mode, **arguments)
        if mode == "additive" and arguments.get("use_scale", True):
            layer.build(4)
        model = layer.to_onnx(**options)
        SESSIONS[which] = AttentionSession(model.SerializeToString(), device="cpu")
    return SESSIONS[which]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_file_agrees_with_the_reference(mode: str, dtype: str, data: st.DataObject) -> None:
    case: Case = data.draw(cases(dtype))
    causal, use_scale = data.draw(st.booleans()), data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    weights = weights_for(mode, use_scale, case.query.shape[-1], rng)
    session = session_for(
        mode,
        {"use_scale": use_scale, "causal": causal, "dtype": dtype},
        return_attention_scores=True,
        scale="input" if weights else "constant",
    )
    typed = {name: weight.astype(case.query.dtype) for name, weight in weights.items()}
    results = session.run({**case.feeds(), **typed})
    output, scores = wanted_of(case, mode, causal, typed, dtype)
    close(results["output"], output, dtype)
    close(results["attention_scores"], scores, dtype)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_reference_evaluator_agrees(mode: str, causal: bool, data: st.DataObject) -> None:
    case: Case = data.draw(cases(largest=5, dims=4))
    which = ("evaluator", mode, causal)
    if which not in SESSIONS:
        layer = make_layer(mode, causal=causal, use_scale=False)
        SESSIONS[which] = ReferenceEvaluator(layer.to_onnx(return_attention_scores=True))
    feeds = {"query_mask": np.array([[True]]), "value_mask": np.array([[True]]), **case.feeds()}
    output, scores = SESSIONS[which].run(None, feeds)
    wanted = wanted_of(case, mode, causal, {}, "float32")
    close(output, wanted[0], "float32")
    close(scores, wanted[1], "float32")


@settings(max_examples=60, deadline=None)
@given(case=cases(), causal=st.booleans(), seed=st.integers(0, 1000))
def test_what_is_hidden_moves_nothing(case: Case, causal: bool, seed: int) -> None:
    """For rows that see a key: other hidden keys and values, the same bits."""
    session = session_for("dot", {"causal": causal}, return_attention_scores=True)
    rng = np.random.default_rng(seed)
    shape = (case.query.shape[0], case.query.shape[1], case.key.shape[1])
    visible = np.ones(shape, np.bool_)
    if case.value_mask is not None:
        visible &= case.value_mask[:, None, :]
    before, scores = session(*_inputs(case), value_mask=case.value_mask)
    np.testing.assert_allclose(scores.sum(-1), np.float32(shape[2] > 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores @ case.value, before, rtol=1e-4, atol=1e-5)
    if not visible.size:
        return
    last = int(rng.integers(0, shape[1]))
    if causal:
        visible &= np.tri(*shape[1:], dtype=np.bool_)
    row = visible[:, last, :]  # [batch, Tv]
    key, value = case.key.copy(), case.value.copy()
    key[~row] = rng.uniform(-1.5, 1.5, key[~row].shape)
    value[~row] = rng.uniform(-1.5, 1.5, value[~row].shape)
    after, _ = session(case.query, value, key, value_mask=case.value_mask)
    seeing = row.any(-1)
    np.testing.assert_array_equal(after[seeing, last], before[seeing, last])


@settings(max_examples=40, deadline=None)
@given(case=cases(), causal=st.booleans())
def test_query_mask_zeroes_output_rows_only(case: Case, causal: bool) -> None:
    session = session_for("dot", {"causal": causal}, return_attention_scores=True)
    plain, scores = session(*_inputs(case), value_mask=case.value_mask)
    output, same = session(*_inputs(case), value_mask=case.value_mask, query_mask=case.query_mask)
    np.testing.assert_array_equal(same, scores)
    if case.query_mask is not None:
        kept = np.broadcast_to(case.query_mask, plain.shape[:2])
        plain = np.where(kept[:, :, None], plain, np.float32(0))
    np.testing.assert_array_equal(output, plain)


def _inputs(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return case.query, case.value, case.key


def test_fully_masked_row_is_uniform_for_ordinary_scores() -> None:
    query, value = np.ones((1, 2, 4), np.float32), np.eye(4, dtype=np.float32)[None]
    mask = np.zeros((1, 4), np.bool_)
    for causal in (False, True):
        _, scores = Attention(causal=causal)(
            [query, value], mask=[None, mask], return_attention_scores=True
        )
        np.testing.assert_array_equal(scores, np.full((1, 2, 4), 0.25, np.float32))


def test_front_padding_with_causal_gives_uniform_first_rows() -> None:
    value = np.random.default_rng(0).standard_normal((1, 4, 3)).astype(np.float32)
    mask = np.array([[False, False, True, True]])
    _, scores = Attention(causal=True)(
        [value, value], mask=[None, mask], return_attention_scores=True
    )
    np.testing.assert_array_equal(scores[0, :2], np.full((2, 4), 0.25, np.float32))
    np.testing.assert_array_equal(scores[0, 2], np.array([0, 0, 1, 0], np.float32))


@pytest.mark.parametrize("scale", [0.0, -2.5, 1e-3, 40.0])
def test_any_scale_is_legal(scale: float) -> None:
    rng = np.random.default_rng(0)
    query, value = (rng.standard_normal((2, 3, 4)).astype(np.float32) for _ in range(2))
    layer = Attention(use_scale=True)
    layer.set_weights([scale])
    wanted, _ = attention(query, value, scale=scale)
    np.testing.assert_allclose(layer([query, value]), wanted, rtol=1e-5, atol=2e-6)


def test_nan_stays_out_of_masked_query_rows() -> None:
    query = np.array([[[1.0], [np.nan]]], np.float32)
    output = Attention()(
        [query, np.ones((1, 2, 1), np.float32)], mask=[np.array([[True, False]]), None]
    )
    np.testing.assert_array_equal(output, [[[1.0], [0.0]]])


def test_inference_is_repeatable_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    query, value = (rng.standard_normal((2, 33, 17)).astype(np.float32) for _ in range(2))
    layer = Attention(causal=True, dropout=0.5)
    np.testing.assert_array_equal(layer([query, value]), layer([query, value], training=False))


@pytest.mark.parametrize("schedule", ["auto", "dense", "tiled"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("causal", [False, True])
def test_trained_weights_in_the_file(causal: bool, dtype: str, mode: str, schedule: str) -> None:
    """A constant of the file may go other ways through a runtime than an input."""
    layer = make_layer(mode, use_scale=True, causal=causal, dtype=dtype)
    if mode == "additive":
        layer.build(6)
    rng = np.random.default_rng(4)
    weights = weights_for(mode, True, 6, rng)
    layer.set_weights(
        [weights[name] for name in ("scale", "concat_score_weight") if name in weights]
    )
    model = layer.to_onnx(schedule=schedule, masks="none", return_attention_scores=True)
    session = AttentionSession(model.SerializeToString(), device="cpu")
    query, value, key = (
        rng.uniform(-1.5, 1.5, shape).astype(numpy_dtype(dtype))
        for shape in ((2, 7, 6), (2, 5, 3), (2, 5, 6))
    )
    results = session.run({"query": query, "value": value, "key": key})
    wanted = attention(
        query,
        value,
        key,
        score_mode=mode,
        causal=causal,
        compute="float64" if dtype == "float64" else "float32",
        **{name: weight.astype(query.dtype).astype(np.float64) for name, weight in weights.items()},
    )
    close(results["output"], wanted[0], dtype)
    close(results["attention_scores"], wanted[1], dtype)


@pytest.mark.parametrize("schedule", ["auto", "dense", "tiled"])
def test_one_feature_of_fixed_sizes_is_exact_in_float64(schedule: str) -> None:
    """One number for one feature is a scalar to ONNX Runtime, which keeps 32 bits of it."""
    layer = make_layer("dot", use_scale=True, dtype="float64")
    layer.set_weights([0.3])
    dims = {"batch": 2, "Tq": 7, "Tv": 5, "dim": 1, "value_dim": 3}
    model = layer.to_onnx(schedule=schedule, masks="none", dims=dims)
    rng = np.random.default_rng(4)
    feeds = {
        name: rng.uniform(-1.5, 1.5, shape)
        for name, shape in (("query", (2, 7, 1)), ("value", (2, 5, 3)), ("key", (2, 5, 1)))
    }
    got = AttentionSession(model.SerializeToString(), device="cpu").run(feeds)["output"]
    close(got, attention(**feeds, scale=0.3, compute="float64")[0], "float64")

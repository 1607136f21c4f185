"""Promise: files with an axis of heads and files that take a bias, in every schedule.

The rule is `reference.attention`'s: score + bias, then -1e9 once where value_mask AND causal hide.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import compose

from onnx_attn import Attention, AttentionSession, InputError
from onnx_attn.graph.schedules import thresholds
from onnx_attn.reference import attention
from oracle import MODES, close, make_layer, weights_for
from protos import nodes_of
from strategies import numpy_dtype

SHRUNK = {"MASKED_PAIRS": 10, "BLOCK_PAIRS": 16, "SMALLEST_BLOCK": 2, "WALK_BLOCK": 4}
SCHEDULES = ("auto", "dense", "tiled")
FORMS = [(True, False), (False, True), (True, True)]  # heads, bias


@functools.cache
def layer_of(mode: str, causal: bool, dtype: str = "float32") -> tuple[Any, dict[str, Any]]:
    weights = weights_for(mode, True, 4, np.random.default_rng(5))
    layer = make_layer(mode, causal=causal, use_scale=True, dtype=dtype)
    layer.set_weights(list(weights.values()))
    return layer, weights


@functools.cache
def session_of(
    mode: str, causal: bool, dtype: str = "float32", limits: str = "real", **options: Any
) -> AttentionSession:
    with pytest.MonkeyPatch.context() as patch:
        for name, number in SHRUNK.items() if limits == "shrunk" else ():
            patch.setattr(thresholds, name, number)
        model = layer_of(mode, causal, dtype)[0].to_onnx(**options)
    onnx.checker.check_model(model, full_check=True)
    return AttentionSession(model.SerializeToString(), device="cpu", threads=1)


def drawn(
    rng: np.random.Generator,
    sizes: tuple[int, int, int, int],
    heads: bool,
    bias: tuple[int, ...] | None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Feeds of sizes (batch, heads, Tq, Tv); `bias`: 1 for each of its axes that is not 1."""
    batch, count, Tq, Tv = sizes
    lead = (batch, count) if heads else (batch,)
    shapes = {"query": (*lead, Tq, 4), "value": (*lead, Tv, 3), "key": (*lead, Tv, 4)}
    feeds = {name: rng.uniform(-1.5, 1.5, shape) for name, shape in shapes.items()}
    if bias is not None:
        axes = (*lead, Tq, Tv)
        dims = [size if whole else 1 for size, whole in zip(axes, bias[-len(axes) :], strict=True)]
        hidden = rng.random(dims) < rng.choice([0.0, 0.3, 1.0], p=[0.4, 0.4, 0.2])
        feeds["bias"] = np.where(hidden, -1e4, rng.uniform(-2, 2, dims))
    return {name: array.astype(numpy_dtype(dtype)) for name, array in feeds.items()}


def wanted_of(
    feeds: dict[str, Any],
    mode: str,
    causal: bool,
    weights: dict[str, Any],
    compute: str | None = None,
) -> Any:
    given = {name: feeds.get(name) for name in ("query_mask", "value_mask", "bias")}
    given["compute"] = compute or ("float64" if feeds["query"].dtype == np.float64 else "float32")
    tensors = (feeds[name] for name in ("query", "value", "key"))
    return attention(*tensors, **given, score_mode=mode, causal=causal, **weights)


@settings(deadline=None, max_examples=150)
@given(
    data=st.data(),
    mode=st.sampled_from(MODES),
    causal=st.booleans(),
    form=st.sampled_from(FORMS),
    schedule=st.sampled_from(SCHEDULES),
    scores=st.booleans(),
    limits=st.sampled_from(["real", "shrunk"]),
)
def test_every_schedule_follows_the_reference(
    data: Any, mode: str, causal: bool, form: Any, schedule: str, scores: bool, limits: str
) -> None:
    heads, bias = form
    size = st.integers(0, 11)
    sizes = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3), size, size))
    whole = data.draw(st.tuples(*[st.integers(0, 1)] * 4)) if bias else None
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    feeds = drawn(rng, sizes, heads, whole)
    batch, _, Tq, Tv = sizes
    if data.draw(st.booleans()):
        feeds["value_mask"] = rng.random((data.draw(st.sampled_from([1, batch])), Tv)) < 0.6
        feeds["query_mask"] = rng.random((data.draw(st.sampled_from([1, batch])), Tq)) < 0.6
    session = session_of(
        mode,
        causal,
        limits=limits,
        heads=heads,
        bias=bias,
        schedule=schedule,
        return_attention_scores=scores,
    )
    results = session.run(feeds)
    wanted = wanted_of(feeds, mode, causal, layer_of(mode, causal)[1])
    # A bias of -1e4 on every key rounds scores to thousandths. Where the last bit of a score says
    # which of two, no result is the right one.
    for nudge in (1 - 5e-7, 1 + 5e-7):
        nudged = feeds | {"query": feeds["query"].astype(np.float64) * nudge}
        other = wanted_of(nudged, mode, causal, layer_of(mode, causal)[1], "float32")
        assume(np.allclose(wanted[0], other[0], rtol=5e-6, atol=1e-6))
    for got, right in zip(results.values(), wanted, strict=False):
        assert got.shape == right.shape
        close(got, right, "float32")


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "mixed_float16"])
def test_every_dtype(dtype: str, schedule: str, form: tuple[bool, bool]) -> None:
    heads, bias = form
    layer, weights = layer_of("dot", True, dtype)
    tensor = dtype.removeprefix("mixed_")
    rng = np.random.default_rng(3)
    feeds = drawn(rng, (2, 3, 9, 7), heads, (1, 0, 1, 1) if bias else None, tensor)
    session = session_of("dot", True, dtype, "shrunk", heads=heads, bias=bias, schedule=schedule)
    kept = layer.get_weights()[0].astype(np.float64)
    wanted, _ = wanted_of(feeds, "dot", True, {**weights, "scale": kept})
    close(session.run(feeds)["output"], wanted, tensor)


@pytest.mark.parametrize("inputs", ["required", "optional"])
@pytest.mark.parametrize("form", FORMS[1:], ids=str)
def test_a_bias_left_out_adds_nothing(form: tuple[bool, bool], inputs: str) -> None:
    heads, _ = form
    feeds = drawn(np.random.default_rng(1), (2, 3, 6, 5), heads, None)
    session = session_of("dot", False, heads=heads, bias=True, inputs=inputs)
    wanted, _ = wanted_of(feeds, "dot", False, layer_of("dot", False)[1])
    close(session.run(feeds)["output"], wanted, "float32")
    again = session(feeds["query"], feeds["value"], feeds["key"], bias=None)
    np.testing.assert_array_equal(again, session.run(feeds)["output"])


def test_fixed_sizes() -> None:
    sizes = {"batch": 2, "heads": 3, "Tq": 9, "Tv": 7, "bias_heads": 3, "bias_Tq": 9, "bias_Tv": 7}
    feeds = drawn(np.random.default_rng(2), (2, 3, 9, 7), True, (0, 1, 1, 1))
    wanted, _ = wanted_of(feeds, "dot", True, layer_of("dot", True)[1])
    layer, _ = layer_of("dot", True)
    for schedule in SCHEDULES:
        model = layer.to_onnx(heads=True, bias=True, schedule=schedule, dims=sizes)
        session = AttentionSession(model.SerializeToString(), device="cpu")
        assert session.inputs["bias"].dims == ("bias_batch", 3, 9, 7)
        close(session.run(feeds)["output"], wanted, "float32")
        left_out = {name: array for name, array in feeds.items() if name != "bias"}
        assert session.run(left_out)["output"].shape == (2, 3, 9, 3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_training_drops_weights_in_heads(schedule: str) -> None:
    layer = Attention(dropout=0.5, seed=4)
    options: dict[str, Any] = {"heads": True, "bias": True, "schedule": schedule}
    model = layer.to_onnx(training=True, return_attention_scores=True, **options)
    session = AttentionSession(model.SerializeToString(), device="cpu")
    feeds = drawn(np.random.default_rng(1), (2, 3, 20, 20), True, (0, 0, 0, 0))
    _, whole = session(**feeds)
    output, weights = session(**feeds, training=True)
    dropped = weights == 0
    assert 0.3 < dropped.mean() < 0.7
    np.testing.assert_allclose(weights[~dropped], 2 * whole[~dropped], rtol=1e-5)
    np.testing.assert_allclose(output, weights @ feeds["value"], rtol=1e-4, atol=1e-5)


def test_heads_in_the_fused_schedule() -> None:
    model = Attention().to_onnx(heads=True, masks="none", schedule="fused")
    session = AttentionSession(model.SerializeToString(), device="cpu")
    feeds = drawn(np.random.default_rng(1), (1, 2, 1100, 1000), True, None)
    wanted, _ = wanted_of(feeds, "dot", False, {})
    close(session.run(feeds)["output"], wanted, "float32")


GOOD = {"query": (2, 3, 5, 4), "value": (2, 3, 6, 3), "key": (2, 3, 6, 4)}
LENGTH, DIM = "key_and_value_must_have_the_same_length", "query_and_key_must_have_the_same_dim"
HEADS, MASK = "batches_and_heads_must_fit_the_query", "value_mask_must_fit_the_key"
BIAS, ROWS = "bias_must_fit_the_scores", "batches_and_masks_must_fit_the_query"
WRONG: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "fewer heads in the key": ({"key": (2, 2, 6, 4)}, HEADS),
    "one head in key and value": ({"key": (2, 1, 6, 4), "value": (2, 1, 6, 3)}, HEADS),
    "one batch row": ({"key": (1, 3, 6, 4), "value": (1, 3, 6, 3)}, HEADS),
    "batch and heads swapped": ({"key": (3, 2, 6, 4), "value": (3, 2, 6, 3)}, HEADS),
    "shorter value": ({"value": (2, 3, 5, 3)}, LENGTH),
    "other dim": ({"key": (2, 3, 6, 1)}, DIM),
    "short value_mask": ({"value_mask": (2, 5)}, MASK),
    "value_mask of batch 3": ({"value_mask": (3, 6)}, MASK),
    "value_mask of every head": ({"value_mask": (6, 6)}, MASK),
    "short query_mask": ({"query_mask": (2, 4)}, ROWS),
    "short bias": ({"bias": (2, 3, 5, 5)}, BIAS),
    "bias of batch 3": ({"bias": (3, 1, 1, 1)}, BIAS),
    "bias with batch and heads swapped": ({"bias": (3, 2, 5, 6)}, BIAS),
    "bias longer than the query": ({"bias": (1, 1, 6, 1)}, BIAS),
}


@pytest.mark.parametrize(
    ("what", "bias"),
    [(what, bias) for what in WRONG for bias in (False, True) if bias or "bias" not in what],
)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_raw_file_refuses_by_name(bias: bool, schedule: str, what: str) -> None:
    changes, broken = WRONG[what]
    session = session_of("dot", False, limits="shrunk", heads=True, bias=bias, schedule=schedule)
    shapes = {**GOOD, "query_mask": (1, 1), "value_mask": (1, 1)}
    shapes |= {"bias": (1, 1, 1, 1)} if bias else {}
    feeds: dict[str, Any] = {}
    for name, shape in {**shapes, **changes}.items():
        feeds[name] = np.ones(shape, np.bool_ if name.endswith("_mask") else np.float32)
        if name.endswith("_mask") and feeds[name].size > 1:
            feeds[name][:, -1] = False
    with pytest.raises(Exception, match="must") as caught:
        session.ort_session.run(None, feeds)
    # A mask that is folded with the heads may fail by the rule of the batches.
    named = re.findall(r"Name:'([^']*)'", str(caught.value))[-1]
    assert broken in named or (broken == MASK and ROWS in named)
    with pytest.raises(InputError):
        session.run(feeds)


def test_sessions_say_what_is_wrong() -> None:
    session = session_of("dot", False, heads=True, bias=True)
    feeds = drawn(np.random.default_rng(0), (2, 3, 5, 6), True, (1, 1, 1, 1))
    with pytest.raises(InputError, match=r"bias: expected float32\[2 or 1, 3 or 1, 5 or 1, 6 or 1"):
        session.run(feeds | {"bias": feeds["bias"][..., :5]})
    with pytest.raises(InputError, match="Give an array of rank 4; an axis of 1 serves all"):
        session.run(feeds | {"bias": feeds["bias"][0]})
    with pytest.raises(InputError, match=r"Add the axis of heads: query\[:, None\]"):
        session.run(feeds | {"query": feeds["query"][:, 0]})
    with pytest.raises(InputError, match="heads=3, as in query"):
        session.run(feeds | {"value": feeds["value"][:, :2], "key": feeds["key"][:, :2]})
    plain = session_of("dot", False)
    with pytest.raises(InputError, match="export the layer with heads=True"):
        plain.run({name: feeds[name] for name in ("query", "value", "key")})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bias": True, "schedule": "fused"}, "cannot do bias=True"),
        ({"heads": 1}, "heads must be True or False"),
        ({"bias": None}, "bias must be True or False"),
        ({"dims": {"heads": 2}}, "heads is a dim of files with heads=True only"),
        ({"bias": True, "dims": {"bias_heads": 2}}, "bias_heads is a dim of files with heads=True"),
        ({"bias": True, "dims": {"bias_Tq": 2, "Tq": 5}}, "bias_Tq must be 1 or equal to Tq=5"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Attention().to_onnx(**options)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_loaded_layer_writes_the_same_bytes(schedule: str, tmp_path: Any) -> None:
    layer, _ = layer_of("dot", True)
    path = layer.export(tmp_path / "a.onnx", heads=True, bias=True, schedule=schedule)
    again = Attention.load(path).export(tmp_path / "b.onnx")
    assert path.read_bytes() == again.read_bytes()


def test_a_file_inside_another_model() -> None:
    layer, weights = layer_of("dot", True)
    feeds = drawn(np.random.default_rng(0), (2, 3, 20, 20), True, (0, 1, 1, 1))
    wanted, _ = wanted_of(feeds, "dot", True, weights)
    for schedule in SCHEDULES:
        model = layer.to_onnx(heads=True, bias=True, masks="none", schedule=schedule)
        prefixed = compose.add_prefix(model, "own/")
        onnx.checker.check_model(prefixed, full_check=True)
        session = onnxruntime.InferenceSession(prefixed.SerializeToString())
        (output,) = session.run(None, {f"own/{name}": array for name, array in feeds.items()})
        np.testing.assert_allclose(output, wanted, rtol=1e-5, atol=1e-5)


def test_bodies_hold_the_constants_they_use() -> None:
    model = layer_of("dot", True)[0].to_onnx(heads=True, bias=True)
    bodies = [a.g for node in nodes_of(model.graph) for a in node.attribute if a.HasField("g")]
    assert len(bodies) > 4
    assert not any(body.initializer for body in bodies)

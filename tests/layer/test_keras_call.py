"""Promise: the habits of the Keras layer, without Keras."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_attn import AdditiveAttention, Attention, InputError
from onnx_attn.reference import attention

RNG = np.random.default_rng(0)
QUERY = RNG.standard_normal((2, 3, 4)).astype(np.float32)
VALUE = RNG.standard_normal((2, 5, 4)).astype(np.float32)
QUERY_MASK = np.array([[True, False, True], [True, True, False]])
VALUE_MASK = np.array([[True, True, False, False, False], [False, True, True, True, True]])


def close(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "mask",
    [
        None,
        [None, None],
        [QUERY_MASK, None],
        [None, VALUE_MASK],
        [QUERY_MASK, VALUE_MASK],
        [QUERY_MASK, VALUE_MASK, None],
        [None, None, np.zeros((2, 5), np.bool_)],
        [QUERY_MASK.tolist(), VALUE_MASK.tolist()],
    ],
    ids=repr,
)
def test_mask_lists(mask: list[Any] | None) -> None:
    query_mask, value_mask = (mask or [None, None])[:2]
    wanted, _ = attention(
        QUERY,
        VALUE,
        query_mask=None if query_mask is None else np.asarray(query_mask),
        value_mask=None if value_mask is None else np.asarray(value_mask),
    )
    close(Attention()([QUERY, VALUE], mask=mask), wanted)


def test_both_ways_to_say_causal() -> None:
    wanted, _ = attention(QUERY, VALUE, causal=True)
    close(Attention(causal=True)([QUERY, VALUE]), wanted)
    close(Attention()([QUERY, VALUE], use_causal_mask=True), wanted)
    close(Attention(causal=True)([QUERY, VALUE], use_causal_mask=True), wanted)
    layer = Attention()
    layer([QUERY, VALUE], use_causal_mask=True)
    close(layer([QUERY, VALUE]), attention(QUERY, VALUE)[0])


def test_floats_of_any_kind_are_cast_to_the_layers_dtype() -> None:
    wanted, _ = attention(QUERY, VALUE)
    for kind in (np.float64, np.float32, ">f4"):
        close(Attention()([QUERY.astype(kind), VALUE.astype(kind)]), wanted)
    close(Attention()([QUERY.tolist(), VALUE.tolist()]), wanted)
    half = Attention(dtype="float16")([QUERY, VALUE])
    assert half.dtype == np.float16
    brain = Attention(dtype="bfloat16")([QUERY, VALUE.astype(ml_dtypes.bfloat16)])
    assert brain.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(brain.astype(np.float32), wanted, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("leading", [(), (2,), (2, 3), (2, 1, 3), (0,), (2, 0)])
@pytest.mark.parametrize("causal", [False, True])
def test_any_rank_folds_its_leading_axes(leading: tuple[int, ...], causal: bool) -> None:
    query = RNG.standard_normal((*leading, 3, 4)).astype(np.float32)
    value = RNG.standard_normal((*leading, 5, 6)).astype(np.float32)
    key = RNG.standard_normal((*leading, 5, 4)).astype(np.float32)
    value_mask = RNG.random((*leading, 5)) < 0.7
    query_mask = RNG.random((*leading, 3)) < 0.7
    output, scores = Attention(causal=causal)(
        [query, value, key], mask=[query_mask, value_mask], return_attention_scores=True
    )
    count = int(np.prod(leading))
    wanted, weights = attention(
        query.reshape(count, 3, 4),
        value.reshape(count, 5, 6),
        key.reshape(count, 5, 4),
        query_mask=query_mask.reshape(count, 3),
        value_mask=value_mask.reshape(count, 5),
        causal=causal,
    )
    close(output, wanted.reshape(*leading, 3, 6))
    close(scores, weights.reshape(*leading, 3, 5))


@settings(max_examples=40, deadline=None)
@given(
    leading=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    ones=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=3, max_size=3),
)
def test_leading_axes_broadcast(leading: list[int], ones: list[tuple[bool, bool]]) -> None:
    tensors: list[np.ndarray] = []
    for (length, dim), which in zip(((3, 4), (5, 6), (5, 4)), ones, strict=True):
        lead = [1 if one else size for size, one in zip(leading, which, strict=False)]
        tensors.append(RNG.standard_normal((*lead, length, dim)).astype(np.float32))
    shape = np.broadcast_shapes(*(tensor.shape[:-2] for tensor in tensors))
    full = [np.broadcast_to(tensor, shape + tensor.shape[-2:]) for tensor in tensors]
    folded = [tensor.reshape(-1, *tensor.shape[-2:]) for tensor in full]
    wanted, _ = attention(*folded)
    close(Attention()(tensors), wanted.reshape(*shape, 3, 6))


def test_value_masks_of_keras_3_and_of_rank_4() -> None:
    close(
        Attention()([QUERY, VALUE], mask=[None, VALUE_MASK[:, None, :]]),
        attention(QUERY, VALUE, value_mask=VALUE_MASK)[0],
    )
    heads = np.stack([QUERY, QUERY], 1), np.stack([VALUE, VALUE], 1)  # [batch, heads, T, dim]
    mask = np.stack([VALUE_MASK, ~VALUE_MASK], 1)  # [batch, heads, Tv]
    output = Attention()(list(heads), mask=[None, mask])
    close(output[:, 0], attention(QUERY, VALUE, value_mask=VALUE_MASK)[0])
    close(output[:, 1], attention(QUERY, VALUE, value_mask=~VALUE_MASK)[0])


def test_compute_mask_and_output_shape() -> None:
    layer = Attention()
    assert layer.compute_mask([QUERY, VALUE]) is None
    assert layer.compute_mask([QUERY, VALUE], [None, VALUE_MASK]) is None
    np.testing.assert_array_equal(
        layer.compute_mask([QUERY, VALUE], [QUERY_MASK, VALUE_MASK]), QUERY_MASK
    )
    assert layer.compute_output_shape([(2, 3, 4), (2, 5, 6), (2, 5, 4)]) == (2, 3, 6)
    assert layer.compute_output_shape([(None, None, 4), (None, 5, 6)]) == (None, None, 6)


@pytest.mark.parametrize(
    ("config", "causal", "dtype"),
    [
        # Keras 2.7, tf_keras 2.21, Keras 3
        (
            {
                "name": "attention",
                "trainable": True,
                "dtype": "float32",
                "causal": True,
                "dropout": 0.25,
                "use_scale": True,
            },
            True,
            "float32",
        ),
        (
            {
                "name": "attention",
                "trainable": True,
                "dtype": {"class_name": "Policy", "config": {"name": "mixed_float16"}},
                "dropout": 0.25,
                "use_scale": True,
                "score_mode": "dot",
            },
            False,
            "mixed_float16",
        ),
        (
            {
                "name": "attention",
                "trainable": True,
                "dtype": {
                    "module": "keras",
                    "class_name": "DTypePolicy",
                    "config": {"name": "bfloat16"},
                    "registered_name": None,
                },
                "use_scale": True,
                "score_mode": "dot",
                "dropout": 0.25,
                "seed": 3,
            },
            False,
            "bfloat16",
        ),
    ],
)
def test_configs_of_three_generations(config: dict[str, Any], causal: bool, dtype: str) -> None:
    layer = Attention.from_config(config)
    ours = layer.get_config()
    assert (ours["causal"], ours["dtype"], ours["dropout"], ours["use_scale"], ours["name"]) == (
        causal,
        dtype,
        0.25,
        True,
        "attention",
    )
    assert Attention.from_config(ours).get_config() == ours
    with pytest.raises(InputError, match="heads"):
        Attention.from_config({**config, "heads": 2})
    additive = AdditiveAttention.from_config(config)
    assert AdditiveAttention.from_config(additive.get_config()).get_config()["causal"] == causal


def test_weights() -> None:
    assert Attention().get_weights() == []
    layer = Attention(use_scale=True, score_mode="concat", dtype="float16")
    assert [weight.item() for weight in layer.get_weights()] == [1.0, 1.0]
    layer.set_weights([-0.5, np.float64(3)])
    assert [weight.dtype.name for weight in layer.get_weights()] == ["float16", "float16"]
    wanted, _ = attention(QUERY, VALUE, score_mode="concat", scale=-0.5, concat_score_weight=3.0)
    np.testing.assert_allclose(layer([QUERY, VALUE]), wanted, rtol=5e-3, atol=5e-3)
    for weights in ([], [1.0], [1.0, 2.0, 3.0], [[1.0], 1.0], ["one", 1.0]):
        with pytest.raises(InputError):
            layer.set_weights(weights)
    assert [weight.item() for weight in layer.get_weights()] == [-0.5, 3.0]


def test_weights_may_change_between_calls() -> None:
    layer = Attention(use_scale=True)
    for scale in (1.0, -2.0, 0.0):
        layer.set_weights([scale])
        close(layer([QUERY, VALUE]), attention(QUERY, VALUE, scale=scale)[0])


def test_additive_scale_waits_for_dim_and_is_glorot_uniform() -> None:
    layer = AdditiveAttention(seed=1)
    assert layer.get_weights() == []
    layer([QUERY, VALUE])
    (scale,) = layer.get_weights()
    assert scale.shape == (4,)
    wide = AdditiveAttention(seed=2)
    wide.build(5000)
    (drawn,) = wide.get_weights()
    limit = np.sqrt(6 / 10000)
    assert np.abs(drawn).max() <= limit
    assert abs(drawn.std() - limit / np.sqrt(3)) < 0.03 * limit
    with pytest.raises(InputError, match="dim=4"):
        layer([np.ones((1, 2, 6), np.float32), np.ones((1, 2, 6), np.float32)])
    unscaled = AdditiveAttention(use_scale=False)
    close(unscaled([QUERY, VALUE]), attention(QUERY, VALUE, score_mode="additive")[0])


def test_layers_copy_and_pickle() -> None:
    layer = Attention(use_scale=True, causal=True)
    layer.set_weights([0.5])
    wanted = layer([QUERY, VALUE])
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert again.get_config() == layer.get_config()
        np.testing.assert_array_equal(again([QUERY, VALUE]), wanted)


@pytest.mark.parametrize(
    ("inputs", "mask", "words"),
    [
        (QUERY, None, "must be called on a list of inputs, namely"),
        ((QUERY, VALUE), None, "must be called on a list of inputs, namely"),
        ([QUERY], None, "accepts inputs list of length 2 or 3, namely"),
        ([QUERY] * 4, None, "accepts inputs list of length 2 or 3, namely"),
        ([QUERY, VALUE], QUERY_MASK, "mask must be a list, namely"),
        ([QUERY, VALUE], [QUERY_MASK], "length 2 or 3"),
        ([QUERY, VALUE], [QUERY_MASK] * 4, "length 2 or 3"),
        ([QUERY, VALUE], [None, VALUE_MASK.astype(int)], r"value_mask: .*astype\(bool\)"),
        ([QUERY, VALUE], [None, QUERY_MASK], "value_mask: expected"),
        ([QUERY, VALUE], [VALUE_MASK, None], "query_mask: expected"),
        ([QUERY, VALUE], [None, np.ones((3, 5), np.bool_)], "value_mask: expected"),
        ([QUERY.astype(int), VALUE], None, "query: expected floats"),
        ([QUERY, VALUE.astype(str)], None, "value: expected floats"),
        ([QUERY[0, 0], VALUE], None, "query: expected"),
        ([QUERY, VALUE[0]], None, "leading axes"),
        ([QUERY, VALUE[:1].repeat(3, 0)], None, "leading axes"),
        ([QUERY, VALUE[:, :, :3]], None, "same last axis"),
        ([QUERY, VALUE, VALUE[:, :4]], None, "same length"),
        ([QUERY, VALUE, np.ones((2, 5, 6), np.float32)], None, "swapped"),
    ],
)
def test_bad_calls(inputs: Any, mask: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Attention()(inputs, mask=mask)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": "half"}, "dropout"),
        ({"score_mode": "cosine"}, "Invalid value for argument score_mode"),
        ({"dtype": "int8"}, "dtype"),
        ({"dtype": object()}, "dtype"),
        ({"dtype": {"class_name": "DTypePolicy", "config": "float16"}}, "dtype"),
        ({"dtype": {"config": {"name": None}}}, "dtype"),
        ({"seed": 1.5}, "seed"),
        ({"use_scale": 1}, "use_scale"),
        ({"causal": None}, "causal"),
        ({"name": 3}, "name"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Attention(**arguments)

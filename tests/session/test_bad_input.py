"""What a user can get wrong in a call, and what each mistake is answered with.

Every message names the tensor, what was expected, what came, and the way out. Session first,
then the layer, which casts as Keras does and speaks Keras's words.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnx_attn import AdditiveAttention, Attention, AttentionSession, InputError, OnnxAttnError

QUERY = np.zeros((2, 3, 4), np.float32)
VALUE = np.zeros((2, 5, 6), np.float32)
KEY = np.zeros((2, 5, 4), np.float32)
QUERY_MASK = np.ones((2, 3), np.bool_)
VALUE_MASK = np.ones((2, 5), np.bool_)
GOOD = {
    "query": QUERY,
    "value": VALUE,
    "key": KEY,
    "query_mask": QUERY_MASK,
    "value_mask": VALUE_MASK,
}


def session_for(layer: Any = None, **options: Any) -> AttentionSession:
    model = (layer or Attention()).to_onnx(**options).SerializeToString()
    return AttentionSession(model, device="cpu", threads=1)


SESSION = session_for()
NO_KEY = session_for(key=False)
FIXED = session_for(dims={"batch": 1, "dim": 8})
SCALE_INPUT = session_for(Attention(use_scale=True, dropout=0.5), scale="input", training=True)
FLOAT16 = session_for(Attention(dtype="float16"))
FLOAT64 = session_for(Attention(dtype="float64"))


class Raises:
    """An object whose conversion to an array fails in its own way."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise RuntimeError("on another device")

    def __repr__(self) -> str:
        raise RuntimeError("no text either")


def changed(**tensors: Any) -> dict[str, Any]:
    return {**GOOD, **tensors}


def f32(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def mask(*shape: int) -> np.ndarray:
    return np.ones(shape, np.bool_)


CASES: dict[str, tuple[AttentionSession, dict[str, Any], list[str]]] = {
    "float64 into float32": (
        SESSION,
        changed(value=VALUE.astype(np.float64)),
        [
            "value: expected float32[batch, Tv, value_dim]; received float64[2, 5, 6]",
            "value.astype(np.float32)",
            "dtype='float64'",
        ],
    ),
    "float32 into float64": (FLOAT64, GOOD, ["query: expected float64", "dtype='float32'"]),
    "float32 into float16": (
        FLOAT16,
        GOOD,
        ["query: expected float16", "query.astype(np.float16)"],
    ),
    "integers": (
        SESSION,
        changed(query=QUERY.astype(np.int64)),
        ["query: expected float32[batch, Tq, dim]; received int64[2, 3, 4]", "query.astype("],
    ),
    "complex": (SESSION, changed(key=KEY.astype(np.complex64)), ["complex64", "array of numbers"]),
    "text": (SESSION, changed(key=np.full((2, 5, 4), "x")), ["<U1[2, 5, 4]", "array of numbers"]),
    "objects": (SESSION, changed(key=KEY.astype(object)), ["object[2, 5, 4]"]),
    "dates": (SESSION, changed(key=np.zeros((2, 5, 4), "M8[s]")), ["datetime64", "numbers"]),
    "structured": (SESSION, changed(key=np.zeros((2, 5, 4), "f4,f4")), ["array of numbers"]),
    "a list of floats": (
        SESSION,
        changed(query=QUERY.tolist()),
        ["received float64[2, 3, 4]", "np.asarray(query, np.float32)"],
    ),
    "a ragged list": (SESSION, changed(query=[[[1.0], [1.0, 2.0]]]), ["which is no array"]),
    "a number": (SESSION, changed(query=1.0), ["query: expected float32", "float64[]"]),
    "a string": (SESSION, changed(query="query"), ["query: expected float32"]),
    "a dict": (SESSION, changed(query={}), ["query: expected float32", "object[]"]),
    "what fails to convert": (
        SESSION,
        changed(query=Raises()),
        ["query: expected float32", "an object of type Raises, which is no array"],
    ),
    "a mask of floats": (
        SESSION,
        changed(value_mask=VALUE_MASK.astype(np.float32)),
        ["value_mask: expected bool", "received float32[2, 5]", "value_mask.astype(np.bool_)"],
    ),
    "a mask of integers": (
        SESSION,
        changed(query_mask=QUERY_MASK.astype(np.int32)),
        ["query_mask: expected bool", "query_mask.astype(np.bool_)"],
    ),
    "rank 2": (SESSION, changed(query=QUERY[0]), ["shape [3, 4] of rank 2", "query[None]"]),
    "rank 4": (SESSION, changed(query=QUERY[None]), ["of rank 4", "query.reshape(-1, *query."]),
    "rank 1": (SESSION, changed(query=QUERY[0, 0]), ["shape [4] of rank 1", "array of rank 3"]),
    "mask of rank 3": (
        SESSION,
        changed(value_mask=mask(2, 1, 5)),
        ["value_mask: expected bool", "value_mask[:, 0]"],
    ),
    "mask of rank 1": (SESSION, changed(value_mask=mask(5)), ["A mask is [batch, length]"]),
    "mask of rank 0": (SESSION, changed(value_mask=True), ["rank 0", "[[True]] means no mask"]),
    "mask too long": (
        SESSION,
        changed(value_mask=mask(2, 6)),
        ["value_mask: expected bool[2 or 1, 5 or 1], as value is [2, 5, 6]; received shape [2, 6]"],
    ),
    "mask batch": (
        SESSION,
        changed(query_mask=mask(3, 3)),
        ["query_mask: expected bool[2 or 1, 3"],
    ),
    "mask transposed": (SESSION, changed(value_mask=mask(5, 2)), ["give value_mask.T"]),
    "masks swapped": (
        SESSION,
        changed(query_mask=VALUE_MASK, value_mask=QUERY_MASK),
        ["It fits value: are query_mask and value_mask swapped?"],
    ),
    "empty mask": (SESSION, changed(value_mask=mask(2, 0)), ["received shape [2, 0]"]),
    "key and value swapped": (
        SESSION,
        changed(key=VALUE, value=KEY),
        ["with dim=4, as in query", "Are key and value swapped? The order is query, value, key"],
    ),
    "query and value swapped": (
        SESSION,
        {"query": f32(2, 5, 4), "value": f32(2, 3, 6), "key": f32(2, 5, 4)},
        ["Are query and value swapped? The order is query, value, key"],
    ),
    "dim": (SESSION, changed(key=f32(2, 5, 7)), ["query and key must have the same last axis"]),
    "dim of 0": (
        SESSION,
        {"query": f32(2, 3, 0), "value": f32(2, 5, 6), "key": f32(2, 5, 0)},
        ["query: expected float32[batch, Tq, dim]; received shape [2, 3, 0]", "must not be 0"],
    ),
    "dim without key": (
        NO_KEY,
        {"query": QUERY, "value": VALUE},
        ["value: expected float32[batch, Tv, dim] with dim=4", "the same last axis"],
    ),
    "length": (
        SESSION,
        changed(value=f32(2, 4, 6), value_mask=mask(1, 1)),
        ["key and value must have the same length: one value for each key"],
    ),
    "batch": (
        SESSION,
        changed(value=f32(3, 5, 6)),
        ["value: expected float32[batch, Tv, value_dim] with batch=2, as in query", "[3, 5, 6]"],
    ),
    "a batch of 1 is not repeated": (SESSION, changed(key=KEY[:1]), ["with batch=2, as in query"]),
    "fixed batch": (
        FIXED,
        {"query": f32(2, 3, 8), "value": f32(2, 5, 8)},
        ["query: expected float32[1, Tq, 8]; received shape [2, 3, 8]", "fixed at 1"],
    ),
    "fixed dim": (
        FIXED,
        {"query": f32(1, 3, 9), "value": f32(1, 5, 8)},
        ["with that dim fixed at 8", "free dims"],
    ),
    "huge and empty": (
        SESSION,
        changed(query=np.zeros((2, 0, 2**40), np.float32)),
        ["with dim=1099511627776, as in query"],
    ),
    "huge without memory of its own": (
        SESSION,
        changed(query=np.broadcast_to(np.float32(0), (2, 2**45, 4)), query_mask=mask(1, 1)),
        ["query: expected float32", "does not fit into memory"],
    ),
    "key into a file without key": (
        NO_KEY,
        {"query": QUERY, "value": KEY, "key": KEY},
        ["there is no input named 'key'; inputs of this file: query, value, query_mask"],
    ),
    "scale into a file with a constant scale": (SESSION, changed(scale=1.0), ["named 'scale'"]),
    "unknown name": (SESSION, changed(queries=QUERY), ["there is no input named 'queries'"]),
    "a name that is no text": (SESSION, {**GOOD, 3: QUERY}, ["there is no input named 3"]),
    "another unknown name that is None": (SESSION, changed(x=None), ["no input named 'x'"]),
    "no query": (
        SESSION,
        {"value": VALUE, "key": KEY},
        ["query is missing: expected query float32[batch, Tq, dim]; given: value, key"],
    ),
    "no value": (SESSION, {"query": QUERY, "key": KEY}, ["value is missing", "given: query, key"]),
    "nothing": (SESSION, {}, ["query is missing", "given: nothing"]),
    "key in place of value": (
        SESSION,
        {"query": QUERY, "keys": KEY},
        ["there is no input named 'keys'"],
    ),
    "scale as an array of one": (
        SCALE_INPUT,
        {"query": QUERY, "value": KEY, "scale": np.ones(1, np.float32)},
        ["scale: expected float32[]", "scale.item()"],
    ),
    "scale as text": (
        SCALE_INPUT,
        {"query": QUERY, "value": KEY, "scale": "one"},
        ["scale: expected float32[]"],
    ),
    "training as a number": (
        SCALE_INPUT,
        {"query": QUERY, "value": KEY, "training": 1},
        ["training: expected bool[]; received 1. Give True or False"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_session_answers_with_tensor_expectation_and_fix(case: str) -> None:
    session, feeds, words = CASES[case]
    with pytest.raises(InputError) as raised:
        session.run(feeds)
    for word in words:
        assert word in str(raised.value)
    assert len(str(raised.value)) < 600
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("feeds", [None, 3, [QUERY, VALUE], "query", QUERY])
def test_feeds_that_are_no_mapping(feeds: Any) -> None:
    with pytest.raises(InputError, match=r"feeds must be a dict of arrays by name"):
        SESSION.run(feeds)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (["scores"], "there is no output named 'scores'; outputs of this file: output"),
        ("attention_scores", "no output named 'attention_scores'"),
        ([], "outputs is empty; outputs of this file: output"),
        ([3], "3 is no name"),
        ([["output"]], "is no name"),
        (3, "outputs must be a list of names"),
    ],
)
def test_outputs_that_are_not_there(outputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        SESSION.run(GOOD, outputs)


def test_too_much_memory_is_said_as_such() -> None:
    # 2**40 scores, 4 TiB, from two small arrays.
    query = np.zeros((1, 2**20, 1), np.float32)
    session = session_for(schedule="dense")
    with pytest.raises(OnnxAttnError, match="needs more memory than there is on cpu") as raised:
        session(query, query)
    assert raised.value.__cause__ is not None


def test_the_runtimes_error_is_chained() -> None:
    session = session_for(schedule="dense")
    # A shape that nobody has checked, as if the checks had a hole.
    session._seen.add(((2, 3, 4), (2, 5, 6), (2, 4, 4), (1, 1), (1, 1)))
    with pytest.raises(OnnxAttnError, match="ONNX Runtime failed on this call, on cpu") as raised:
        session(QUERY, VALUE, KEY[:, :4])
    assert type(raised.value.__cause__).__module__.startswith("onnxruntime")
    assert "key_and_value_must_have_the_same_length" in str(raised.value)


def test_one_bad_call_leaves_the_session_whole() -> None:
    wanted = SESSION(QUERY + 1, VALUE + 2, KEY)
    for _, feeds, _ in CASES.values():
        with pytest.raises(InputError):
            SESSION.run({**feeds, "nobody": 1})
    np.testing.assert_array_equal(SESSION(QUERY + 1, VALUE + 2, KEY), wanted)


KERAS_WORDS: list[tuple[Any, dict[str, Any], str]] = [
    (
        QUERY,
        {},
        "Attention layer must be called on a list of inputs, namely [query, value] or "
        "[query, value, key].",
    ),
    ([QUERY], {}, "Attention layer accepts inputs list of length 2 or 3"),
    ([QUERY] * 4, {}, "Attention layer accepts inputs list of length 2 or 3"),
    (
        [QUERY, KEY],
        {"mask": VALUE_MASK},
        "Attention layer mask must be a list, namely [query_mask, value_mask].",
    ),
    ([QUERY, KEY], {"mask": [QUERY_MASK]}, "Attention layer mask must be a list of length 2 or 3"),
    ([QUERY, VALUE], {}, "value"),
    ([QUERY, KEY.astype(np.int32)], {}, "value: expected floats; received int32[2, 5, 4]"),
    ([QUERY, None], {}, "value: expected"),
    ([QUERY, "value"], {}, "value: expected"),
    ([QUERY, Raises()], {}, "value: expected"),
    ([QUERY, [[1.0], [1.0, 2.0]]], {}, "value: expected"),
    ([QUERY[0, 0], KEY], {}, "query: expected"),
    ([QUERY, KEY[:, :, :3]], {}, "the same last axis"),
    ([QUERY, VALUE, KEY[:, :4]], {}, "the same length"),
    ([QUERY, f32(3, 5, 4)], {}, "leading axes (batch)"),
    ([QUERY, KEY], {"mask": [None, mask(2, 4)]}, "value_mask: expected bool[2, 5]"),
    ([QUERY, KEY], {"mask": [None, mask(3, 5)]}, "value_mask: expected bool[2, 5]"),
    ([QUERY, KEY], {"mask": [None, np.ones((2, 5))]}, "value_mask.astype(bool)"),
    ([QUERY, KEY], {"mask": [[[True], [True, False]], None]}, "query_mask: expected"),
    ([QUERY, KEY], {"mask": [Raises(), None]}, "query_mask: expected"),
    ([QUERY, np.ma.masked_array(KEY, KEY > 0)], {}, "masked array"),
    ([QUERY, KEY], {"mask": [None, np.ma.masked_array(VALUE_MASK, ~VALUE_MASK)]}, "masked array"),
]


@pytest.mark.parametrize("number", range(len(KERAS_WORDS)))
def test_layer_answers_in_keras_words(number: int) -> None:
    inputs, arguments, words = KERAS_WORDS[number]
    with pytest.raises(InputError) as raised:
        Attention()(inputs, **arguments)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dropout": -0.1}, "0 <= dropout < 1"),
        ({"dropout": 1.0}, "0 <= dropout < 1"),
        ({"dropout": float("nan")}, "0 <= dropout < 1"),
        ({"dropout": "half"}, "0 <= dropout < 1"),
        ({"score_mode": "cosine"}, "Invalid value for argument score_mode"),
        ({"score_mode": None}, "Invalid value for argument score_mode"),
        ({"dtype": "int32"}, "dtype must be one of"),
        ({"dtype": object()}, "dtype must be one of"),
        ({"use_scale": 1}, "use_scale must be True or False"),
        ({"causal": "yes"}, "causal must be True or False"),
        ({"seed": 1.5}, "seed must be an integer or None"),
        ({"name": 3}, "name must be a string or None"),
    ],
)
def test_arguments_of_the_layer(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        Attention(**arguments)


@pytest.mark.parametrize(
    ("layer", "weights", "words"),
    [
        (Attention(use_scale=True), [], "this layer has 1 weights (scale); received 0"),
        (Attention(), [1.0], "this layer has 0 weights (none); received 1"),
        (Attention(use_scale=True), ["x"], "scale: expected a scalar of numbers"),
        (Attention(use_scale=True), [[1.0, 2.0]], "scale: expected a scalar of numbers"),
        (Attention(use_scale=True), [None], "scale: expected a scalar of numbers"),
        (AdditiveAttention(), [1.0], "scale: expected a vector [dim] of numbers"),
        (Attention(use_scale=True), 3, "set_weights"),
    ],
)
def test_weights_that_do_not_fit(layer: Any, weights: Any, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        layer.set_weights(weights)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask": "both"}, "there is no export option 'mask'; options: key, masks"),
        ({"masks": "all"}, "masks must be one of 'both', 'value', 'query', 'none'"),
        ({"inputs": "some"}, "inputs must be one of"),
        ({"scale": "input"}, "scale='input' needs a layer with a weight"),
        ({"training": True}, "this layer has dropout=0.0"),
        ({"opset": 16}, "opset must be an integer from 17 to 21"),
        ({"opset": "17"}, "opset must be"),
        ({"schedule": "fast"}, "schedule must be one of"),
        ({"dims": {"batch": 0}}, "dims: batch must be a positive integer"),
        ({"dims": {"depth": 2}}, "there is no dim 'depth'"),
        ({"dims": [1]}, "dims must be a dict"),
        ({"dims": {"Tv": 3, "value_mask_Tv": 2}}, "value_mask_Tv must be 1 or equal to Tv=3"),
        ({"key": False, "dims": {"dim": 3, "value_dim": 4}}, "with key=False the value is the key"),
    ],
)
def test_export_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        Attention().to_onnx(**options)


def test_an_empty_ort_value_is_refused() -> None:
    value = onnxruntime.OrtValue.ortvalue_from_numpy(QUERY.astype(np.int64))
    with pytest.raises(InputError, match=r"query: expected float32.*OrtValue of tensor\(int64\)"):
        SESSION.run(changed(query=value))

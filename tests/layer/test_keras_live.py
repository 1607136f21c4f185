"""The real Keras layers beside ours: the same configuration, tensors and masks, the same numbers.

Run with `pytest -m keras` in an environment with the extra test-keras;
ONNX_ATTN_KERAS_EXAMPLES says how many calls are drawn. Asked for without Keras, these tests fail.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnx_attn import AdditiveAttention, Attention, InputError
from onnx_attn.configuration import numpy_dtype
from onnx_attn.keras import from_layer, load_layers
from strategies import TOLERANCE

pytestmark = [
    pytest.mark.keras,
    # TensorFlow's tensors beside NumPy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    # Keras on a softmax over a single key
    pytest.mark.filterwarnings("ignore:(?s).*You are using a softmax over axis:UserWarning"),
]
EXAMPLES = int(os.environ.get("ONNX_ATTN_KERAS_EXAMPLES", "50"))
SETTINGS = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
CLASSES: dict[str, Any] = {"Attention": Attention, "AdditiveAttention": AdditiveAttention}


@pytest.fixture(scope="session")
def keras() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TensorFlow's own imports
        import keras

        keras.layers.Attention()
    return keras


@dataclass(frozen=True)
class Drawn:
    """A configuration and a call; arrays by name, None where not given."""

    kind: str
    arguments: dict[str, Any]
    dtype: str
    weights: list[np.ndarray]
    inputs: list[np.ndarray]
    mask: list[np.ndarray | None] | None
    causal: bool


@st.composite
def calls(draw: Any) -> Drawn:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["Attention", "Attention", "AdditiveAttention"]))
    dtype = draw(
        st.sampled_from(
            ["float32"] * 4 + ["float64", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"]
        )
    )
    arguments: dict[str, Any] = {"use_scale": draw(st.booleans())}
    if kind == "Attention":
        arguments["score_mode"] = draw(st.sampled_from(["dot", "concat"]))
    wide = dtype in ("float32", "float64")
    # In 16 bit Keras masks and rounds in 16 bit: there only small scores and visible keys compare.
    smallest, scale = (0, 2.0) if wide else (1, 0.5)
    leading = draw(st.sampled_from([(1,), (2,), (3,), (2, 3)]))
    Tq, Tv = draw(st.integers(0, 6)), draw(st.integers(smallest, 6))
    dim = draw(st.integers(1, 5))
    key = draw(st.booleans())
    value_dim = draw(st.integers(1, 5)) if key else dim

    def tensor(length: int, features: int) -> np.ndarray:
        return rng.uniform(-scale, scale, (*leading, length, features)).astype(
            numpy_dtype(dtype.removeprefix("mixed_"))
        )

    inputs = [tensor(Tq, dim), tensor(Tv, value_dim)] + ([tensor(Tv, dim)] if key else [])
    causal = draw(st.booleans())
    mask: list[np.ndarray | None] | None = None
    if draw(st.booleans()):
        value_mask = rng.random((*leading, Tv)) < draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
        if not wide:
            value_mask[..., 0] = True
        # Keras takes a value mask of rank 4 tensors only beside the causal one.
        takes_value_mask = len(leading) == 1 or causal
        mask = [
            rng.random((*leading, Tq)) < 0.6 if draw(st.booleans()) else None,
            value_mask if takes_value_mask and draw(st.booleans()) else None,
        ]
    shapes: list[tuple[int, ...]] = []
    if arguments["use_scale"]:
        shapes.append((dim,) if kind == "AdditiveAttention" else ())
    if arguments.get("score_mode") == "concat":
        shapes.append(())
    weights = [np.asarray(rng.uniform(-1.5, 1.5, shape), np.float32) for shape in shapes]
    return Drawn(kind, arguments, dtype, weights, inputs, mask, causal)


def real_layer(keras: Any, drawn: Drawn) -> Any:
    layer = getattr(keras.layers, drawn.kind)(dtype=drawn.dtype, name="att", **drawn.arguments)
    shapes = [tensor.shape for tensor in drawn.inputs]
    layer.build(shapes)
    layer.set_weights(drawn.weights)
    return layer


def as_numpy(keras: Any, tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def compare(got: np.ndarray, wanted: np.ndarray, dtype: str) -> None:
    assert got.dtype == wanted.dtype
    tolerance = TOLERANCE[dtype.removeprefix("mixed_")]
    np.testing.assert_allclose(got.astype("f8"), wanted.astype("f8"), **tolerance)


@settings(max_examples=EXAMPLES, **SETTINGS)
@given(drawn=calls())
def test_the_same_numbers(keras: Any, drawn: Drawn) -> None:
    real = real_layer(keras, drawn)
    ours = from_layer(real)
    mask = drawn.mask and [
        None if entry is None else keras.ops.convert_to_tensor(entry) for entry in drawn.mask
    ]
    tensors = [keras.ops.convert_to_tensor(tensor) for tensor in drawn.inputs]
    wanted, wanted_scores = real(
        tensors, mask=mask, return_attention_scores=True, use_causal_mask=drawn.causal
    )
    output, scores = ours(
        drawn.inputs,
        mask=drawn.mask,
        return_attention_scores=True,
        use_causal_mask=drawn.causal,
    )
    compare(output, as_numpy(keras, wanted), drawn.dtype)
    compare(scores, as_numpy(keras, wanted_scores), drawn.dtype)
    # The other way to say causal, and a layer made from the configuration alone.
    config = {**real.get_config(), "causal": drawn.causal}
    again = CLASSES[drawn.kind].from_config(config)
    again.set_weights(real.get_weights())
    np.testing.assert_array_equal(again(drawn.inputs, mask=drawn.mask), output)
    shapes = [tensor.shape for tensor in drawn.inputs]
    assert ours.compute_output_shape(shapes) == tuple(real.compute_output_shape(shapes))
    ours_mask, real_mask = (
        ours.compute_mask(drawn.inputs, drawn.mask),
        real.compute_mask(tensors, mask),
    )
    assert (ours_mask is None) == (real_mask is None)
    if real_mask is not None:
        np.testing.assert_array_equal(ours_mask, as_numpy(keras, real_mask))


@pytest.mark.parametrize("leading", [(), (1,)])
def test_shapes_that_keras_broadcasts(keras: Any, leading: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    query = rng.normal(size=(*leading, 3, 4)).astype("f4")
    value = rng.normal(size=(5, 2, 4)[1 - len(leading) :]).astype("f4")
    wanted = keras.layers.Attention()([query, value])
    np.testing.assert_allclose(Attention()([query, value]), wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("inputs", [2, [1], [1, 2, 3, 4]])
def test_the_words_of_a_refusal(keras: Any, inputs: Any) -> None:
    array = np.zeros((1, 2, 3), "f4")
    given_inputs = array if inputs == 2 else [array] * len(inputs)
    with pytest.raises(ValueError, match="Attention layer") as real:
        keras.layers.Attention()(given_inputs)
    with pytest.raises(InputError, match="Attention layer") as ours:
        Attention()(given_inputs)  # type: ignore[arg-type]
    kept = str(ours.value).split(". Received")[0]
    assert kept in str(real.value)


@pytest.mark.parametrize("kind", ["Attention", "AdditiveAttention"])
def test_training_drops_alike(keras: Any, kind: str) -> None:
    rng = np.random.default_rng(3)
    rate = 0.4
    query = rng.normal(size=(4, 64, 8)).astype("f4")
    value = rng.normal(size=(4, 64, 8)).astype("f4")
    real = getattr(keras.layers, kind)(dropout=rate, seed=5)
    real.build([query.shape, value.shape])
    ours = from_layer(real)
    _, undropped = ours([query, value], return_attention_scores=True)
    spread = 5 * np.sqrt(rate * (1 - rate) / undropped.size)  # five standard deviations
    for layer in (real, ours):
        output, scores = layer([query, value], training=True, return_attention_scores=True)
        output, scores = as_numpy(keras, output), as_numpy(keras, scores)
        kept = scores != 0
        assert abs(kept.mean() - (1 - rate)) < spread
        np.testing.assert_allclose(scores[kept], undropped[kept] / (1 - rate), rtol=1e-5)
        np.testing.assert_allclose(output, scores @ value, rtol=1e-4, atol=1e-5)


def test_layers_that_from_layer_refuses(keras: Any) -> None:
    class Own(keras.layers.Attention):
        pass

    for layer in (Own(), keras.layers.Dense(3), Attention()):
        with pytest.raises(InputError, match=r"received .*\.(Own|Dense|Attention)$"):
            from_layer(layer)
    for layer in (keras.layers.Attention(use_scale=True), keras.layers.AdditiveAttention()):
        with pytest.raises(InputError, match="call it in Keras first"):
            from_layer(layer)


# -- saving, drawn -----------------------------------------------------------------------------

KINDS = st.sampled_from(
    [
        ("Attention", {}),
        ("Attention", {"use_scale": True}),
        ("Attention", {"score_mode": "concat"}),
        ("Attention", {"score_mode": "concat", "use_scale": True, "dropout": 0.5}),
        ("AdditiveAttention", {}),
        ("AdditiveAttention", {"use_scale": False}),
        ("Dense", {"units": 4}),
    ]
)
# A model is a list of layers and models.
MODELS = st.recursive(
    st.lists(KINDS, min_size=1, max_size=4),
    lambda inner: st.lists(KINDS | inner, min_size=1, max_size=3),
    max_leaves=8,
)


def build(keras: Any, plan: list[Any], name: str, path: str, found: dict[str, Any]) -> Any:
    tokens = keras.Input((None, 4))
    x = tokens
    for index, part in enumerate(plan):
        if isinstance(part, list):
            x = build(keras, part, f"model{index}", f"{path}model{index}/", found)(x)
            continue
        kind, arguments = part
        layer = getattr(keras.layers, kind)(name=f"layer{index}", **arguments)
        if kind == "Dense":
            x = layer(x)
            continue
        found[f"{path}layer{index}"] = layer
        x = layer([x, tokens], use_causal_mask=bool(index % 2))
    return keras.Model(tokens, x, name=name)


@settings(max_examples=max(10, EXAMPLES // 5), **SETTINGS)
@given(plan=MODELS, extension=st.sampled_from([".keras", ".weights.h5"]))
def test_what_keras_saves_is_found_again(
    keras: Any, tmp_path: Path, plan: list[Any], extension: str
) -> None:
    found: dict[str, Any] = {}
    model = build(keras, plan, "model", "", found)
    rng = np.random.default_rng(len(found))
    for layer in found.values():
        layer.set_weights([rng.normal(size=weight.shape) for weight in layer.get_weights()])
    path = tmp_path / f"model{extension}"
    if extension == ".keras":
        model.save(path)
        config = None
    else:
        model.save_weights(path)
        config = model.get_config()
    if not found:
        return
    layers = load_layers(path, config=config)
    assert list(layers) == list(found)
    for name, layer in layers.items():
        for weight, wanted in zip(layer.get_weights(), found[name].get_weights(), strict=True):
            np.testing.assert_array_equal(weight, wanted)
        index = int(name.rpartition("layer")[2])
        assert layer.get_config()["causal"] == bool(index % 2)
        assert layer.export_defaults["masks"] == "none"

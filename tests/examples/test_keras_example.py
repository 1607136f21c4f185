"""Drop-in: the attention of a trained Keras model replaced by our file gives its predictions."""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_attn import AttentionSession
from onnx_attn.keras import export_from_keras, load_layers

EXAMPLE = Path(__file__).parents[2] / "examples" / "keras"
SAVED = EXAMPLE / "saved"


def test_the_saved_models_attention_without_keras(tmp_path: Path) -> None:
    file = export_from_keras(str(SAVED / "similarity.keras"), tmp_path / "attention.onnx")
    session = AttentionSession(file, device="cpu")
    with np.load(SAVED / "attention_io.npz") as stored:
        arrays = dict(stored)
    wanted = arrays.pop("output")
    assert list(session.inputs) == list(arrays)
    output = session.run(arrays)["output"]
    np.testing.assert_allclose(output, wanted, rtol=1e-5, atol=2e-6)
    # The masks and the trained scale are part of it.
    unmasked = session(arrays["query"], arrays["value"])
    assert np.abs(unmasked - wanted).max() > 1e-2
    layer = load_layers(SAVED / "similarity.keras")["attention"]
    assert abs(layer.get_weights()[0] - 1) > 0.1


def script(name: str) -> Any:
    """A script of the example as a module; imports TensorFlow, whose own warnings are ignored."""
    spec = importlib.util.spec_from_file_location(f"keras_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    example: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


@pytest.mark.keras
def test_a_whole_model_rewritten_predicts_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = script("rewrite")
        difference = example.run(tmp_path, keep_all=True)
    assert difference < example.LIMIT
    printed = capsys.readouterr().out
    assert len(re.findall("attention with mask by .*: rewritten", printed)) == 3
    tokens, _ = example.make_sequences(3, 333, seed=9)
    before, after = (
        example.predict(tmp_path / name, tokens) for name in ("model.onnx", "faster.onnx")
    )
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-6)
    other = example.predict(tmp_path / "faster.onnx", tokens[:, ::-1].copy())
    assert np.abs(other - after).max() > 1e-3


@pytest.mark.keras
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_same_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = script("drop_in")
        difference = example.run(tmp_path)
    assert difference < 1e-5
    printed = capsys.readouterr().out
    accuracy = float(printed.split("trained: ")[1].split("%")[0])
    assert accuracy > 90
    assert (tmp_path / "attention.onnx").exists()
    model = example.keras.saving.load_model(tmp_path / "similarity.keras")
    questions, passages, _ = example.make_pairs(16, seed=9)
    given = example.before_attention(model, questions, passages)
    session = AttentionSession(tmp_path / "attention.onnx", device="cpu")
    answers = example.after_attention(model, given, session.run(given)["output"])
    np.testing.assert_allclose(
        answers, model.predict([questions, passages], verbose=0), rtol=1e-5, atol=1e-6
    )
    wrong = example.after_attention(model, given, np.zeros_like(given["query"]))
    assert np.abs(wrong - answers).max() > 1e-2

"""Edges of a session's calls, each seen by a user."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnx_attn import Attention, AttentionSession, InputError
from onnx_attn.reference import attention

QUERY = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 3, 4)


def opened(layer: Attention, **options: object) -> AttentionSession:
    return AttentionSession(layer.to_onnx(**options).SerializeToString(), device="cpu")  # pyright: ignore


def test_bfloat16_without_key_and_with_a_fixed_dim() -> None:
    session = opened(Attention(dtype="bfloat16"), key=False, dims={"dim": 4})
    query = QUERY.astype(ml_dtypes.bfloat16)
    output = session(query, query)
    wanted, _ = attention(query, query)
    np.testing.assert_allclose(output.astype(np.float64), wanted, atol=1.6e-2)


def test_concat_score_weight_is_an_argument() -> None:
    session = opened(Attention(score_mode="concat"), scale="input", masks="none")
    wanted, _ = attention(QUERY, QUERY, score_mode="concat", concat_score_weight=2.5)
    got = session(QUERY, QUERY, concat_score_weight=2.5)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-6)


def test_none_is_not_called_given() -> None:
    with pytest.raises(InputError, match=r"query is None: expected .*; given: value"):
        opened(Attention()).run({"query": None, "value": QUERY})


class Tensor:
    """As torch's with gradients: NumPy gets a RuntimeError from it."""

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


class BooleanArray:
    """As pandas' nullable booleans: NumPy gets objects from it."""

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        return np.array([[True, False, None]], object)


def test_tensors_of_other_libraries_are_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "__module__", "torch")
    monkeypatch.setattr(BooleanArray, "__module__", "pandas.arrays")
    session = opened(Attention())
    with pytest.raises(InputError, match=r"Give query\.detach\(\)\.cpu\(\)\.numpy\(\)"):
        session(Tensor(), QUERY)
    with pytest.raises(InputError, match=r"value_mask\.to_numpy\('bool', na_value=False\)"):
        session(QUERY, QUERY, value_mask=BooleanArray())


def test_the_doc_string_says_what_a_scalar_is() -> None:
    text = Attention(use_scale=True).to_onnx(scale="input").doc_string
    assert "scale: a tensor of rank 0" in text

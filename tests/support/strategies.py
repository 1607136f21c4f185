"""Hypothesis strategies: layers, tensors, masks and export options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from onnx_attn.configuration import numpy_dtype
from onnx_attn.verify.vectors import TOLERANCES

TOLERANCE = {dtype: {"rtol": t.rtol, "atol": t.atol} for dtype, t in TOLERANCES.items()}


@dataclass(frozen=True)
class Case:
    """Tensors of one call, masks None where not given."""

    query: np.ndarray
    value: np.ndarray
    key: np.ndarray
    query_mask: np.ndarray | None
    value_mask: np.ndarray | None

    def feeds(self) -> dict[str, Any]:
        """The tensors that are there, by name."""
        return {name: array for name, array in vars(self).items() if array is not None}


def draw_mask(draw: Any, batch: int, length: int, rng: np.random.Generator) -> np.ndarray | None:
    kind = draw(
        st.sampled_from(
            ["none", "one", "random", "ragged", "front", "hidden", "row", "column", "all"]
        )
    )
    if kind == "none":
        return None
    if kind == "one":
        return np.array([[True]])
    if kind == "hidden":
        return np.zeros((batch, length), np.bool_)
    if kind == "all":
        return np.ones((batch, length), np.bool_)
    lengths = rng.integers(0, length + 1, (batch, 1))
    if kind == "ragged":
        return np.arange(length)[None] < lengths
    if kind == "front":
        return np.arange(length)[None] >= lengths
    shape = {"row": (1, length), "column": (batch, 1)}.get(kind, (batch, length))
    return rng.random(shape) < 0.6


@st.composite
def cases(draw: Any, dtype: str = "float32", largest: int = 9, dims: int = 9) -> Case:
    """Shapes with 0 and 1 in them, half of them self-attention's; every mask; small scores.

    Scores stay below 32, so that a fully masked float32 row has one right answer.
    """
    sizes = st.one_of(st.sampled_from([0, 1]), st.integers(1, largest))
    batch, query_length = draw(sizes), draw(sizes)
    value_length = query_length if draw(st.booleans()) else draw(sizes)
    dim, value_dim = draw(st.integers(1, dims)), draw(st.integers(1, dims))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = numpy_dtype(dtype)

    def floats(*shape: int) -> np.ndarray:
        return rng.uniform(-1.5, 1.5, shape).astype(kind)

    return Case(
        query=floats(batch, query_length, dim),
        value=floats(batch, value_length, value_dim),
        key=floats(batch, value_length, dim),
        query_mask=draw_mask(draw, batch, query_length, rng),
        value_mask=draw_mask(draw, batch, value_length, rng),
    )

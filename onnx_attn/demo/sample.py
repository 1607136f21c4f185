"""The sample that ships with the package: sentence pairs and the trained embeddings of their words.

`examples/text_similarity/` says how it was made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import Array


@dataclass(frozen=True)
class Sample:
    """Sentence pairs as one padded batch.

    Attributes:
        query_text, value_text: the sentences, one of each a pair.
        query_tokens, value_tokens: their word pieces, a list a sentence, all of one length
            (Tq, Tv); the short ones end in `[PAD]`.
        query, value: float32 `[pairs, Tq, dim]` and `[pairs, Tv, dim]`, the trained embedding of
            each token; padding holds the trained embedding of `[PAD]`, not zeros.
        query_mask, value_mask: bool `[pairs, Tq]` and `[pairs, Tv]`, False on padding.
        about: source and licence of the sentences and the embeddings.
    """

    query_text: list[str]
    value_text: list[str]
    query_tokens: list[list[str]]
    value_tokens: list[list[str]]
    query: npt.NDArray[np.float32]
    value: npt.NDArray[np.float32]
    query_mask: npt.NDArray[np.bool_]
    value_mask: npt.NDArray[np.bool_]
    about: dict[str, Any]


def load_sample() -> Sample:
    """The sample that ships with the package."""
    resource = files("onnx_attn") / "data" / "text_similarity.npz"
    with resource.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays: dict[str, Array] = dict(archive)
    query_ids, value_ids = arrays["query_ids"], arrays["value_ids"]
    return Sample(
        query_text=arrays["query_text"].tolist(),
        value_text=arrays["value_text"].tolist(),
        query_tokens=arrays["tokens"][query_ids].tolist(),
        value_tokens=arrays["tokens"][value_ids].tolist(),
        query=arrays["embeddings"][query_ids],  # [pairs, Tq, dim]
        value=arrays["embeddings"][value_ids],  # [pairs, Tv, dim]
        query_mask=query_ids != 0,
        value_mask=value_ids != 0,
        about=json.loads(arrays["about"].item()),
    )


def real(tokens: list[str], mask: Array) -> list[str]:
    """The tokens that are no padding, by `mask` bool `[len(tokens)]`."""
    return [token for token, shown in zip(tokens, mask, strict=True) if shown]

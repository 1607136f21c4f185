"""Who looks at whom: attention scores as matches between words, and how alike two sentences are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import Array

# A match is clear when it takes more than all other words together.
CLEAR = 0.5


@dataclass(frozen=True)
class Match:
    """The value token that a query token looks at most, and with what weight."""

    query: str
    value: str
    weight: float


def sentence_similarity(query: Array, output: Array, query_mask: Array) -> npt.NDArray[np.float64]:
    """How close each word is, on average, to what it found in the other sentence.

    The mean over the words of a query of the cosine between its embedding and its row of the
    output, as float64 `[batch]`, 1 where every word found itself. `query` and `output` are
    `[batch, Tq, dim]`, `query_mask` is `[batch, Tq]`.
    """
    query, output = query.astype(np.float64), output.astype(np.float64)
    norms = np.linalg.norm(query, axis=-1) * np.linalg.norm(output, axis=-1)  # [batch, Tq]
    cosine = np.divide((query * output).sum(-1), norms, out=np.zeros_like(norms), where=norms > 0)
    return (cosine * query_mask).sum(-1) / query_mask.sum(-1)


def matches(scores: Array, query_tokens: list[str], value_tokens: list[str]) -> list[Match]:
    """For each query token the value token with the largest of `scores` `[Tq, Tv]`."""
    return [
        Match(token, value_tokens[int(row.argmax())], float(row.max()))
        for token, row in zip(query_tokens, scores, strict=True)
    ]


def clear_matches(found: list[Match]) -> list[Match]:
    """The different words that clearly found each other, the clearest first."""
    clear = {
        match
        for match in found
        # "on" finding "on" is no news, and the rest of a split word ("##rs") is no word.
        if match.weight > CLEAR and match.query != match.value and match.query[:2] != "##"
    }
    return sorted(clear, key=lambda match: (-match.weight, match.query))

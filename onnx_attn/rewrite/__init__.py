"""Anybody's ONNX model with walks over blocks in the place of its attention.

`rewrite_model` finds the attention of a model at its Softmax nodes, replaces it by operators of
the standard that keep no score matrix, proves that the outputs are the same and keeps what gains.
docs/rewrite.md says what is found, what is promised and what it costs.
"""

from __future__ import annotations

from .proof import Proof
from .report import Result, SiteReport
from .rewriting import rewrite_model

__all__ = ["Proof", "Result", "SiteReport", "rewrite_model"]

"""The Keras-shaped layer above graph, file and session."""

from .attention import AdditiveAttention, Attention

__all__ = ["AdditiveAttention", "Attention"]

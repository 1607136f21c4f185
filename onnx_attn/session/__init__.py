"""A file in ONNX Runtime: arrays in, arrays out."""

from .session import AttentionSession

__all__ = ["AttentionSession"]

"""The errors this package raises. All of them are `OnnxAttnError`s."""

from __future__ import annotations


class OnnxAttnError(Exception):
    """Root of every error raised on purpose by onnx_attn."""


class InputError(OnnxAttnError, ValueError):
    """An argument or a tensor does not fit: says which, what was expected, what came, the fix."""


class ModelError(OnnxAttnError):
    """A file is missing, broken, not written by onnx_attn, or newer than this package.

    Model files above all; also any other file that the package cannot read or write.
    """


class DeviceError(OnnxAttnError):
    """The device asked for is not there: says what is missing and how to get it."""

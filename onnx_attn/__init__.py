"""tf.keras.layers.Attention as portable ONNX files, run by ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import DeviceError, InputError, ModelError, OnnxAttnError
from .version import __version__

if TYPE_CHECKING:
    from .layer.attention import AdditiveAttention, Attention
    from .session.session import AttentionSession

__all__ = [
    "AdditiveAttention",
    "Attention",
    "AttentionSession",
    "DeviceError",
    "InputError",
    "ModelError",
    "OnnxAttnError",
    "__version__",
]

_HOMES = {"Attention": ".layer", "AdditiveAttention": ".layer", "AttentionSession": ".session"}


def __getattr__(name: str) -> Any:
    # Layers bring onnx and onnxscript, 0.7 s that running a file must not pay.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""Runtimes that `onnx-attn verify` can ask, by name."""

from __future__ import annotations

from .in_process import OnnxRuntime, Reference
from .javascript import Browser, Node, Web
from .languages import C, Cpp, Go, Java, Rust
from .python import OldestOnnxRuntime, OpenVino, Tract
from .runtime import Runtime

__all__ = ["RUNTIMES"]

RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        OnnxRuntime(),
        OldestOnnxRuntime(),
        Reference(),
        OpenVino(),
        Node(),
        Web(),
        Browser(),
        C(),
        Cpp(),
        Java(),
        Rust(),
        Go(),
        Tract(),
    )
}

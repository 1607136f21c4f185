"""The command line, `onnx-attn`: one module per command."""

from __future__ import annotations

import sys

from .app import app

__all__ = ["app", "main"]


def main() -> None:
    """Run `onnx-attn` with the arguments of the process."""
    from . import export, inspect, run  # noqa: F401  each adds its command to `app`

    sys.exit(app())

"""The command line, `onnx-attn`: one module per command."""

from __future__ import annotations

import sys

import typer

__all__ = ["load_commands", "main"]


def load_commands() -> typer.Typer:
    """The app with every command in it."""
    from . import demo, export, inspect, run  # noqa: F401  each adds its command
    from .app import app

    return app


def main() -> None:
    """Run `onnx-attn` with the arguments of the process."""
    sys.exit(load_commands()())

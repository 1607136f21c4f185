"""The command line, `onnx-attn`: one module per command."""

from __future__ import annotations

import sys

import typer

__all__ = ["load_commands", "main"]


def load_commands() -> typer.Typer:
    """The app with every command in it."""
    # Each adds its command to the app.
    from . import demo, doctor, export, inspect, models, run, verify  # noqa: F401
    from .app import app

    return app


def main() -> None:
    """Run `onnx-attn` with the arguments of the process."""
    sys.exit(load_commands()())

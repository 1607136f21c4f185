"""The command line, `onnx-attn`: one module per command."""

from __future__ import annotations

import sys
from importlib import import_module

import typer

__all__ = ["load_commands", "main"]

COMMANDS = (
    "export",
    "run",
    "inspect",
    "verify",
    "rewrite",
    "triton",
    "models",
    "bench",
    "doctor",
    "demo",
    "tools",
)


def load_commands() -> typer.Typer:
    """The app with every command in it."""
    for name in COMMANDS:
        # A command's module adds it to the app.
        import_module(f".{name}", __name__)
    from .app import app

    return app


def main() -> None:
    """Run `onnx-attn` with the arguments of the process."""
    sys.exit(load_commands()())

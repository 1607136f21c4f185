"""A layer's own rules: subclasses, and one list of export options."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import typer.main

from onnx_attn import AdditiveAttention, Attention
from onnx_attn.cli import load_commands
from onnx_attn.configuration import ExportArguments, ExportOptions

QUERY = np.ones((1, 2, 3), np.float32)


class Renamed(Attention):
    """A subclass with a name of its own."""


def test_a_subclass_loads(tmp_path: Path) -> None:
    layer = Renamed(use_scale=True)
    layer.set_weights([0.5])
    path = layer.export(tmp_path / "a.onnx", masks="none")
    again = Renamed.load(path)
    assert type(again) is Renamed
    assert again.get_weights() == [0.5]
    assert again.export(tmp_path / "b.onnx").read_bytes() == path.read_bytes()


def test_one_session_for_equal_options() -> None:
    layer = Attention()
    for _ in range(2):
        layer([QUERY, QUERY])
        layer([QUERY, QUERY], use_causal_mask=True)
    assert len(layer._sessions) == 2


OPTIONS = [field.name for field in fields(ExportOptions)]


def test_export_options_have_one_list() -> None:
    assert list(ExportArguments.__annotations__) == OPTIONS
    for kind in (Attention, AdditiveAttention):
        documented = inspect.getdoc(kind.to_onnx) or ""
        for name in OPTIONS:
            assert f"    {name}: " in documented


def test_the_page_lists_every_export_option() -> None:
    page = (Path(__file__).parents[2] / "docs/format.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .* \| `([^`]*)` \| `(--[a-z-]+)", page, re.MULTILINE)
    assert [name for name, _, _ in rows] == OPTIONS
    for (_, default, option), field in zip(rows, fields(ExportOptions), strict=True):
        assert ast.literal_eval(default) == field.default
        assert option == "--" + field.name.replace("_", "-")


def test_the_command_line_takes_every_export_option() -> None:
    command = typer.main.get_command(load_commands()).commands["export"]  # pyright: ignore
    given = {parameter.name: parameter for parameter in command.params}
    for field in fields(ExportOptions):
        assert field.name in given
        # None leaves it to the layer's export_defaults and to ExportOptions.
        assert given[field.name].default in (None, [])
        assert field.default is not MISSING

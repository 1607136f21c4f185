"""Promise: whatever is typed and whatever the terminal can show, the answer is plain and whole."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from typer.testing import CliRunner

import onnx_attn.plot
from onnx_attn import Attention
from onnx_attn.cli import COMMANDS, load_commands
from onnx_attn.version import __version__

CALLS = [*([name] for name in COMMANDS), ["models", "build"], ["models", "check"]]
SAVED = Path(__file__).parents[1] / "keras" / "files" / "golden" / "keras3151.keras"
QUERY = np.ones((1, 2, 3), np.float32)


def onnx_attn_(*arguments: object) -> Any:
    return CliRunner().invoke(load_commands(), [str(argument) for argument in arguments])


def command_of(call: list[str]) -> Any:
    command: Any = typer.main.get_command(load_commands())
    for name in call:
        command = command.commands[name]
    return command


@pytest.mark.parametrize(
    "arguments",
    [
        *([*call, "--no-such-option"] for call in CALLS),
        ["no-such-command"],
        ["models", "no-such-command"],
        ["--no-such-option"],
        ["export"],
        ["run"],
        ["export", "a.onnx", "--opset", "seventeen"],
        ["export", "a.onnx", "--dropout"],
        ["bench", "--threads", "0"],
        ["inspect", "a.onnx", "b.onnx"],
    ],
    ids=" ".join,
)
def test_a_wrong_call_is_one_line(arguments: list[str]) -> None:
    result = onnx_attn_(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr


def test_version() -> None:
    result = onnx_attn_("--version")
    assert (result.exit_code, result.stdout) == (0, f"onnx-attn {__version__}\n")


@pytest.mark.parametrize("call", [[], *CALLS], ids=" ".join)
def test_help_is_whole_at_80_columns(call: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = onnx_attn_(*call, "--help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    for parameter in command_of(call).params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            if option.startswith("-"):
                assert re.search(rf"(?<![\w-]){option}(?![\w-])", result.stdout)


def test_without_a_command_there_is_help() -> None:
    for call in ([], ["models"]):
        result = onnx_attn_(*call)
        assert result.exit_code == 0
        assert result.stdout == onnx_attn_(*call, "--help").stdout


def test_export_shows_every_default() -> None:
    shown = onnx_attn_("export", "--help").stdout
    blocks = re.split(r"\n  (?=-)", shown)
    for parameter in command_of(["export"]).params:
        block = next((b for b in blocks if b.startswith(parameter.opts[0] + " ")), "")
        # What is left out where it is not given has no default.
        if parameter.name not in ("out", "seed", "name", "from_keras", "config", "dims", "help"):
            assert "[default:" in block or parameter.opts[0] + "," in shown, parameter.name
    assert "[default: (auto)]" in shown
    assert "[default: (17)]" in shown


def started(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", "from onnx_attn.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""},
    ],
    ids=["latin-1", "ascii"],
)
def test_no_terminal_breaks_the_output(tmp_path: Path, environment: dict[str, str]) -> None:
    path = Attention(name="Übersicht →").export(tmp_path / "a.onnx")
    calls = [["--help"], ["export", "--help"], ["inspect", path], ["inspect", SAVED]]
    for call in [*calls, ["inspect", path, "--json"]]:
        done = started(*call, **environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout
        assert not done.stderr
    done = started("inspect", tmp_path / "→ no such file.onnx", **environment)
    assert done.returncode == 2
    assert re.fullmatch(rb"error: [^\n]*no such file\.onnx[^\n]*\n", done.stderr), done.stderr


def test_inspect_breaks_no_word() -> None:
    words: list[list[str]] = []
    for columns in ("80", "200"):
        done = started("inspect", SAVED, COLUMNS=columns)
        lines = done.stdout.decode().splitlines()
        assert max(len(line.rstrip()) for line in lines) <= int(columns)
        words.append(" ".join(lines).split())
    assert words[0] == words[1]


def test_a_plot_without_matplotlib_fails_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Attention().export(tmp_path / "a.onnx", return_attention_scores=True)
    np.savez(tmp_path / "in.npz", query=QUERY, value=QUERY)
    monkeypatch.setattr(onnx_attn.plot, "can_plot", lambda: False)
    out = tmp_path / "out.npz"
    result = onnx_attn_("run", path, tmp_path / "in.npz", "-o", out, "--plot", tmp_path / "p.png")
    assert result.exit_code == 2
    assert "--plot needs matplotlib" in result.stderr
    assert "onnx_attn[plot]" in result.stderr
    assert result.stdout == ""
    assert not out.exists()


@pytest.mark.parametrize(
    ("weight", "shown"), [(np.nan, "NaN"), (np.inf, "Infinity"), (-np.inf, "-Infinity")]
)
def test_json_has_no_number_that_json_lacks(tmp_path: Path, weight: float, shown: str) -> None:
    layer = Attention(use_scale=True)
    layer.set_weights([weight])
    path = layer.export(tmp_path / "a.onnx")

    def refuse(name: str) -> float:
        raise AssertionError(name)

    told = json.loads(onnx_attn_("inspect", path, "--json").stdout, parse_constant=refuse)
    assert told["weights"][0]["value"] == shown


def test_arrays_of_objects_are_named_as_such(tmp_path: Path) -> None:
    path = Attention().export(tmp_path / "a.onnx")
    objects = np.array([[1, 2], [3]], object)
    np.savez(tmp_path / "in.npz", query=objects, value=QUERY)
    np.save(tmp_path / "query.npy", objects)
    for call in ([tmp_path / "in.npz"], ["--query", tmp_path / "query.npy"]):
        result = onnx_attn_("run", path, *call)
        assert result.exit_code == 2
        assert "holds an array of Python objects" in result.stderr
        assert "damaged" not in result.stderr

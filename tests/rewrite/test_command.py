"""`onnx-attn rewrite`: what is written, what is said, the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from attention_spellings import DIM, attention
from model_pairs import Runner, feeds_of, worst
from onnx_attn.cli import load_commands


def rewrite(*arguments: object) -> Any:
    return CliRunner().invoke(load_commands(), ["rewrite", *map(str, arguments)])


def text_of(result: Any) -> str:
    return " ".join((result.stdout + result.stderr).split())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(attention(order="trilu"), path)
    return path


def test_a_model_is_written_and_reported(model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    out, report = tmp_path / "out.onnx", tmp_path / "r.json"
    result = rewrite(model, "-o", out, "--keep-all", "--report", report)
    assert result.exit_code == 0, text_of(result)
    assert "wrote" in text_of(result)
    assert model.read_bytes() == before
    facts = json.loads(report.read_text())
    assert facts["sites"][0]["rewritten"] is True
    assert facts["after"]["bytes"] == len(out.read_bytes())
    feeds = feeds_of(onnx.load(model), 3, 180, "front")
    assert worst(Runner(str(model))(feeds), Runner(str(out))(feeds)) <= 1e-5


def test_user_feeds_and_sizes(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "feeds.npz", **feeds_of(onnx.load(model), 2, 40, "tails"))
    arguments = ["--inputs", tmp_path / "feeds.npz", "--at", "batch=1,seq=64", "--dry-run"]
    result = rewrite(model, *arguments)
    assert result.exit_code in (0, 3)
    assert "batch=1, seq=64" in text_of(result)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["feeds.npz", "model.onnx"]


def test_nothing_to_rewrite_is_exit_code_3(tmp_path: Path) -> None:
    path, out, report = tmp_path / "m.onnx", tmp_path / "out.onnx", tmp_path / "r.json"
    onnx.save(attention(outputs=("out", "weights")), path)
    result = rewrite(path, "-o", out, "--keep-all", "--report", report)
    assert result.exit_code == 3
    assert "its weights are an output" in text_of(result)
    assert not out.exists()
    assert json.loads(report.read_text())["after"] is None
    plain = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "plain",
        [onnx.helper.make_tensor_value_info("x", 1, ["n", 3])],
        [onnx.helper.make_tensor_value_info("y", 1, ["n", 3])],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(plain, opset_imports=opsets, ir_version=8), path)
    result = rewrite(path, "-o", out)
    assert result.exit_code == 3
    assert "no Softmax" in text_of(result)
    assert not out.exists()


def _broken(kind: str, model: Path, tmp_path: Path) -> list[object]:
    out = tmp_path / "out.onnx"
    data = model.read_bytes()
    if kind == "text":
        model.write_text("no model")
    elif kind == "truncated":
        model.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        model.write_bytes(b"")
    elif kind == "custom operator":
        proto = onnx.load(model)
        next(n for n in proto.graph.node if n.op_type == "MatMul").domain = "my.own"
        proto.opset_import.add(domain="my.own", version=1)
        onnx.save(proto, model)
    elif kind == "missing":
        return [tmp_path / "nowhere.onnx", "-o", out]
    elif kind == "itself":
        return [model, "-o", model]
    elif kind == "no folder":
        return [model, "-o", tmp_path / "no" / "out.onnx"]
    elif kind == "no target":
        return [model]
    elif kind == "unknown dim":
        return [model, "-o", out, "--at", "sequence=4"]
    elif kind == "bad size":
        return [model, "-o", out, "--at", "seq=many"]
    elif kind == "bad feed":
        np.savez(tmp_path / "feeds.npz", x=np.zeros((1, 2, DIM), np.float32))
        return [model, "-o", out, "--inputs", tmp_path / "feeds.npz"]
    return [model, "-o", out]


KINDS = {
    "text": "not an ONNX file",
    "truncated": "",
    "empty": "not an ONNX file",
    "custom operator": "my.own",
    "missing": "does not exist",
    "itself": "is the model itself",
    "no folder": "no folder",
    "no target": "-o OUT.onnx",
    "unknown dim": "batch, seq",
    "bad size": "batch=8,seq=512",
    "bad feed": "mask is missing",
}


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_one_line_and_nothing_is_written(
    kind: str, model: Path, tmp_path: Path
) -> None:
    arguments = _broken(kind, model, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    result = rewrite(*arguments)
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert KINDS[kind] in lines[0]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

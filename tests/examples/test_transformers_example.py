"""Transformers' models as torch exported them: rewritten, equal under every mask, no torch."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "transformers"
MODELS = sorted((EXAMPLE / "models").glob("*.onnx"))
# Importing torch or transformers would end it.
WITHOUT_TORCH = (
    "import runpy, sys; sys.modules['torch'] = sys.modules['transformers'] = None; "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def test_every_attention_is_rewritten_and_equal() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, str(EXAMPLE / "rewrite.py")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(MODELS) == 3
    for path in MODELS:
        assert f"{path.name}: 2 of 2 attentions rewritten" in done.stdout
    errors = re.findall(r"  ([a-z ]+?) +largest difference (\S+)", done.stdout)
    assert {name for name, _ in errors} == {"none", "tails", "front", "gaps", "an empty row"}
    assert all(float(error) < 1e-6 for _, error in errors)
    assert done.stdout.endswith("all numbers equal\n")


def test_a_wrong_number_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("rewrite_transformers", EXAMPLE / "rewrite.py")
    assert spec is not None
    assert spec.loader is not None
    example: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    def spoiled(path: Path, **_: Any) -> Any:
        model = onnx.load(path)
        weights = next(t for t in model.graph.initializer if len(t.dims) == 2)
        array = np.array(onnx.numpy_helper.to_array(weights))
        array[1:] *= 1.001
        weights.CopyFrom(onnx.numpy_helper.from_array(array, weights.name))
        return SimpleNamespace(model=model, sites=[], proof="")

    monkeypatch.setattr(example, "rewrite_model", spoiled)
    monkeypatch.setattr(sys, "argv", ["rewrite.py", str(MODELS[0])])
    assert example.main() == 1
    assert "MORE THAN" in capsys.readouterr().out


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_files_say_nothing_of_the_machine_they_were_made_on(path: Path) -> None:
    assert not re.search(rb"/(home|root|tmp|usr|work)/|site-packages", path.read_bytes())
    assert [entry.name for entry in onnx.load(path).graph.input] == ["input_ids", "attention_mask"]

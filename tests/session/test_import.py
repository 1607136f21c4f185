"""Running a file needs numpy and onnxruntime only: heavy packages stay out of that path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import onnx_attn
from onnx_attn import Attention

# What costs 0.7 s (onnx, onnxscript) or is not needed to run a file.
HEAVY = (
    "google.protobuf",
    "matplotlib",
    "ml_dtypes",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "rich",
    "typer",
)

CHECK = """
import sys
import numpy as np
from onnx_attn import AttentionSession, DeviceError, InputError, ModelError, OnnxAttnError
session = AttentionSession({path!r})
output = session(np.ones((1, 2, 3), np.float32), np.ones((1, 4, 3), np.float32))
assert output.shape == (1, 2, 3)
try:
    session(np.ones((1, 2, 3)), np.ones((1, 4, 3), np.float32))
except InputError:
    pass
{more}
print(*[name for name in {heavy!r} if name in sys.modules])
"""


def heavy_modules(path: Path, more: str = "") -> list[str]:
    """Heavy modules that a process has loaded after it opened and ran the file at `path`."""
    code = CHECK.format(path=str(path), heavy=HEAVY, more=more)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_running_a_file_loads_no_heavy_package(tmp_path: Path) -> None:
    path = Attention(use_scale=True).export(tmp_path / "a.onnx", scale="input")
    assert heavy_modules(path) == []


@pytest.mark.parametrize("module", ["onnx", "typer"])
def test_this_test_can_fail(module: str, tmp_path: Path) -> None:
    path = Attention().export(tmp_path / "a.onnx")
    assert module in heavy_modules(path, more=f"import {module}")


def test_public_names() -> None:
    assert set(onnx_attn.__all__) == {
        "AdditiveAttention",
        "Attention",
        "AttentionSession",
        "DeviceError",
        "InputError",
        "ModelError",
        "OnnxAttnError",
        "__version__",
    }
    for name in onnx_attn.__all__:
        assert getattr(onnx_attn, name) is not None
    assert issubclass(onnx_attn.InputError, ValueError)
    for error in (onnx_attn.InputError, onnx_attn.ModelError, onnx_attn.DeviceError):
        assert issubclass(error, onnx_attn.OnnxAttnError)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        onnx_attn.nothing  # noqa: B018

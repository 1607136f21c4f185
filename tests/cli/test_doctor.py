"""`onnx-attn doctor`: the facts, the verdict, the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from typer.testing import CliRunner

from onnx_attn import doctor
from onnx_attn.cli import load_commands
from onnx_attn.device import cuda

GPU_EXPECTED = os.environ.get("ONNX_ATTN_TEST_DEVICE") == "cuda"


def test_this_machine_is_healthy_and_says_what_it_has() -> None:
    result = CliRunner().invoke(load_commands(), ["doctor"])
    assert result.exit_code == 0, result.stdout
    for word in ("healthy", onnxruntime.__version__, "CPU threads", "affinity", "cpu", "runs"):
        assert word in result.stdout


def test_json_for_machines() -> None:
    result = CliRunner().invoke(load_commands(), ["doctor", "--json"])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["healthy"] is True
    assert report["problems"] == []
    assert {"device": "cpu", "starts": True, "reason": ""} in report["starts"]
    assert report["threads"]["used"] >= 1
    assert report["wheels"] == cuda.runtime_wheels()
    assert any(start["device"] == "cuda:0" for start in report["starts"]) == GPU_EXPECTED


def test_a_gpu_that_cannot_run_is_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = cuda.Missing("CUDA libraries are not found: libcublas.so.13", "pip install X", True)
    monkeypatch.setattr(cuda, "missing_piece", lambda: missing)
    result = CliRunner().invoke(load_commands(), ["doctor"])
    assert result.exit_code == 1
    assert "to mend: CUDA libraries are not found: libcublas.so.13" in result.stdout
    assert "pip install X" in result.stdout


def test_no_gpu_is_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = cuda.Missing("this machine has no NVIDIA GPU", "Use device='cpu'", gpu=False)
    monkeypatch.setattr(cuda, "missing_piece", lambda: missing)
    assert doctor.examine().healthy


def test_clashing_wheels_are_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = {"onnxruntime": "1.30.0", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(cuda, "runtime_wheels", lambda: wheels)
    report = doctor.examine()
    assert not report.healthy
    assert "overwrite each other" in report.problems[0].what
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in report.problems[0].fix


def test_a_cpu_that_computes_wrongly_is_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.AttentionSession, "__call__", lambda _, *tensors: tensors[0])
    report = doctor.examine()
    assert not report.healthy
    assert "cpu does not run: it computes" in report.problems[0].what


def test_an_emptied_runtime_is_diagnosed(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("__version__ = '1.31.1'\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "sys.argv = ['onnx-attn', 'doctor']\n"
        "from onnx_attn.cli import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "onnxruntime is incomplete" in done.stdout
    assert "Traceback" not in done.stderr

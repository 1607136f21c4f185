"""benchmarks/cuda_check.py where there is no GPU: it says so; and its steps, tried on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

import children

ROOT = Path(__file__).resolve().parents[2]
CHECK = ROOT / "benchmarks" / "cuda_check.py"


@pytest.fixture(scope="module")
def check() -> Any:
    """cuda_check as a module."""
    spec = spec_from_file_location("cuda_check", CHECK)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(
    os.environ.get("ONNX_ATTN_TEST_DEVICE") == "cuda", reason="this machine is said to have a GPU"
)
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    command = (sys.executable, CHECK, "--output", tmp_path / "cuda.json")
    # A machine with a GPU, and without the variable above, shows it none.
    done = children.run(*command, code=2, seconds=60, environment={"CUDA_VISIBLE_DEVICES": ""})
    assert done.stderr.startswith("error: no GPU was measured: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_steps_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "cuda.json"
    names = ("--only", "device", "--only", "models", "--only", "16x512x512x64 float16")
    done = subprocess.run(
        [sys.executable, CHECK, "--device", "cpu", "--output", out, *names],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    results = json.loads(out.read_text())
    steps = results["steps"]
    assert list(steps) == ["device", "models", "16x512x512x64 float16"], done.stderr
    assert [step["status"] for step in steps.values()] == ["ok"] * 3
    assert steps["models"]["result"]["summary"] == "16 of 16 files within tolerance"
    found = steps["16x512x512x64 float16"]["result"]["candidates"]
    for name in ("dense", "fused"):
        assert found[name]["status"] == "ok"
        assert 0 < found[name]["error"] <= 2e-3
        assert found[name]["median"] > 0
    # torch is no dependency: where it is missing, that is said, and it is no success.
    told = found["torch"]["status"]
    assert told in ("ok", "missing")
    assert done.returncode == (0 if told == "ok" else 1)
    assert ("torch: missing: No module named 'torch'" in done.stdout) == (told == "missing")
    assert "| 16x512x512x64 float16 |" in out.with_suffix(".md").read_text()


STEPS = """
import sys, time
name = sys.argv[1]
if name == "device":
    sys.stderr.write("last words\\n")
    sys.exit(3)
print('{"summary": "so far", "wrong": ["a file is off"]}', flush=True)
if name == "models":
    time.sleep(60)
if name == "cell":
    print('{"candidates": {"dense": {"status": "differs", "error": 1, "reason": "error 1"}}}')
"""


def test_a_step_that_dies_hangs_or_is_wrong_costs_itself(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "steps.py").write_text(STEPS)
    monkeypatch.setattr(check, "STEPS_PROGRAM", tmp_path / "steps.py")
    monkeypatch.setattr(check, "MODELS_SECONDS", 2)
    monkeypatch.setattr(check, "SHAPES", ((1, 16),))
    out = tmp_path / "cuda.json"
    monkeypatch.setattr(sys, "argv", ["cuda_check.py", "--device", "cpu", "-o", str(out)])
    assert check.main() == 1
    steps = json.loads(out.read_text())["steps"]
    assert {name: step["status"] for name, step in steps.items()} == {
        "device": "failed",
        "tests": "wrong",
        "models": "failed",
        **dict.fromkeys([f"1x16x16x64 {dtype}" for dtype in check.DTYPES], "ok"),
    }
    said = capsys.readouterr().out
    assert "wrong: device: ended with code 3: last words" in said
    assert "wrong: models: not ended after 2 s" in said
    assert "wrong: models: a file is off" in said, "what a step knew before it was cut off"
    assert "wrong: 1x16x16x64 float32, dense: differs: error 1" in said
    assert "* device: ended with code 3" in out.with_suffix(".md").read_text()


def test_steps_without_time_left_are_named(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cuda.json"
    arguments = ["cuda_check.py", "--device", "cpu", "-o", str(out), "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert check.main() == 1
    steps = json.loads(out.read_text())["steps"]
    assert len(steps) == 12
    assert {step["status"] for step in steps.values()} == {"left out"}

"""One step of cuda_check.py, in a process of its own; prints what it knows as lines of JSON.

python benchmarks/cuda_steps.py device cuda
python benchmarks/cuda_steps.py tests
python benchmarks/cuda_steps.py models cuda
python benchmarks/cuda_steps.py cell cuda 1 4096 float16
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from onnx_attn import Attention, AttentionSession, OnnxAttnError
from onnx_attn.bench.cells import Cell, checked_rows, inputs
from onnx_attn.bench.measure import machine
from onnx_attn.configuration import numpy_dtype
from onnx_attn.reference import attention
from onnx_attn.verify.judge import judge
from onnx_attn.verify.run import find_models, load_model
from onnx_attn.verify.runtimes.runtime import Answer

ROOT = Path(__file__).resolve().parents[1]
DIM = 64
# Largest error over the largest number of the result; those of tests/device.
BOUNDS = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
ROUNDS, SECONDS, LEAST_RUNS = 5, 0.2, 3
PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}


def say(result: dict[str, Any]) -> None:
    """The step's result as far as it is known."""
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def device(where: str) -> None:
    """What computes, and the versions."""
    facts = {"device": where, "GPU": "none", **machine.versions()}
    if where == "cuda":
        query = "--query-gpu=name,driver_version,memory.total"
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        facts["GPU"] = subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()
    say(facts)


def tests() -> None:
    """pytest -m cuda."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",  # one process on the device
        "-m",
        "cuda",
        "tests",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "ONNX_ATTN_TEST_DEVICE": "cuda", "COLUMNS": "240"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    bad = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    summary = lines[-1].strip("= ") if lines else "pytest said nothing"
    if done.returncode != 0 and not bad:
        bad = [f"pytest ended with code {done.returncode}: {done.stderr.strip()[-300:]}"]
    if not re.search(r"\d+ passed", summary):
        bad.append(f"no test passed: {summary}")
    say({"summary": summary, "wrong": bad})


def models(where: str) -> None:
    """Every file of models/ against its vectors, in one session each."""
    errors: dict[str, float | None] = {}
    bad: list[str] = []
    for path in find_models([ROOT / "models"]):
        model = load_model(path)
        try:
            session = AttentionSession(path, device=where)
            runs = [
                [session.run(feed.arrays) for _ in range(feed.times)] for feed in model.task().feeds
            ]
            answer = Answer(runs)
        except OnnxAttnError as error:
            answer = Answer([], str(error))
        cell = judge(model, answer)
        errors[model.name] = cell.error
        if cell.status != "pass":
            bad.append(f"{model.name}: {cell.status}: {cell.why}")
        passed = len(errors) - len(bad)
        summary = f"{passed} of {len(errors)} files within tolerance"
        say({"summary": summary, "errors": errors, "wrong": bad})


class OnDevice:
    """Puts arrays on the device, bfloat16 too: OrtValue copies from NumPy know no such type."""

    def __init__(self, where: str, dtype: str) -> None:
        kind = onnx.helper.np_dtype_to_tensor_dtype(numpy_dtype(dtype))
        tensors = [onnx.helper.make_tensor_value_info(n, kind, None) for n in ("x", "y")]
        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        graph = onnx.helper.make_graph([node], "copy", tensors[:1], tensors[1:])
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
        )
        self._where, self._kind, self._bits = where, kind, dtype == "bfloat16"
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=[PROVIDERS[where]]
        )

    def __call__(self, array: np.ndarray) -> onnxruntime.OrtValue:
        value: Any = onnxruntime.OrtValue
        given = (
            value.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), self._kind)
            if self._bits
            else value.ortvalue_from_numpy(array)
        )
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("x", given)
        binding.bind_output("y", self._where, 0)
        self._session.run_with_iobinding(binding)
        return binding.get_outputs()[0]


Arrays = dict[str, np.ndarray]
Prepared = tuple[Callable[[], Any], np.ndarray]


def prepare_ours(schedule: str, where: str, dtype: str, tensors: Arrays) -> Prepared:
    """A run on the device, and the numbers that it gives."""
    model = Attention(dtype=dtype).to_onnx(schedule=schedule, masks="none")  # pyright: ignore
    session = AttentionSession(model.SerializeToString(), device=where)
    move = OnDevice(where, dtype)
    placed = {name: move(array) for name, array in tensors.items()}

    def run() -> Any:
        # Waits for the device: ONNX Runtime's Run ends with a synchronisation.
        return session.run(placed, ["output"], ort_values=True)

    return run, session(tensors["query"], tensors["value"], tensors["key"])


def prepare_torch(where: str, dtype: str, tensors: Arrays) -> Prepared:
    """scaled_dot_product_attention with scale 1, without TF32 for float32."""
    torch: Any = import_module("torch")
    torch.backends.cuda.matmul.allow_tf32 = False
    query, key, value = (
        torch.from_numpy(tensors[name].astype(np.float32)).to(where, getattr(torch, dtype))[:, None]
        for name in ("query", "key", "value")
    )  # [batch, 1, T, dim]; both round to the nearest even, so the numbers are those of ours
    attend = torch.nn.functional.scaled_dot_product_attention

    def run() -> Any:
        with torch.inference_mode():
            result = attend(query, key, value, scale=1.0)
        if where == "cuda":
            torch.cuda.synchronize()
        return result

    return run, run()[:, 0].float().cpu().numpy()


def cell(where: str, batch: int, length: int, dtype: str) -> None:
    """dense, fused and torch on one shape, checked and then timed in turns."""
    made = Cell("plain", batch, length, length, DIM)
    cast = numpy_dtype(dtype)
    tensors: Arrays = {name: array.astype(cast) for name, array in inputs(made).items()}
    rows = checked_rows(made)
    query = tensors["query"][:, rows]
    wanted, _ = attention(query, tensors["value"], tensors["key"], compute="float64")
    largest = float(np.abs(wanted).max())
    ways: dict[str, Callable[[], Prepared]] = {
        "dense": lambda: prepare_ours("dense", where, dtype, tensors),
        "fused": lambda: prepare_ours("fused", where, dtype, tensors),
        "torch": lambda: prepare_torch(where, dtype, tensors),
    }
    found: dict[str, dict[str, Any]] = {}
    runs: dict[str, Callable[[], Any]] = {}
    for name, way in ways.items():
        try:
            run, got = way()
        except ImportError as error:
            found[name] = {"status": "missing", "reason": str(error)}
            continue
        except Exception as error:
            text = " ".join(str(error).split())[:400]
            found[name] = {"status": "failed", "reason": f"{type(error).__name__}: {text}"}
            continue
        error = float(np.abs(got[:, rows].astype(np.float64) - wanted).max()) / largest
        right = error <= BOUNDS[dtype]  # NaN is not
        reason = None if right else f"error {error:.1e}; bound {BOUNDS[dtype]:.1e}"
        found[name] = {"status": "ok" if right else "differs", "error": error, "reason": reason}
        runs[name] = run
        say({"candidates": found})
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            run()  # what the one before left in caches is not ours to pay
            begin, count = time.perf_counter(), 0
            while count < LEAST_RUNS or time.perf_counter() - begin < SECONDS:
                start = time.perf_counter()
                run()
                samples[name].append(time.perf_counter() - start)
                count += 1
    for name, times in samples.items():
        q1, median, q3 = (float(q) * 1e6 for q in np.percentile(times, [25, 50, 75]))
        found[name] |= {"median": median, "q1": q1, "q3": q3, "runs": len(times)}
    say({"candidates": found})


def main() -> None:
    """The step that the arguments name."""
    name, *rest = sys.argv[1:]
    if name == "cell":
        where, batch, length, dtype = rest
        cell(where, int(batch), int(length), dtype)
    else:
        {"device": device, "tests": tests, "models": models}[name](*rest)


if __name__ == "__main__":
    main()

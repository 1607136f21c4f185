"""Runs a job in a Python of its own: python -I python_child.py LIBRARY JOB RESULTS.

Imports nothing of onnx_attn: the environment holds one library and NumPy.
"""

from __future__ import annotations

import base64
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, Any]
Run = Callable[[Arrays], Arrays]


def load_onnxruntime(library: Any, model: str) -> Run:
    """A model in ONNX Runtime, of whatever version."""
    options = library.SessionOptions()
    options.log_severity_level = 3
    session = library.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def load_openvino(library: Any, model: str) -> Run:
    """A model in OpenVINO, in float32."""
    # The CPU plugin may otherwise compute float32 in bfloat16 where the processor offers it.
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = library.Core().compile_model(model, "CPU", precision)
    request = compiled.create_infer_request()

    def run(feeds: Arrays) -> Arrays:
        request.infer(feeds)
        return {
            port.get_any_name(): np.array(request.get_tensor(port).data)
            for port in compiled.outputs
        }

    return run


OUTPUTS = ("output", "attention_scores")
TRACT_TYPES = {"bool": "bool", "float16": "f16", "float32": "f32", "float64": "f64"}


def load_tract(library: Any, model: str) -> Run:
    """A model in tract."""

    def run(feeds: Arrays) -> Arrays:
        # Shapes must be stated before tract looks at the nodes: so a model for each shape.
        loaded = library.onnx().load(model)
        names = [loaded.input_name(number) for number in range(loaded.input_count())]
        for number, name in enumerate(names):
            if name not in feeds:
                raise ValueError(f"input {name} is missing")
            array = feeds[name]
            fact = [*map(str, array.shape), TRACT_TYPES[array.dtype.name]]
            loaded.set_input_fact(number, ",".join(fact))
        results = loaded.into_model().into_runnable().run([feeds[name] for name in names])
        # tract calls an output after the node that makes it; the order is the file's.
        return {name: result.to_numpy() for name, result in zip(OUTPUTS, results, strict=False)}

    return run


LOADERS = {"onnxruntime": load_onnxruntime, "openvino": load_openvino, "tract": load_tract}


def answer(library: Any, load: Callable[[Any, str], Run], task: dict[str, Any]) -> dict[str, Any]:
    """What one task gives: outputs by name, or an error in words."""
    try:
        run = load(library, task["model"])
        results: list[list[Any]] = []
        for feed in task["feeds"]:
            with np.load(feed["arrays"]) as arrays:
                feeds = dict(arrays)
            results.append([encoded(run(feeds)) for _ in range(feed["times"])])
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"outputs": results}


def encoded(outputs: Arrays) -> Arrays:
    """Outputs as JSON that every NumPy can read back."""
    return {
        name: {
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode(),
        }
        for name, array in outputs.items()
    }


def main() -> None:
    """Run a job's tasks and write their answers, each as soon as it is there."""
    name, job, results = sys.argv[1:]
    library = importlib.import_module(name)
    with Path(results).open("a") as file:
        print("ready", file=file, flush=True)
        for task in json.loads(Path(job).read_text()):
            print(json.dumps(answer(library, LOADERS[name], task)), file=file, flush=True)


if __name__ == "__main__":
    main()

"""Runtimes with a Python environment of their own: the oldest ONNX Runtime, OpenVINO, tract."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from .children import run_children
from .environments import python_with
from .runtime import (
    Answer,
    ModelFacts,
    Report,
    RuntimeMissingError,
    Task,
    bfloat16_limit,
    foreign_limit,
)

CHILD = Path(__file__).with_name("python_child.py")

# The oldest wheel on the package index for each Python, and the NumPy it was built against.
OLDEST_ONNXRUNTIME = {
    (3, 11): ("1.15.0", "numpy<2"),
    (3, 12): ("1.17.0", "numpy<2"),
    (3, 13): ("1.20.0", "numpy>=2.1,<3"),
    (3, 14): ("1.24.1", "numpy>=2.3,<3"),
}
OPENVINO = "2026.4.1"
TRACT = "0.23.9"


class _InPython:
    """A library that runs in a virtual environment of its own."""

    title: str
    library: str
    _python: Path

    def _make(self, requirements: Sequence[str], install: bool, report: Report) -> None:
        self._python = python_with(requirements, self.title, install, report)

    def run(self, tasks: Sequence[Task]) -> Iterator[Answer]:
        # -I: nothing of the calling environment, PYTHONPATH above all, reaches the child.
        return run_children([str(self._python), "-I", str(CHILD), self.library], tasks)


class OldestOnnxRuntime(_InPython):
    """The oldest ONNX Runtime that installs on this Python."""

    name = "oldest-onnxruntime"
    title = "oldest ONNX Runtime"
    library = "onnxruntime"

    def start(self, install: bool, report: Report) -> str:
        python = sys.version_info[:2]
        if python not in OLDEST_ONNXRUNTIME:
            raise RuntimeMissingError(
                f"no oldest ONNX Runtime is known for Python {python[0]}.{python[1]}: "
                "use Python 3.11, which has the oldest wheel"
            )
        version, numpy = OLDEST_ONNXRUNTIME[python]
        self._make([f"onnxruntime=={version}", numpy], install, report)
        return version

    def limit(self, facts: ModelFacts) -> str | None:
        return bfloat16_limit(facts)


class OpenVino(_InPython):
    """OpenVINO's CPU plugin."""

    name = "openvino"
    title = "OpenVINO"
    library = "openvino"

    def start(self, install: bool, report: Report) -> str:
        self._make([f"openvino=={OPENVINO}"], install, report)
        return OPENVINO

    def limit(self, facts: ModelFacts) -> str | None:
        if facts.optional_inputs:
            return "freezes optional inputs at their defaults"
        if "Scan" in facts.operators:
            return "does not load Scan: export with schedule='dense'"
        if facts.config.floats.tensor == "float64":
            return "computes float64 in float32"
        return foreign_limit(facts) or bfloat16_limit(facts)


class Tract(_InPython):
    """tract: a runtime in Rust alone, by its wheel. It shares no code with ONNX Runtime."""

    name = "tract"
    title = "tract"
    library = "tract"

    def start(self, install: bool, report: Report) -> str:
        self._make([f"tract=={TRACT}"], install, report)
        return TRACT

    def limit(self, facts: ModelFacts) -> str | None:
        if facts.optional_inputs:
            return "ignores, without a word, what is fed to optional inputs"
        if "Scan" in facts.operators:
            return "does not load Scan: export with schedule='dense'"
        if "training" in facts.contract.inputs:
            return "has no random operators"
        return foreign_limit(facts) or bfloat16_limit(facts)

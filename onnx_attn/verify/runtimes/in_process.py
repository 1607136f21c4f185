"""The two runtimes this package depends on: ONNX Runtime and onnx's reference evaluator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

from ...arrays import Array
from .runtime import (
    Answer,
    ModelFacts,
    Outputs,
    Report,
    Task,
    bfloat16_limit,
    foreign_limit,
    one_line,
)

Run = Callable[[Outputs], Outputs]


class OnnxRuntime:
    """The installed ONNX Runtime, on its CPU provider."""

    name = "onnxruntime"
    title = "ONNX Runtime"

    def start(self, install: bool, report: Report) -> str:
        del install, report
        return onnxruntime.__version__

    def run(self, tasks: Sequence[Task]) -> Iterator[Answer]:
        for task in tasks:
            yield _answer(_load_onnxruntime, task)

    def limit(self, facts: ModelFacts) -> str | None:
        return bfloat16_limit(facts)


class Reference:
    """onnx's reference evaluator: the operators' definitions in NumPy."""

    name = "reference"
    title = "onnx reference evaluator"

    def start(self, install: bool, report: Report) -> str:
        del install, report
        return onnx.__version__

    def run(self, tasks: Sequence[Task]) -> Iterator[Answer]:
        for task in tasks:
            yield _answer(_load_reference, task)

    def limit(self, facts: ModelFacts) -> str | None:
        return foreign_limit(facts)


def _load_onnxruntime(model: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def _load_reference(model: Path) -> Run:
    evaluator = ReferenceEvaluator(str(model))
    names = [str(name) for name in evaluator.output_names]

    def run(feeds: Outputs) -> Outputs:
        return dict(zip(names, cast("list[Array]", evaluator.run(names, feeds)), strict=True))

    return run


def _answer(load: Callable[[Path], Run], task: Task) -> Answer:
    # Whatever a runtime raises on a file is the result of running it.
    try:
        run = load(task.model)
        return Answer([[run(feed.arrays) for _ in range(feed.times)] for feed in task.feeds])
    except Exception as error:
        return Answer([], f"{type(error).__name__}: {one_line(error)}")

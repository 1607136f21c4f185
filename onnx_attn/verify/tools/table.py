"""The whole table: measured, compared with what is expected, written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .cases import make_cases
from .cell import Outcome, measure
from .expected import Limit
from .tool import Case, Tool

SECONDS = 300.0
PACKAGES = (
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxslim",
    "onnxsim",
    "onnxoptimizer",
    "onnxconverter-common",
    "openvino",
    "sympy",
)


@dataclass(frozen=True)
class Table:
    """Outcomes by (tool, file), in the order of `tools` and `files`."""

    tools: tuple[str, ...]
    files: tuple[str, ...]
    cells: dict[tuple[str, str], Outcome]


def measure_table(
    tools: Sequence[Tool],
    files: Sequence[str],
    report: Callable[[int, int], None],
    seconds: float = SECONDS,
) -> Table:
    """Every tool over every file, as many children at once as there are cores.

    `report` is told how many cells are done, and of how many.
    """
    with tempfile.TemporaryDirectory() as folder:
        cases = [case for case in make_cases(Path(folder)) if case.name in files]
        return measure_cases(tools, cases, report, seconds)


def measure_cases(
    tools: Sequence[Tool],
    cases: Sequence[Case],
    report: Callable[[int, int], None],
    seconds: float = SECONDS,
) -> Table:
    """`measure_table` over cases that are there."""
    pairs = [(tool, case) for tool in tools for case in cases]
    cells: dict[tuple[str, str], Outcome] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(measure, tool, case, seconds) for tool, case in pairs]
        for (tool, case), job in zip(pairs, jobs, strict=True):
            cells[tool.name, case.name] = job.result()
            report(len(cells), len(pairs))
    return Table(tuple(tool.name for tool in tools), tuple(case.name for case in cases), cells)


def differences(table: Table, limits: Sequence[Limit]) -> list[str]:
    """What is not as expected, a line each: an unlisted "no", and a listed one that works."""
    found: list[str] = []
    for (tool, file), outcome in table.cells.items():
        known = [limit for limit in limits if limit.covers(tool, file)]
        if outcome.why is None:
            found += [
                f'{tool} on {file} works now: take it out of the listed "no" ({limit.why})'
                for limit in known
            ]
        elif not any(limit.says in outcome.why for limit in known):
            found.append(f'{tool} on {file}: a "no" that is not listed: {outcome.why}')
    return found


def unknown_limits(
    limits: Sequence[Limit], tools: Sequence[str], files: Sequence[str]
) -> list[str]:
    """Listed limits that are about no cell of the whole table, a line each."""
    return [
        f"a listed limit is about no cell: {limit.tool} on {', '.join(limit.files)}"
        for limit in limits
        if not any(limit.covers(tool, file) for tool in tools for file in files)
    ]


def markdown(table: Table, limits: Sequence[Limit]) -> str:
    """The page docs/tools.md."""
    notes: list[str] = []

    def shown(tool: str, file: str) -> str:
        outcome = table.cells[tool, file]
        if outcome.why is None:
            return f"{outcome.error:.0e}"
        note = _note(tool, file, outcome.why, limits)
        if note not in notes:
            notes.append(note)
        return f"no [{notes.index(note) + 1}]"

    rows = [
        f"| {tool} | " + " | ".join(shown(tool, file) for file in table.files) + " |"
        for tool in table.tools
    ]
    head = [f"| tool | {' | '.join(table.files)} |", "|---" * (len(table.files) + 1) + "|"]
    listed = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join([*_INTRODUCTION, *head, *rows, "", *_WHY, *listed, "", *_versions(), ""])


_INTRODUCTION = (
    "# Files in company: tools that go over them",
    "",
    "Written by `onnx-attn tools --write`, checked by `onnx-attn tools --check`. Each cell: a file",
    "is exported, the tool goes over it, the result is run and compared with a float64 reference.",
    "The number is the largest absolute error, for outputs of about 1. The sizes are free where",
    "the tool leaves them so; a call of 2x7x7 and one of 601 queries by 703 keys are measured.",
    "Right is: 1e-05, 2e-02 for float16, 2e-01 for 8-bit numbers.",
    "",
)
_WHY = ('## Why "no"', "")


def _note(tool: str, file: str, why: str, limits: Sequence[Limit]) -> str:
    for limit in limits:
        if limit.covers(tool, file) and limit.says in why:
            return limit.why + (f" {limit.issue}" if limit.issue else "")
    return f"Not expected: {why}"


def _versions() -> list[str]:
    found: list[str] = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return [f"Versions: {', '.join(found)}."]

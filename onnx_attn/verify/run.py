"""Models against their test vectors, in every runtime asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..file.export import find_model
from ..file.inspection import operators, opset_of
from .checksums import check_checksums, check_complete
from .judge import Cell, Model, judge
from .runtimes.runtime import Answer, ModelFacts, Runtime, RuntimeMissingError
from .vectors import MODEL, SET_PREFIX, read_sets, read_tolerance


@dataclass(frozen=True)
class Verification:
    """All cells, and which version of each runtime filled them."""

    models: list[Model]
    runtimes: list[Runtime]
    versions: dict[str, str]
    missing: dict[str, str]
    cells: dict[tuple[Path, str], Cell]

    @property
    def passed(self) -> bool:
        """Whether no cell is a miss or a failure."""
        return all(cell.status not in ("miss", "failed") for cell in self.cells.values())


def find_models(paths: Iterable[Path]) -> list[Path]:
    """The model files that `paths` name: files, folders of one model, or folders of those.

    Raises ModelError for a path that is not there or holds no model with test vectors.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_file():
            models = [path]
        elif (path / MODEL).is_file():
            models = [path / MODEL]
        elif path.is_dir():
            check_complete(path)
            models = [folder / MODEL for folder in sorted(path.iterdir()) if _holds_model(folder)]
        else:
            raise ModelError(f"{path} is not there")
        if not models:
            raise ModelError(
                f"{path} holds no models: expected {MODEL} in it, or folders with one each"
            )
        found.update(dict.fromkeys(models))
    return list(found)


def _holds_model(folder: Path) -> bool:
    # A folder of vectors whose model is gone must not pass unseen.
    return folder.is_dir() and (
        (folder / MODEL).exists()
        or any(folder.glob(f"{SET_PREFIX}*"))
        or any(folder.glob("*.onnx"))
    )


def load_model(path: Path) -> Model:
    """A model with its vectors, complete and unharmed.

    Raises ModelError if the file is not ours, or its vectors, tolerances or checksums are
    missing, damaged or do not fit it.
    """
    check_checksums(path.parent)
    found = find_model(path)
    specs = found.said.contract
    sets = read_sets(path.parent)
    for vectors in sets:
        for kind, arrays, wanted in (
            ("input", vectors.inputs, specs.inputs),
            ("output", vectors.outputs, specs.outputs),
        ):
            if list(arrays) != list(wanted):
                raise ModelError(
                    f"{vectors.path}: expected {kind}s {', '.join(wanted)} in this order; "
                    f"found {', '.join(arrays)}"
                )
    facts = ModelFacts(found.said, frozenset(operators(found.proto.graph)))
    tolerance = read_tolerance(path.parent)
    return Model(path, facts, tolerance, sets, opset_of(found.proto), found.proto.ir_version)


def verify(
    models: Sequence[Model],
    runtimes: Sequence[Runtime],
    install: bool,
    report: Callable[[str, str | None], None],
) -> Verification:
    """Run `models` in `runtimes`.

    `install` allows downloads for runtimes that are not there yet. `report` is told what is
    happening: a runtime, and the model it has just finished.
    """
    versions: dict[str, str] = {}
    missing: dict[str, str] = {}
    cells: dict[tuple[Path, str], Cell] = {}
    for runtime in runtimes:
        report(runtime.title, None)
        try:
            versions[runtime.name] = runtime.start(install, lambda text: report(text, None))
        except RuntimeMissingError as error:
            missing[runtime.name] = str(error)
            for model in models:
                cells[model.path, runtime.name] = Cell("missing", why=str(error))
            continue
        answers = runtime.run([model.task() for model in models])
        for model, answer in zip(models, answers, strict=True):
            cells[model.path, runtime.name] = _judge(model, answer, runtime.limit(model.facts))
            report(runtime.title, model.name)
    return Verification(list(models), list(runtimes), versions, missing, cells)


def _judge(model: Model, answer: Answer, limit: str | None) -> Cell:
    cell = judge(model, answer)
    return Cell("limit", why=limit) if limit and cell.status != "pass" else cell


def to_json(result: Verification) -> dict[str, Any]:
    """The verification as plain data."""

    def cell_json(cell: Cell) -> dict[str, Any]:
        # JSON has no infinity: the words say it.
        finite = cell.error is not None and math.isfinite(cell.error)
        return {
            "status": cell.status,
            "error": cell.error if finite else None,
            "why": cell.why,
        }

    return {
        "passed": result.passed,
        "runtimes": {r.name: result.versions.get(r.name) for r in result.runtimes},
        "missing": result.missing,
        "models": [
            {
                "name": model.name,
                "path": str(model.path),
                "sets": len(model.sets),
                "rtol": model.tolerance.rtol,
                "atol": model.tolerance.atol,
                "cells": {
                    r.name: cell_json(result.cells[model.path, r.name]) for r in result.runtimes
                },
            }
            for model in result.models
        ],
    }

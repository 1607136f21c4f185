"""What candidates are given to compute: a cell, or a whole model at a size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from ..arrays import Array
from ..errors import InputError
from . import cells
from .candidate import Candidate
from .candidates import find
from .cells import Cell, Errors
from .wholes import models, optimizers
from .wholes.models import Whole

Task = Cell | Whole
AnyTask = TypeVar("AnyTask", Cell, Whole)


def named_like(wanted: Sequence[str], known: Sequence[AnyTask], kind: str) -> list[AnyTask]:
    """Those of `known` whose names contain one of `wanted`, or all. InputError where none does."""
    chosen = [task for task in known if not wanted or any(word in task.name for word in wanted)]
    if not chosen:
        names = ", ".join(task.name for task in known)
        raise InputError(f"no {kind} is named like {', '.join(wanted)}; {kind}s: {names}")
    return chosen


def task_of(fields: dict[str, Any]) -> Task:
    """The task whose fields came as JSON."""
    return Whole(**fields) if "graph" in fields else Cell(**fields)


def candidate_of(task: Task, name: str) -> Candidate:
    """Who is called `name` among those who compute such tasks."""
    return find(name) if isinstance(task, Cell) else optimizers.find(name)


def inputs(task: Task, alignment: int = 64) -> dict[str, Array]:
    """What is fed, each array `alignment` bytes behind a multiple of 64 (64: at one)."""
    if isinstance(task, Cell):
        return cells.inputs(task, alignment)
    made = models.inputs(task)
    return {name: cells.aligned(array, alignment) for name, array in made.items()}


def expected(task: Task) -> dict[str, Array]:
    """What must come: the reference's numbers, or those of the original model."""
    return cells.expected(task) if isinstance(task, Cell) else models.expected(task)


def largest_errors(results: dict[str, Array], task: Task, wanted: dict[str, Array]) -> Errors:
    """Errors of `results` as shares of the largest number."""
    if isinstance(task, Cell):
        return cells.largest_errors(results, task, wanted)
    return models.largest_errors(results, wanted)


def tolerance(task: Task) -> float:
    """A result further from what is expected is no result."""
    return cells.TOLERANCE if isinstance(task, Cell) else models.TOLERANCE


def difference_words(errors: dict[str, float], task: Task) -> str:
    """How a result differs."""
    apart = errors["of_all"]
    finite = apart < float("inf")
    off = f"off by {apart:.0e} of the largest number" if finite else "NaN, or a shape"
    if isinstance(task, Whole):
        return f"not the original's numbers ({off})"
    if errors["where_keys_are_seen"] <= cells.TOLERANCE:
        return f"rows that may see no key are not Keras's ({off}); the others are right"
    return f"not Keras's numbers ({off})"

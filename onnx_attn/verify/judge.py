"""What a runtime answered, against what should have come out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..arrays import Array
from .runtimes.runtime import Answer, Feed, ModelFacts, Outputs, Task
from .vectors import Tolerance, VectorSet

Status = Literal["pass", "miss", "failed", "limit", "missing"]

# A run with training=True is judged by its draws: some thousand of them, and a bound that a
# right implementation crosses once in 500 million runs.
TRAINING_RUNS = 16
SIGMAS = 6.0


@dataclass(frozen=True)
class Model:
    """A model file with its vectors, tolerance, and what decides who can run it."""

    path: Path
    facts: ModelFacts
    tolerance: Tolerance
    sets: list[VectorSet]
    opset: int
    ir_version: int

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.parent.name

    @property
    def draws(self) -> bool:
        """Whether a run with training=True can be judged: it shows which weights it dropped."""
        return "training" in self.facts.contract.inputs and (
            "attention_scores" in self.facts.contract.outputs
        )

    def task(self) -> Task:
        """Every set once; a training file also many times with training=True, on its first set."""
        feeds = [_feed(vectors) for vectors in self.sets]
        if self.draws:
            feeds.append(_feed(self.sets[0], True, TRAINING_RUNS))
        return Task(self.path, tuple(feeds))


def _feed(vectors: VectorSet, training: bool | None = None, times: int = 1) -> Feed:
    files = tuple(vectors.path / f"input_{number}.pb" for number in range(len(vectors.inputs)))
    return Feed(files, vectors.inputs, training, times)


@dataclass(frozen=True)
class Cell:
    """One model in one runtime: the largest absolute error over all sets, or why there is none.

    "limit": the runtime is known not to give this file's numbers, and did not; "missing": it is
    not on this machine.
    """

    status: Status
    error: float | None = None
    why: str = ""


def judge(model: Model, answer: Answer) -> Cell:
    """The cell of what a runtime answered to `model.task()`."""
    if answer.error is not None:
        return Cell("failed", why=answer.error)
    largest, misses = 0.0, list[str]()
    plain, drawn = answer.outputs[: len(model.sets)], answer.outputs[len(model.sets) :]
    for vectors, (outputs,) in zip(model.sets, plain, strict=True):
        for name, expected in vectors.outputs.items():
            where = f"{name} of {vectors.path.name}"
            if name not in outputs:
                return Cell("failed", why=f"{where} did not come out")
            wrong = wrong_form(outputs[name], expected)
            if wrong:
                return Cell("failed", why=f"{where} {wrong}")
            error, within = compare(outputs[name], expected, model.tolerance)
            largest = max(largest, error)
            if not within:
                misses.append(f"{where} is off by {error:.2g}")
    if model.draws and not misses:
        wrong = judge_draws(model, drawn[0])
        if wrong:
            misses.append(f"with training=True {wrong}")
    return Cell("miss" if misses else "pass", largest, "; ".join(misses))


def wrong_form(got: Array, expected: Array) -> str | None:
    """How shape or type of a result differ from the expected ones, or None."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return f"is {got.dtype}{list(got.shape)}; expected {expected.dtype}{list(expected.shape)}"
    return None


def compare(got: Array, expected: Array, tolerance: Tolerance) -> tuple[float, bool]:
    """The largest absolute error (infinite for a NaN in only one), and whether all are within."""
    if not expected.size:
        return 0.0, True
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        errors = np.where(same, 0.0, np.abs(got - expected))
    errors = np.where(np.isnan(errors), math.inf, errors)
    bounds = tolerance.atol + tolerance.rtol * np.abs(expected)
    within = same | ((errors <= bounds) & np.isfinite(bounds))
    return float(errors.max()), bool(within.all())


def judge_draws(model: Model, runs: Sequence[Outputs]) -> str | None:
    """What is wrong with runs on the first set with training=True, or None.

    Each weight must be 0 or the undropped weight times 1/(1-rate), the share of zeros must fit
    the rate, two runs must differ, and the output must follow from the weights that came out.
    """
    rate = model.facts.config.dropout
    vectors = model.sets[0]
    weights = vectors.outputs["attention_scores"].astype(np.float64)
    grown = weights / (1 - rate)
    drawn = weights > model.tolerance.atol  # smaller ones may be 0 without having been dropped
    if not drawn.any() or len(runs) < 2:
        return "too little was drawn to judge"
    kept = [run["attention_scores"] != 0 for run in runs]
    for run, stays in zip(runs, kept, strict=True):
        wanted = np.where(stays, grown, 0.0)
        if not compare(run["attention_scores"], wanted, model.tolerance)[1]:
            return f"kept weights are not the weights times 1/(1-{rate:g})"
        attended = run["attention_scores"].astype(np.float64) @ vectors.inputs["value"]
        if "query_mask" in vectors.inputs:
            attended = attended * vectors.inputs["query_mask"][:, :, None]
        if not compare(run["output"], attended, model.tolerance)[1]:
            return "the output does not follow from the weights"
    share = float(np.mean([stays[drawn].mean() for stays in kept]))
    sigma = math.sqrt(rate * (1 - rate) / (drawn.sum() * len(runs)))
    if abs(share - (1 - rate)) > SIGMAS * sigma:
        return f"{share:.3f} of the weights were kept; expected {1 - rate:g}"
    if model.facts.config.seed is None and all(np.array_equal(kept[0], k) for k in kept[1:]):
        return f"{len(runs)} runs dropped the same weights"
    return None

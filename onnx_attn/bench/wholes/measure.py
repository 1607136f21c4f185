"""Whole models measured: files made, held against the original, loaded, run in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..candidate import Candidate
from ..measure.turns import Plan, Progress, RefusedError, run_cells, worker
from ..tasks import named_like
from .models import GRAPH, QUICK_WHOLES, WHOLES, Whole
from .optimizers import ORIGINAL, candidates, find, give_reason, made, write_original


def choose(wanted: Sequence[str], *, quick: bool) -> list[Whole]:
    """The models at sizes whose names contain one of `wanted`, or all. InputError for none."""
    return named_like(wanted, QUICK_WHOLES if quick else WHOLES, "model")


def choose_candidates(wanted: Sequence[str]) -> list[Candidate]:
    """The original and those called `wanted`, all for none."""
    return [find(name) for name in dict.fromkeys([ORIGINAL, *(wanted or candidates())])]


def steps(plan: Plan) -> int:
    """Steps in all, for a progress bar."""
    graphs = len({whole.graph for whole in plan.cells if isinstance(whole, Whole)})
    return len(plan.candidates) * (2 * graphs + len(plan.cells)) + plan.steps


def run(
    plan: Plan, progress: Progress, keep: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """What a plan's models take.

    `graphs`: of each model and candidate bytes and `masks`, the difference to the original by mask,
    or a status and reason; `cells` as `run_cells` has them, each result with `load`, processor
    seconds, and `growth`, bytes that a first run adds. `keep` is given the results of each
    generation.
    """
    with TemporaryDirectory(prefix="onnx-attn-") as folder:
        wholes = [replace(w, folder=folder) for w in plan.cells if isinstance(w, Whole)]
        graphs: dict[str, dict[str, Any]] = {}
        for graph in dict.fromkeys(whole.graph for whole in wholes):
            write_original(graph, Path(folder))
            graphs[graph] = {
                candidate.name: _made(graph, candidate, folder, plan.turns.threads, progress)
                for candidate in plan.candidates
            }
        costs = [
            {
                candidate.name: _cost(whole, candidate, plan.turns.threads, progress)
                for candidate in plan.candidates
            }
            for whole in wholes
        ]

        def found(cells: list[dict[str, Any]]) -> dict[str, Any]:
            for cell, cost in zip(cells, costs, strict=True):
                cell.pop("folder", None)  # it is gone when this is read
                for name, result in cell["results"].items():
                    result |= cost[name]
            return {
                "candidates": {
                    one.name: {"label": one.label, "kind": one.kind} for one in plan.candidates
                },
                "labels": {graph: GRAPH[graph].label for graph in graphs},
                "graphs": graphs,
                "cells": cells,
            }

        in_turns = replace(plan, cells=wholes)
        return found(run_cells(in_turns, progress, lambda cells: keep(found(cells))))


def _ask(request: dict[str, Any], threads: int) -> Any:
    with worker(threads) as fresh:
        return fresh.ask(request)


def _made(
    graph: str, candidate: Candidate, folder: str, threads: int, progress: Progress
) -> dict[str, Any]:
    """Make a candidate's file in a process of its own, and hold it against the original."""
    name = candidate.name
    about: dict[str, Any] = {}
    asked = {"candidate": name, "graph": graph, "folder": folder}
    try:
        if name != ORIGINAL:
            _ask({"do": "make", **asked}, threads)
        progress(f"{graph}: made by {candidate.label}")
        path = made(Whole(graph, 1, 1, folder=folder), name)
        about["bytes"] = path.stat().st_size
    except RefusedError as refused:
        progress(f"{graph}: {candidate.label} made none")
        give_reason(graph, name, Path(folder), str(refused))
        about |= {"status": refused.status, "reason": str(refused)}
    else:
        try:
            about["masks"] = _ask({"do": "masks", "threads": threads, **asked}, threads)
        except RefusedError as refused:
            about |= {"status": refused.status, "reason": str(refused)}
    progress(f"{graph}: {candidate.label} under masks")
    return about


def _cost(whole: Whole, candidate: Candidate, threads: int, progress: Progress) -> dict[str, Any]:
    """Load and growth in a fresh process; nothing where it does not run."""
    asked = {"do": "file", "candidate": candidate.name, "cell": asdict(whole), "threads": threads}
    try:
        return _ask(asked, threads)
    except RefusedError:
        return {}  # the turns say why
    finally:
        progress(f"{whole.name}: {candidate.label} loaded")

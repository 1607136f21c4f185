"""The parts of a benchmark run and the results they make, as one JSON-ready dict."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...errors import DeviceError, InputError
from ..candidate import Candidate
from ..candidates import candidates, find
from ..cells import CELLS, QUICK_CELLS, TOLERANCE, Cell
from ..ours import HEADLINE
from ..tasks import named_like
from ..wholes import measure
from ..wholes.models import Whole
from . import machine
from .probes import import_seconds
from .turns import CAN_PAUSE, Plan, Progress, RefusedError, Turns, run_cells, worker

FORMAT = 1
PARTS = ("cells", "memory", "session", "load")  # and "models", which takes as long as all
# Clients of one session of all threads; sessions of one thread that share the most clients.
CLIENTS = (1, 2, 4, 8)
SESSIONS = (1, 2, 4)
IMPORTS = {
    "numpy and onnxruntime": "import numpy, onnxruntime",
    "with AttentionSession": "import numpy, onnxruntime; from onnx_attn import AttentionSession",
}
LOAD_CELLS = (Cell("plain", 1, 16, 16, 64), Cell("plain", 1, 512, 512, 64))
MEMORY_LENGTHS = (4096, 16384, 65536)
QUICK_MEMORY_LENGTHS = (512, 1024)
# Longer ones are for our files alone: a minute of arithmetic for each candidate.
LONGEST_FOR_PEERS = 16384
# A candidate whose memory grows with T squared is not sent to lengths where that is more.
TOO_MUCH_MEMORY = 12 << 30


@dataclass(frozen=True)
class Request:
    """What a run shall measure, and how thoroughly."""

    parts: Sequence[str] = PARTS
    cells: Sequence[Cell] = CELLS
    candidates: Sequence[Candidate] = ()
    wholes: Sequence[Whole] = ()
    whole_candidates: Sequence[Candidate] = ()
    turns: Turns = field(default_factory=Turns)
    quick: bool = False
    load_seconds: float = 3.0

    def plan(self) -> Plan:
        """The cells' part, with the candidates that are here."""
        here = [candidate for candidate in self.candidates if candidate.missing is None]
        return Plan(self.cells, here, self.turns)

    def whole_plan(self) -> Plan:
        """The whole models' part, with the candidates that are here."""
        here = [candidate for candidate in self.whole_candidates if candidate.missing is None]
        return Plan(self.wholes, here, self.turns)

    def memory_cells(self) -> list[Cell]:
        """1 x T x T x 64, plain and causal."""
        lengths = QUICK_MEMORY_LENGTHS if self.quick else MEMORY_LENGTHS
        return [
            Cell("causal" if causal else "plain", 1, length, length, 64, causal=causal)
            for causal in (False, True)
            for length in lengths
        ]

    def memory_candidates(self) -> list[Candidate]:
        """All that compute a result, but one of our files once."""
        return [
            candidate
            for candidate in self.plan().candidates
            if candidate.kind != "bound" and candidate.name != "true-masks"
        ]

    def loads(self) -> list[dict[str, Any]]:
        """Clients, sessions and their threads: one session of all threads, several of one."""
        one = [(clients, 1, self.turns.threads) for clients in CLIENTS]
        several = [(max(SESSIONS), sessions, 1) for sessions in SESSIONS]
        return [
            {"clients": c, "sessions": s, "threads": t, "seconds": self.load_seconds}
            for c, s, t in [*one, *several]
        ]

    @property
    def steps(self) -> int:
        """Steps in all, for a progress bar."""
        counts = {
            "cells": self.plan().steps,
            "memory": len(self.memory_cells()) * len(self.memory_candidates()),
            "session": self.turns.processes * (2 + len(IMPORTS)),
            "load": len(LOAD_CELLS) * len(self.loads()) * self.turns.rounds,
            "models": measure.steps(self.whole_plan()),
        }
        return sum(counts[part] for part in self.parts)


def choose_cells(wanted: Sequence[str], *, quick: bool) -> list[Cell]:
    """The cells whose names contain one of `wanted`; all for none. Raises InputError for none."""
    return named_like(wanted, QUICK_CELLS if quick else CELLS, "cell")


def choose_candidates(wanted: Sequence[str]) -> list[Candidate]:
    """The candidates called `wanted`, all for none. Raises InputError for an unknown name."""
    return [find(name) for name in wanted] if wanted else list(candidates().values())


def run(
    request: Request,
    progress: Progress,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure the parts asked for, in order; `progress` is told each step.

    `keep` is given the results so far after each part, and of cells after each generation: a long
    run that is cut off leaves those.

    Raises DeviceError on Windows, whose pipes cannot be waited for with a time limit.
    """
    if os.name == "nt":
        raise DeviceError("onnx-attn bench runs on Linux and macOS; received Windows")
    results: dict[str, Any] = {
        "format": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "versions": machine.versions(),
        "settings": {
            "threads": request.turns.threads,
            "quick": request.quick,
            "processes": request.turns.processes,
            "big_processes": request.turns.big_processes,
            "rounds": request.turns.rounds,
            "seconds": request.turns.seconds,
            "tolerance": TOLERANCE,
            "others_paused": CAN_PAUSE,
            "headline": HEADLINE,
        },
        "candidates": {
            candidate.name: {
                "label": candidate.label,
                "kind": candidate.kind,
                "missing": candidate.missing,
            }
            for candidate in request.candidates
        },
        "took_seconds": {},
    }

    def cells(request: Request, progress: Progress) -> list[dict[str, Any]]:
        return run_cells(request.plan(), progress, lambda found: keep(results | {"cells": found}))

    def models(request: Request, progress: Progress) -> dict[str, Any]:
        missing = {one.label: one.missing for one in request.whole_candidates if one.missing}

        def whole(found: dict[str, Any]) -> dict[str, Any]:
            return found | {"missing": missing}

        return whole(
            measure.run(
                request.whole_plan(),
                progress,
                lambda found: keep(results | {"models": whole(found)}),
            )
        )

    parts: dict[str, Callable[[Request, Progress], Any]] = {
        "cells": cells,
        "memory": memory,
        "session": session,
        "load": load,
        "models": models,
    }
    for part in request.parts:
        start = time.monotonic()
        results[part] = parts[part](request, progress)
        results["took_seconds"][part] = round(time.monotonic() - start, 1)
        keep(results)
    return results


def _ask_fresh(request: dict[str, Any], threads: int) -> Any:
    with worker(threads) as fresh:
        return fresh.ask(request)


def memory(request: Request, progress: Progress) -> list[dict[str, Any]]:
    """Peak memory of each candidate at growing lengths, a fresh process each."""
    measured: list[dict[str, Any]] = []
    for cell in request.memory_cells():
        entry: dict[str, Any] = {"name": cell.name, **asdict(cell), "results": {}}
        for candidate in request.memory_candidates():
            entry["results"][candidate.name] = _memory_of(candidate, cell, measured, request)
            progress(f"memory, {cell.name}: {candidate.label}")
        measured.append(entry)
    return measured


def _memory_of(
    candidate: Candidate, cell: Cell, measured: Sequence[dict[str, Any]], request: Request
) -> dict[str, Any]:
    if candidate.kind != "ours" and cell.Tq > LONGEST_FOR_PEERS:
        return {"left_out": "not run: only ours are measured at this length"}
    shorter = [entry for entry in measured if entry["causal"] == cell.causal]
    if shorter:
        last = shorter[-1]
        grown = last["results"][candidate.name]
        if "bytes" not in grown:
            return {"left_out": "not run: it failed or was left out at a shorter length"}
        ratio = cell.Tq / last["Tq"]
        squared = grown["bytes"] * ratio**2
        is_square = grown["bytes"] > 4 * last["Tq"] ** 2 * 0.9
        if is_square and squared > TOO_MUCH_MEMORY:
            return {"left_out": f"not run: would take some {squared / 2**30:.0f} GB"}
    asked = {
        "do": "memory",
        "candidate": candidate.name,
        "cell": asdict(cell),
        "threads": request.turns.threads,
    }
    try:
        return _ask_fresh(asked, request.turns.threads)
    except RefusedError as refused:
        return {"status": refused.status, "left_out": str(refused)}


def session(request: Request, progress: Progress) -> dict[str, Any]:
    """What the session adds to a run and to an import, a process each time."""
    run: dict[str, list[dict[str, float]]] = {"none": [], "both": []}
    for _ in range(request.turns.processes):
        for masks, found in run.items():
            asked = {"do": "session", "masks": masks, "threads": request.turns.threads}
            found.append(_ask_fresh(asked, request.turns.threads))
            progress(f"session, masks={masks}")
    return {"run": run, "imports": import_times(request.turns.processes, progress)}


def import_times(count: int, progress: Progress = lambda _: None) -> dict[str, list[float]]:
    """Seconds of each of IMPORTS, in turn, `count` times, with bytecode from a run before."""
    times: dict[str, list[float]] = {name: [] for name in IMPORTS}
    with TemporaryDirectory() as folder:
        for statement in IMPORTS.values():
            import_seconds(statement, Path(folder))
        for _ in range(count):
            for name, statement in IMPORTS.items():
                times[name].append(import_seconds(statement, Path(folder)))
                progress(f"import {name}")
    return times


def load(request: Request, progress: Progress) -> list[dict[str, Any]]:
    """Each of `Request.loads` in turn, in a process of its own; of its rounds the median one."""
    rounds: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for _ in range(request.turns.rounds):
        for cell in LOAD_CELLS:
            for number, asked in enumerate(request.loads()):
                found = _ask_fresh({"do": "load", "cell": asdict(cell), **asked}, asked["threads"])
                rounds.setdefault((cell.name, number), []).append({"name": cell.name, **found})
                progress(f"load, {cell.name}: {asked['clients']} clients")
    return [_median_load(found) for found in rounds.values()]


def _median_load(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The round of median speed, with the errors of all."""
    ordered = sorted(rounds, key=lambda found: found["per_second"])
    errors = [found["first_error"] for found in rounds if found["errors"]]
    return {
        **ordered[len(ordered) // 2],
        "errors": sum(found["errors"] for found in rounds),
        "first_error": errors[0] if errors else None,
    }


def wrong_results(results: dict[str, Any]) -> list[str]:
    """Cells in which one of our own files failed or gave other numbers than it should."""
    return [
        f"{cell['name']}: {part['candidates'][name]['label']}: {result['reason']}"
        for part in (results, results.get("models", {}))
        for cell in part.get("cells", [])
        for name, result in cell["results"].items()
        if part["candidates"][name]["kind"] == "ours" and result["status"] in ("differs", "failed")
    ]


def read(path: Path) -> dict[str, Any]:
    """Results that a run wrote. Raises InputError for a file that holds none."""
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} holds no results of `onnx-attn bench`: {error}") from error
    if not isinstance(results, dict) or results.get("format") != FORMAT:  # pyright: ignore[reportUnknownMemberType]
        raise InputError(f"{path} holds no results of `onnx-attn bench` in format {FORMAT}")
    return results  # pyright: ignore[reportUnknownVariableType]

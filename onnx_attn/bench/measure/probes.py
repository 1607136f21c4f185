"""Measurements that need a fresh process: memory growth, the session's own cost, load."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...device.memory import peak_bytes, start_peak
from ...rewrite.runs import RunError, Runner
from ..candidates import find
from ..cells import QUICK_CELLS, Cell, inputs
from ..ours import HEADLINE, our_model
from ..wholes import models, optimizers
from ..wholes.models import Whole

# What `memory_growth` runs first, so that loading code and starting threads is not counted.
WARM_LENGTH = 64
SECOND_RUN_BELOW = 1.0
WARM_TOKENS = 8
LOADS = 3
EXCHANGE_RUNS = 12
SESSION_BLOCKS, SESSION_RUNS = 20, 500
# Every so many answers under load are compared with the serial run's.
COMPARED_EVERY = 16


class Exchange:
    """How fast cores hand data to each other.

    Virtual machines may be moved between cores that share a cache and cores that do not, within
    seconds and without a trace. All threads then run at full speed, but what one wrote the others
    get late: forms that hand over half of their scores take twice as long.
    """

    def __init__(self, threads: int) -> None:
        from ..peers import onnx_graphs

        cell = Cell("exchange", 1, 128, 512, 64)
        tensors = inputs(cell)
        self._feeds = {name: tensors[name] for name in ("query", "value", "key")}
        model = onnx_graphs.exchange_chain()
        alone = onnx_graphs.session(model, 1)
        self._together = onnx_graphs.session(model, threads)
        self._alone_seconds = min(self._median(alone) for _ in range(3))

    def _median(self, runner: Any) -> float:
        samples: list[float] = []
        for _ in range(EXCHANGE_RUNS):
            start = time.perf_counter()
            runner.run(None, self._feeds)
            samples.append(time.perf_counter() - start)
        return float(np.median(samples))

    def ratio(self) -> float:
        """Time of all threads over that of one, which hands nothing over."""
        return self._median(self._together) / self._alone_seconds


def memory_growth(candidate: str, cell: dict[str, Any], threads: int) -> dict[str, Any]:
    """Peak memory of a run in bytes, beyond the loaded, warmed process, inputs and outputs."""
    made = Cell(**cell)
    chosen = find(candidate)
    short = replace(made, Tq=min(made.Tq, WARM_LENGTH), Tv=min(made.Tv, WARM_LENGTH))
    warm = chosen.prepare(short, inputs(short), threads)
    warm.run()
    tensors = inputs(made)
    prepared = chosen.prepare(made, tensors, threads)
    before = start_peak()
    start = time.perf_counter()
    result = prepared.run()
    seconds = time.perf_counter() - start
    outputs = 4 * made.batch * made.Tq * (made.dim + (made.Tv if made.scores else 0))
    del result
    if seconds < SECOND_RUN_BELOW:
        prepared.run()  # what the first run left behind may be in the second one's way
    growth = peak_bytes() - before - outputs
    return {"bytes": max(0, growth), "outputs": outputs, "seconds": seconds}


def session_cost(masks: str, threads: int) -> dict[str, float]:
    """AttentionSession.run over InferenceSession.run, microseconds, on the tiniest cell.

    Both run the same ONNX Runtime session in turn. With masks="both" ours is given none and fills
    in [[True]]; the bare call is fed it.
    """
    from ...session.session import AttentionSession

    cell = QUICK_CELLS[0]
    model = our_model(cell, HEADLINE, no_mask_given=masks == "both")
    session = AttentionSession(model, device="cpu", threads=threads)
    feeds = inputs(cell)
    bare_feeds: dict[str, Any] = dict(feeds)
    if masks == "both":
        bare_feeds |= {name: np.array([[True]]) for name in ("query_mask", "value_mask")}
    names, bare = list(session.outputs), session.ort_session.run
    bare_times: list[float] = []
    our_times: list[float] = []
    for _ in range(SESSION_BLOCKS):
        start = time.perf_counter()
        for _ in range(SESSION_RUNS):
            bare(names, bare_feeds)
        middle = time.perf_counter()
        for _ in range(SESSION_RUNS):
            session.run(feeds)
        end = time.perf_counter()
        bare_times.append((middle - start) / SESSION_RUNS * 1e6)
        our_times.append((end - middle) / SESSION_RUNS * 1e6)
    return {"bare": float(np.median(bare_times)), "ours": float(np.median(our_times))}


def import_seconds(statement: str, bytecode: Path) -> float:
    """Seconds that the import `statement` takes in a fresh interpreter.

    Modules are compiled into the folder `bytecode`, by the first call for a statement: installed
    packages are compiled too, and a source tree often may not keep what it compiles.
    """
    code = f"import time; s = time.perf_counter(); {statement}; print(time.perf_counter() - s)"
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(bytecode)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return float(done.stdout.split()[-1])


def load(
    cell: dict[str, Any], clients: int, seconds: float, threads: int, sessions: int = 1
) -> dict[str, Any]:
    """`clients` threads that share AttentionSessions, each asking again as soon as it is answered.

    Client c asks session c modulo `sessions`; each session has `threads` threads. Every client has
    inputs of its own; every 16th answer is compared, bit by bit, with that of a serial run before
    the load. Returns requests per second, latency in microseconds, errors.
    """
    from ...session.session import AttentionSession

    made = Cell(**cell)
    model = our_model(made, HEADLINE)
    opened = [AttentionSession(model, device="cpu", threads=threads) for _ in range(sessions)]
    feeds = [
        {name: np.roll(tensor, client, 1) for name, tensor in inputs(made).items()}
        for client in range(clients)
    ]
    asked = [opened[client % sessions] for client in range(clients)]
    serial = [session.run(feed)["output"] for session, feed in zip(asked, feeds, strict=True)]
    latencies: list[list[float]] = [[] for _ in feeds]
    errors: list[str] = []
    start_together = threading.Barrier(clients + 1)

    def client(number: int) -> None:
        mine, feed, clock = latencies[number], feeds[number], time.perf_counter
        session = asked[number]
        start_together.wait()
        until = clock() + seconds
        while True:
            begin = clock()
            if begin >= until:
                return
            try:
                output = session.run(feed)["output"]
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
                continue
            mine.append(clock() - begin)
            if len(mine) % COMPARED_EVERY == 0 and not np.array_equal(output, serial[number]):
                errors.append("an answer differs from the serial run's")

    workers = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for worker in workers:
        worker.start()
    start_together.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
    took = time.perf_counter() - began
    every = np.concatenate([np.array(mine) for mine in latencies])
    p50, p99 = (float(value) * 1e6 for value in np.percentile(every, [50, 99]))
    return {
        "clients": clients,
        "sessions": sessions,
        "threads": threads,
        "requests": len(every),
        "per_second": len(every) / took,
        "p50": p50,
        "p99": p99,
        "errors": len(errors),
        "first_error": errors[0] if errors else None,
    }


def file_cost(candidate: str, cell: dict[str, Any], threads: int) -> dict[str, Any]:
    """Processor seconds to load a whole model (median of three), and bytes that a first run adds.

    Before it runs one row of a few tokens, so that loading code and starting threads is not
    counted; outputs are not either.
    """
    whole = Whole(**cell)
    path = optimizers.made(whole, candidate)
    loads: list[float] = []
    runner: Runner | None = None
    while runner is None or len(loads) < LOADS:
        begin = time.process_time()
        runner = optimizers.session_of(path, threads)
        loads.append(time.process_time() - begin)
    runner(models.inputs(replace(whole, batch=1, length=WARM_TOKENS, mask="none")))
    feeds = models.inputs(whole)
    before = start_peak()
    outputs = runner(feeds)
    growth = peak_bytes() - before - sum(array.nbytes for array in outputs)
    return {"load": float(np.median(loads)), "growth": max(0, growth)}


def right_by_mask(candidate: str, graph: str, folder: str, threads: int) -> dict[str, Any]:
    """Largest difference to the original by kind of mask; what a run that failed says."""
    found: dict[str, Any] = {}
    for mask in models.GRAPH[graph].masks:
        whole = Whole(graph, models.JUDGED_BATCH, models.JUDGED_LENGTH, mask, folder=folder)
        runner = optimizers.session_of(optimizers.made(whole, candidate), threads)
        try:
            results = dict(zip(runner.outputs, runner(models.inputs(whole)), strict=True))
        except RunError as error:
            found[mask] = str(error)[:400]
            continue
        found[mask] = models.largest_errors(results, models.expected(whole)).of_all
    return found

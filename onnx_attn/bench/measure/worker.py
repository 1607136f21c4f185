"""The process a candidate runs in: `python -m onnx_attn.bench.measure.worker`.

Requests come as one JSON object a line on stdin, `{"do": NAME, ...}`; each is answered by one line
on stdout, `{"ok": ...}` or `{"error": KIND, "reason": TEXT}`. What libraries print goes to stderr.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np

from ...arrays import Array
from ..candidate import CannotError, Prepared
from ..cells import Errors
from ..tasks import candidate_of, inputs, largest_errors, task_of
from ..wholes import optimizers
from . import probes

# Runs that are timed together, so that reading the clock stays under a thousandth of the time.
SAMPLE_SECONDS = 100e-6
# Spent first to wake threads, let the system spread them over the cores, and fill caches.
WARM_SECONDS = 0.03
MIN_RUNS = 3


class Bench:
    """What a worker knows between requests: one candidate, at most one prepared cell."""

    def __init__(self) -> None:
        self._prepared: Prepared | None = None
        self._exchange: probes.Exchange | None = None

    def exchange(self, threads: int) -> float:
        """How fast cores hand data to each other now: `probes.Exchange.ratio`."""
        if self._exchange is None:
            self._exchange = probes.Exchange(threads)
        return self._exchange.ratio()

    def prepare(
        self, candidate: str, cell: dict[str, Any], threads: int, alignment: int, wanted: str
    ) -> dict[str, Any]:
        """Load the cell and compare its results with those in the npz `wanted`."""
        self.drop()
        made = task_of(cell)
        chosen = candidate_of(made, candidate)
        prepared = chosen.prepare(made, inputs(made, alignment), threads)
        result = prepared.run()
        errors = Errors(0.0, 0.0)
        if chosen.kind != "bound":
            with np.load(wanted) as reference:
                arrays: dict[str, Array] = {name: reference[name] for name in reference.files}
            errors = largest_errors(prepared.arrays(result), made, arrays)
        self._prepared = prepared
        return errors._asdict()

    def time(self, seconds: float) -> dict[str, Any]:
        """Run the prepared cell for about `seconds`: median and quartiles in microseconds."""
        if self._prepared is None:
            raise RuntimeError("time before prepare")
        return timed(self._prepared.run, seconds)

    def drop(self) -> None:
        """Forget the prepared cell and give its memory back."""
        self._prepared = None
        gc.collect()


def timed(run: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Median, quartiles and fastest of a run in microseconds, after a warm-up; how many runs."""
    clock = time.perf_counter
    start, runs = clock(), 0
    while runs < 1 or clock() - start < WARM_SECONDS:
        run()
        runs += 1
    each = max(1, round(SAMPLE_SECONDS * runs / (clock() - start)))
    samples: list[float] = []
    gc.collect()
    gc.disable()
    try:
        start = clock()
        while len(samples) < MIN_RUNS or clock() - start < seconds:
            begin = clock()
            for _ in range(each):
                run()
            samples.append((clock() - begin) / each)
    finally:
        gc.enable()
    # Six digits: turns differ in the third.
    q1, median, q3 = (float(f"{value * 1e6:.6g}") for value in np.percentile(samples, [25, 50, 75]))
    fastest = float(f"{min(samples) * 1e6:.6g}")
    runs = each * len(samples)
    return {"median": median, "q1": q1, "q3": q3, "fastest": fastest, "runs": runs}


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more."""
    bench = Bench()
    known: dict[str, Callable[..., Any]] = {
        "prepare": bench.prepare,
        "time": bench.time,
        "drop": bench.drop,
        "exchange": bench.exchange,
        "memory": probes.memory_growth,
        "session": probes.session_cost,
        "load": probes.load,
        "make": optimizers.make,
        "masks": probes.right_by_mask,
        "file": probes.file_cost,
    }
    for line in requests:
        request = json.loads(line)
        try:
            answer = {"ok": known[request.pop("do")](**request)}
        except CannotError as reason:
            answer = {"error": "cannot", "reason": str(reason)}
        except Exception as failure:
            text = " ".join(str(failure).split())[:400]
            answer = {"error": "failed", "reason": f"{type(failure).__name__}: {text}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def end_with_parent() -> None:
    """A worker that is stopped while others run must not outlive the driver."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def main() -> None:
    """Serve on stdin and stdout, with the real stdout kept for answers alone."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()

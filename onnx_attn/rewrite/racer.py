"""One model in a process of its own, run when its parent says so: see race.py."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from ..device.memory import peak_bytes, start_peak
from .runs import Runner


def main() -> None:
    """MODEL FEEDS.npz THREADS FOLDER: what loading and running a model takes.

    Says what loading and a first run took, then the fastest of as many runs as each line asks for,
    in seconds.
    """
    model, feeds, threads, folder = sys.argv[1:]
    data = Path(model).read_bytes()
    begin = time.process_time()
    runner = Runner(data, Path(folder) if folder else None, model, int(threads))
    load = time.process_time() - begin
    with np.load(feeds, allow_pickle=False) as arrays:
        given = {name: arrays[name] for name in arrays.files}
    before = start_peak()
    begin = time.perf_counter()
    runner(given)
    seconds = time.perf_counter() - begin
    first = {"load": load, "seconds": seconds, "growth": peak_bytes() - before}
    print(json.dumps(first), flush=True)  # noqa: T201
    for line in sys.stdin:
        fastest = float("inf")
        for _ in range(int(line)):
            begin = time.perf_counter()
            runner(given)
            fastest = min(fastest, time.perf_counter() - begin)
        print(json.dumps(fastest), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()

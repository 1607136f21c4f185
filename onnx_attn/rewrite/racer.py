"""One model in a process of its own, run when its parent says so: see race.py."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from .runs import Runner

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): VmHWM becomes VmRSS


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
    before = _peak(reset=True)
    begin = time.perf_counter()
    runner(given)
    seconds = time.perf_counter() - begin
    print(json.dumps({"load": load, "seconds": seconds, "growth": _peak() - before}), flush=True)  # noqa: T201
    for line in sys.stdin:
        fastest = float("inf")
        for _ in range(int(line)):
            begin = time.perf_counter()
            runner(given)
            fastest = min(fastest, time.perf_counter() - begin)
        print(json.dumps(fastest), flush=True)  # noqa: T201


def _peak(reset: bool = False) -> int:
    """Bytes of peak memory; on Linux from the last reset on."""
    if STATUS.exists():
        if reset:
            CLEAR_REFS.write_text(RESET_PEAK)
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()

"""What spinning threads cost and save: time of a call, and cores kept busy, at several pauses.

    python benchmarks/spinning_threads.py

What AttentionSession adds to a call and to an import is measured by `onnx-attn bench --session`.
"""

from __future__ import annotations

import subprocess
import sys

SPIN = """
import sys, time
import numpy as np
from onnx_attn import Attention, AttentionSession
model = Attention().to_onnx(masks="none", key=False).SerializeToString()
spin, length, pause = sys.argv[1] == "True", int(sys.argv[2]), float(sys.argv[3])
session = AttentionSession(model, device="cpu", threads=2, spin=spin)
query = np.ones((1, length, 64), np.float32)
for _ in range(20):
    session(query, query)
times, cpu, start = [], time.process_time(), time.perf_counter()
while time.perf_counter() - start < 1:
    began = time.perf_counter()
    session(query, query)
    times.append(time.perf_counter() - began)
    time.sleep(pause)
wall = time.perf_counter() - start
print(sorted(times)[len(times) // 2] * 1e3, (time.process_time() - cpu) / wall)
"""


def output_of(code: str, *arguments: object) -> list[float]:
    """The numbers that a fresh process running `code` prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    """Print the table."""
    print("threads=2: ms a call, and cores kept busy")  # noqa: T201
    for length, pause in ((128, 0), (512, 0), (512, 0.005), (512, 0.05)):
        cells: list[str] = []
        for spin in (True, False):
            taken, cores = output_of(SPIN, spin, length, pause)
            cells.append(f"spin={spin} {taken:.3f} ms, {cores:.2f} cores")
        line = f"1x{length}x{length}x64, {pause * 1e3:g} ms between calls: {'; '.join(cells)}"
        print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()

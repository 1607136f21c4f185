"""What AttentionSession costs: a call over ONNX Runtime's own, the import, spinning threads.

    python benchmarks/session_cost.py

Each figure is a median over processes of its own, the two sides of a comparison interleaved.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from onnx_attn.bench.measure.suite import import_times

PROCESSES = 8

CALL = """
import sys, time
import numpy as np
from onnx_attn import Attention, AttentionSession
model = Attention().to_onnx(masks="none", key=False).SerializeToString()
session = AttentionSession(model, device="cpu")
query = np.random.default_rng(0).standard_normal((1, 16, 64), np.float32)
feeds = {"query": query, "value": query}
raw = session.ort_session

def microseconds(call, count=2000):
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count * 1e6

sides = {"raw": lambda: raw.run(None, feeds), "run": lambda: session.run(feeds),
         "call": lambda: session(query, query)}
rounds = [{name: microseconds(call) for name, call in sides.items()} for _ in range(9)]
for name in sides:
    print(sorted(each[name] for each in rounds)[4], end=" ")
"""

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


def say(line: str) -> None:
    """One line of the table."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Print the table."""
    rows = [output_of(CALL) for _ in range(PROCESSES)]
    raw, run, call = (statistics.median(column) for column in zip(*rows, strict=True))
    over_run = statistics.median(row[1] - row[0] for row in rows)
    over_call = statistics.median(row[2] - row[0] for row in rows)
    say(f"1x16x16x64, median of {PROCESSES} processes, us a call:")
    say(f"  InferenceSession.run {raw:.1f}, session.run {run:.1f}, session(...) {call:.1f}")
    say(f"  over the runtime's own: session.run {over_run:.1f}, session(...) {over_call:.1f}")

    plain, ours = import_times(2 * PROCESSES).values()
    a, b = statistics.median(plain), statistics.median(ours)
    say(f"import: numpy and onnxruntime {a * 1e3:.0f} ms, AttentionSession {b * 1e3:.0f} ms,")
    say(f"  ratio {b / a:.2f} (of the fastest of each: {min(ours) / min(plain):.2f})")

    say("spinning, threads=2: ms a call, and cores kept busy")
    for length, pause in ((128, 0), (512, 0), (512, 0.005), (512, 0.05)):
        cells = []
        for spin in (True, False):
            taken, cores = output_of(SPIN, spin, length, pause)
            cells.append(f"spin={spin} {taken:.3f} ms, {cores:.2f} cores")
        say(f"  1x{length}x{length}x64, {pause * 1e3:g} ms between calls: {'; '.join(cells)}")


if __name__ == "__main__":
    main()

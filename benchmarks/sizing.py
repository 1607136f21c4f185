"""How much a call holds, and how sessions share a machine: the tables of docs/serving.md.

    python benchmarks/sizing.py

Memory is the growth of a warmed process in one call; the load is `onnx-attn bench --load`, all in
turns, three rounds.
"""

from __future__ import annotations

from dataclasses import asdict

from onnx_attn.bench.cells import Cell
from onnx_attn.bench.measure.suite import Request, load
from onnx_attn.bench.measure.turns import worker
from onnx_attn.bench.report.tables import duration, table
from onnx_attn.device.threads import available_threads

MB = 2**20
SHAPES = (
    (1, 16, 512),
    (1, 512, 512),
    (16, 512, 512),
    (64, 128, 128),
    (4, 2048, 2048),
    (1, 4096, 4096),
    (16, 4096, 4096),
    (1, 16384, 16384),
)
DIM = 64


def memory(cell: Cell, threads: int) -> int:
    """Bytes of a call beyond inputs and output."""
    with worker(threads) as fresh:
        asked = {"do": "memory", "candidate": "auto", "cell": asdict(cell), "threads": threads}
        return fresh.ask(asked)["bytes"]


def megabytes(size: float) -> str:
    return f"{size / MB:.1f} MB" if size < 10 * MB else f"{size / MB:.0f} MB"


def main() -> None:
    """Print the tables."""
    threads = available_threads()
    rows: list[list[str]] = []
    for batch, Tq, Tv in SHAPES:
        one = 4 * batch * DIM
        plain = Cell("plain", batch, Tq, Tv, DIM)
        causal = Cell("causal", batch, Tq, Tv, DIM, causal=True)
        grown = [megabytes(memory(cell, threads)) for cell in (plain, causal)]
        inputs, output = one * (Tq + 2 * Tv), one * Tq
        scores = megabytes(4 * batch * Tq * Tv)
        rows.append([plain.shape, megabytes(inputs), megabytes(output), *grown, scores])
    header = (
        "batch x Tq x Tv x dim",
        "inputs",
        "output",
        "plain call",
        "causal call",
        "all scores",
    )
    print(f"{table(header, rows)}\n")  # noqa: T201

    found = load(Request(parts=["load"], threads=threads, load_seconds=1.0), lambda _: None)
    together = {
        each["name"]: each
        for each in found
        if (each["clients"], each["sessions"]) == (4, 1) and each["threads"] == threads
    }
    rows = [
        [
            each["name"],
            f"{each['sessions']} of {each['threads']}",
            f"{each['per_second'] / together[each['name']]['per_second']:.2f}",
            duration(each["p50"]),
            duration(each["p99"]),
        ]
        for each in found
        if each["clients"] == 4
    ]
    header = ("call", "sessions of threads", "requests per second, ratio", "p50", "p99")
    print(table(header, rows))  # noqa: T201


if __name__ == "__main__":
    main()

"""What rewritten models are meant to reach, held against a run's results.

python benchmarks/model_goals.py benchmarks/models.json
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from goals import Goal, page

from onnx_attn.bench.measure.suite import read
from onnx_attn.bench.report.stats import Results
from onnx_attn.bench.report.tables import size
from onnx_attn.bench.report.wholes import ORIGINAL, OURS, against, loads, results_of

# How many times the original's speed; the tiny ones only must not lose more than 3 %.
FASTER = {
    "decoder_6_heads.ts 1x2048": 2.0,
    "decoder_12_heads.ts 1x2048": 2.1,
    "decoder_6_heads.ts 1x512": 1.2,
    "encoder.ts 8x512 tails": 1.5,
    "keras_attention 1x2048": 1.2,
}
NOT_SLOWER = 0.97
# The best peer's time over ours, whichever export of the model each began with.
AGAINST_PEERS = {"encoder.ts 8x512 tails": 1.0, "encoder.ts 16x256 tails": 1.0}
MEMORY = {"decoder_6_heads.ts 1x2048": 90e6, "encoder.ts 8x512 tails": 130e6}
LOAD = 1.5


def goals(results: Results) -> Iterator[Goal]:
    """Every goal that these results can judge."""
    for cell in results.cells:
        name, found = cell["name"], cell["results"]
        if OURS not in found or found[OURS]["status"] != "ok":
            continue
        ours, before = found[OURS], found[ORIGINAL]
        ratio = against(ours, before)
        wanted = FASTER.get(name, NOT_SLOWER if cell["tiny"] else None)
        if wanted is not None and ratio is not None:
            words = f"original / ours >= {wanted:g}"
            yield Goal(name, words, f"{ratio:.2f}", ratio >= wanted)
        if name in AGAINST_PEERS:
            yield from _against_peers(results, cell)
        if name in MEMORY and "growth" in ours:
            words = f"memory growth <= {size(MEMORY[name])}"
            yield Goal(name, words, size(ours["growth"]), ours["growth"] <= MEMORY[name])
    yield from _loads(results)


def _against_peers(results: Results, cell: dict[str, Any]) -> Iterator[Goal]:
    model = cell["graph"].partition(".")[0]
    same = [
        other
        for other in results.cells
        if other["graph"].partition(".")[0] == model
        and all(other[key] == cell[key] for key in ("batch", "length", "mask"))
    ]
    ours = [time.median for other in same if (time := results.time(other, OURS))]
    peers = [best.time.median for other in same if (best := results.best_peer(other))]
    if ours and peers:
        ratio, wanted = min(peers) / min(ours), AGAINST_PEERS[cell["name"]]
        name = f"{model} {cell['batch']}x{cell['length']} {cell['mask']}, either export"
        words = f"best peer / ours >= {wanted:g}"
        yield Goal(name, words, f"{ratio:.2f}", ratio >= wanted)


def _loads(results: Results) -> Iterator[Goal]:
    for graph in results.data["graphs"]:
        ours, before = loads(results, graph, OURS), loads(results, graph, ORIGINAL)
        if ours is not None and before:
            ratio, words = ours / before, f"load <= {LOAD:g} times the original's"
            yield Goal(graph, words, f"{ratio:.2f}", ratio <= LOAD)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/model_goals.py MODELS.json")
    sys.stdout.write(page(list(goals(results_of(read(Path(sys.argv[1])))))))

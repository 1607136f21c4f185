"""What rewritten models are meant to reach, held against a run's results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .goals import Goal
from .stats import Results
from .tables import size

OURS, ORIGINAL = "rewritten", "original"
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


def against(result: dict[str, Any], other: dict[str, Any]) -> float | None:
    """Median over the rounds of other's time by result's: above 1, `result` is faster."""
    pairs = zip(result["turns"], other["turns"], strict=False)
    ratios = [theirs["median"] / ours["median"] for ours, theirs in pairs]
    return float(np.median(ratios)) if ratios else None


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


def loads(results: Results, graph: str, name: str) -> float | None:
    """Processor seconds that a candidate's file takes to load; None where there is none."""
    found = [
        cell["results"][name]["load"]
        for cell in results.cells
        if cell["graph"] == graph and "load" in cell["results"].get(name, {})
    ]
    return float(np.median(found)) if found else None


def _loads(results: Results) -> Iterator[Goal]:
    for graph in results.data["graphs"]:
        ours, before = loads(results, graph, OURS), loads(results, graph, ORIGINAL)
        if ours is not None and before:
            ratio, words = ours / before, f"load <= {LOAD:g} times the original's"
            yield Goal(graph, words, f"{ratio:.2f}", ratio <= LOAD)

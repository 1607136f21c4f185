"""What the project's default file is meant to reach, held against a run's results.

python benchmarks/goals.py benchmarks/results.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from onnx_attn.bench.measure.suite import read
from onnx_attn.bench.report.stats import (
    TINY_MICROSECONDS,
    Results,
    difference,
    geometric_mean,
    import_ratio,
    session_adds,
)
from onnx_attn.bench.report.tables import table

PARITY = 0.95
PARITY_LENGTH = 128
OVER_BARE = {"headline": 5.0, "true-masks": 7.0}
AUTO_OVER_DENSE = 4.0
# The host's noise: nothing below it counts as slower.
NOISE = 0.95
# (mode, batch) at T = 512, and T from 2,048: best peer / ours.
SPEED = {
    ("causal", 1, 512): 1.15,
    ("causal", 16, 512): 1.4,
    ("ragged", 16, 512): 1.4,
    ("ragged", 4, 2048): 1.5,
    ("causal ragged", 16, 512): 1.3,
}
LONG_CAUSAL = 2.0
MEAN = 1.6
MEMORY_BYTES = 64e6
# Four times the length: linear growth is 4, growth with the square 16.
GROWTH_PER_FOURFOLD = 8.0
SESSION_MICROSECONDS = 6.0
IMPORT_RATIO = 1.2


class Goal(NamedTuple):
    """One line of the table: what was wanted, what came, and whether that is enough.

    `at_bound` is the ratio that the two bare MatMuls alone would reach: a goal above it is out of
    reach on that machine.
    """

    what: str
    wanted: str
    got: str
    met: bool
    at_bound: str = ""


def goals(results: Results) -> list[Goal]:
    """Every goal that these results can judge."""
    found: list[Goal] = []
    for cell in results.cells:
        found += _of_cell(results, cell)
    return [*found, *_mean(results), *_memory(results), *_session(results), *_load(results)]


def _of_cell(results: Results, cell: dict[str, Any]) -> list[Goal]:
    names = {"headline": results.headline, "true-masks": "true-masks"}
    found: list[Goal] = []
    for role, name in names.items():
        time, ratio = results.time(cell, name), results.ratio(cell, name)
        if time is None or ratio is None:
            continue
        what = cell["name"] + (", fed [[True]]" if role == "true-masks" else "")
        if time.median < TINY_MICROSECONDS and _parity(cell):
            found += _tiny(results, cell, name, what, OVER_BARE[role])
            continue
        wanted = _wanted(cell)
        if wanted is not None:
            best, bound = results.best_peer(cell), results.bound(cell)
            at_bound = "" if best is None or bound is None else f"{best.time.median / bound:.2f}"
            wish = f"best peer / ours >= {wanted}"
            found.append(Goal(what, wish, f"{ratio:.2f}", ratio >= wanted, at_bound))
    if cell["mode"] == "causal front":
        ours, dense = results.time(cell, results.headline), results.time(cell, "dense")
        if ours is not None and dense is not None:
            ratio = dense.median / ours.median
            wanted = f"dense / ours >= {NOISE}"
            found.append(Goal(cell["name"], wanted, f"{ratio:.2f}", ratio >= NOISE))
    return found


def _tiny(
    results: Results, cell: dict[str, Any], name: str, what: str, allowed: float
) -> list[Goal]:
    compared = [(name, "bare", "the bare nodes", allowed)]
    if name == "auto":
        compared.append((name, "dense", "dense", AUTO_OVER_DENSE))
    found: list[Goal] = []
    for ours, other, label, limit in compared:
        if other not in cell["results"] or results.time(cell, other) is None:
            continue
        over = difference(cell["results"][ours], cell["results"][other])
        if over is not None:
            wanted = f"at most {limit:g} us over {label}"
            got = f"{over.median:+.1f} us"
            found.append(Goal(what, wanted, got, over.median <= limit))
    return found


def _parity(cell: dict[str, Any]) -> bool:
    return cell["mode"] in ("plain", "decode", "decode ragged") or cell["Tq"] <= PARITY_LENGTH


def _wanted(cell: dict[str, Any]) -> float | None:
    if cell["scores"] or cell["mode"] == "causal front":
        return None
    if _parity(cell):
        return PARITY
    if cell["mode"] == "causal" and cell["Tq"] >= 2048:
        return LONG_CAUSAL
    return SPEED.get((cell["mode"], cell["batch"], cell["Tq"]))


def _mean(results: Results) -> list[Goal]:
    modes = ("causal", "ragged", "causal ragged")
    ratios = [
        ratio
        for cell, ratio in results.ratios(results.headline)
        if cell["mode"] in modes and cell["Tq"] >= 512
    ]
    if not ratios:
        return []
    mean = geometric_mean(ratios)
    what = f"geometric mean of {len(ratios)} causal and ragged cells, T >= 512"
    return [Goal(what, f"best peer / ours >= {MEAN}", f"{mean:.2f}", mean >= MEAN)]


def _memory(results: Results) -> list[Goal]:
    found: list[Goal] = []
    grown: dict[tuple[str, int], float] = {}
    for entry in results.data.get("memory", []):
        result = entry["results"].get(results.headline, {})
        if "bytes" not in result:
            continue
        grown[entry["mode"], entry["Tq"]] = result["bytes"]
        if entry["Tq"] == 16384:
            got, met = f"{result['bytes'] / 1e6:.0f} MB", result["bytes"] <= MEMORY_BYTES
            wanted = f"memory growth <= {MEMORY_BYTES / 1e6:.0f} MB"
            found.append(Goal(entry["name"], wanted, got, met))
    for mode in ("plain", "causal"):
        short, long = grown.get((mode, 16384)), grown.get((mode, 65536))
        if short and long:
            what, ratio = f"{mode}, memory at T = 65,536 over 16,384", long / short
            wanted = f"<= {GROWTH_PER_FOURFOLD:g} (linear 4, squared 16)"
            found.append(Goal(what, wanted, f"{ratio:.1f}", ratio <= GROWTH_PER_FOURFOLD))
    return found


def _session(results: Results) -> list[Goal]:
    if "session" not in results.data:
        return []
    found = [
        Goal(
            f"session.run on 1x16x16x64, masks={masks!r}",
            f"at most {SESSION_MICROSECONDS:g} us over InferenceSession.run",
            f"{added:+.1f} us",
            added <= SESSION_MICROSECONDS,
        )
        for masks, added in session_adds(results.data).items()
    ]
    ratio = import_ratio(results.data)
    wanted = f"at most {IMPORT_RATIO} times import numpy, onnxruntime"
    found.append(Goal("import of AttentionSession", wanted, f"{ratio:.2f}", ratio <= IMPORT_RATIO))
    return found


def _load(results: Results) -> list[Goal]:
    if "load" not in results.data:
        return []
    errors = sum(entry["errors"] for entry in results.data["load"])
    return [Goal("load, 1 to 8 clients on one session", "no error", f"{errors}", errors == 0)]


def page(found: list[Goal]) -> str:
    """The goals as Markdown."""
    met = sum(goal.met for goal in found)
    rows = [
        [goal.what, goal.wanted, goal.got, "yes" if goal.met else "**no**", goal.at_bound]
        for goal in found
    ]
    header = ("what", "goal", "measured", "met", "at the bound")
    return (
        f"{met} of {len(found)} met. At the bound: the ratio if the two MatMuls were all there is. "
        "A goal above it is out of reach on that machine.\n\n" + table(header, rows) + "\n"
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/goals.py RESULTS.json")
    sys.stdout.write(page(goals(Results(read(Path(sys.argv[1]))))))

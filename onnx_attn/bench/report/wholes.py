"""Whole models of a benchmark run, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..wholes.models import JUDGED_BATCH, JUDGED_LENGTH, MASKS, TOLERANCE
from .stats import Results, time_of
from .tables import duration, size, table

OURS, ORIGINAL = "rewritten", "original"

# Rows of the short table for the front page.
SHORT = (
    "decoder_6_heads.ts 1x2048",
    "encoder.ts 8x512 tails",
    "encoder.dynamo 8x512 tails",
    "keras_attention 1x2048",
)


def alone(data: dict[str, Any]) -> bool:
    """Whether whole models are all that was measured."""
    return "models" in data and not {"cells", "memory", "session", "load"} & set(data)


def against(result: dict[str, Any], other: dict[str, Any]) -> float | None:
    """Median over the rounds of other's time by result's: above 1, `result` is faster."""
    pairs = zip(result["turns"], other["turns"], strict=False)
    ratios = [theirs["median"] / ours["median"] for ours, theirs in pairs]
    return float(np.median(ratios)) if ratios else None


def loads(results: Results, graph: str, name: str) -> float | None:
    """Processor seconds that a candidate's file takes to load; None where there is none."""
    found = [
        cell["results"][name]["load"]
        for cell in results.cells
        if cell["graph"] == graph and "load" in cell["results"].get(name, {})
    ]
    return float(np.median(found)) if found else None


def results_of(data: dict[str, Any]) -> Results:
    """The whole models' cells and candidates, asked like any others."""
    return Results({**data, **data["models"]})


def named(results: Results, cell: dict[str, Any]) -> str:
    """Model, batch x length and mask, for readers."""
    ragged = "" if cell["mask"] == "none" else ", ragged"
    label = results.data["labels"][cell["graph"]]
    return f"{label}, {cell['batch']}x{cell['length']}{ragged}"


def fastest(result: dict[str, Any]) -> float:
    """Microseconds of the fastest run of all turns."""
    return min(turn["fastest"] for turn in result["turns"])


def best_peer(results: Results, cell: dict[str, Any]) -> str | None:
    """The fastest right one of the peers, whichever of a model's two exports they began with."""
    best = results.best_peer(cell)
    return None if best is None else best.name


def section(data: dict[str, Any]) -> str:
    """All tables."""
    results = results_of(data)
    parts = [_speed(results), _memory(results), _load(results), _masks(results)]
    parts.append(_reasons(results))
    heading = (
        "## Whole models\n\n"
        "Made by `onnx-attn bench --models --output benchmarks/models.json`; `--report` takes it "
        "beside the other file.\n\n"
        "Models as exporters write them, made small from configurations (6 layers, 384 wide; "
        "Keras: 4 blocks, 256 wide), their weights drawn at random; what `onnx-attn rewrite "
        "--keep-all` makes of them; and what onnxruntime.transformers' optimizer (told the "
        "model's type and heads) and onnxscript's `optimize_for_ort` make of them. Sizes are "
        "batch x tokens; rows of ragged batches are 25, 50, 75 and 100 % full in turn."
    )
    return "\n\n".join([heading, *(part for part in parts if part)])


def short(data: dict[str, Any]) -> str:
    """A few rows: time and memory before and after, and the best peer."""
    results = results_of(data)
    cells = [cell for cell in results.cells if cell["name"] in SHORT] or results.cells
    header = ("model", "original", "ours", "times faster", "best peer", "memory before", "ours")
    rows: list[list[str]] = []
    for cell in cells:
        found = cell["results"]
        ours, before = found[OURS], found[ORIGINAL]
        peer = best_peer(results, cell)
        ratio = against(ours, before)
        rows.append(
            [
                named(results, cell),
                _time(before),
                _time(ours),
                "" if ratio is None else f"**{ratio:.2f}**",
                "" if peer is None else f"{_time(found[peer])}, {results.label(peer)}",
                _growth(before),
                _growth(ours),
            ]
        )
    return table(header, rows)


def lines(data: dict[str, Any]) -> list[str]:
    """A line for each cell, to be shown when a run ends."""
    if "models" not in data:
        return []
    results = results_of(data)
    return [f"{named(results, cell)}: {_words(results, cell)}" for cell in results.cells]


def _words(results: Results, cell: dict[str, Any]) -> str:
    words: list[str] = []
    for name, result in cell["results"].items():
        ratio = against(result, cell["results"][ORIGINAL])
        beside = "" if ratio is None or name == ORIGINAL else f" ({ratio:.2f} times)"
        words.append(f"{results.label(name)} {_time(result)}{beside} +{_growth(result)}")
    return "; ".join(words)


def _time(result: dict[str, Any]) -> str:
    time = time_of(result)
    if time is None or result["status"] == "failed":
        return "failed" if result["status"] == "failed" else "-"
    shown = f"{duration(time.median)} ({duration(fastest(result))})"
    return f"[{shown}]" if result["status"] == "differs" else shown


def _growth(result: dict[str, Any]) -> str:
    return size(result["growth"]) if "growth" in result else "-"


def _names(results: Results) -> list[str]:
    return list(results.data["models"]["candidates"])


def _speed(results: Results) -> str:
    names = _names(results)
    rows: list[list[str]] = []
    for cell in results.cells:
        found = cell["results"]
        row = [named(results, cell)]
        for name in names:
            ratio = None if name == ORIGINAL else against(found[name], found[ORIGINAL])
            bold = ratio is not None and ratio >= 1 and name == OURS
            shown = "" if ratio is None else f" **{ratio:.2f}**" if bold else f" {ratio:.2f}"
            row.append(_time(found[name]) + shown)
        rows.append(row)
    header = ["model, batch x tokens", *(results.label(name) for name in names)]
    return (
        "### Time\n\n"
        "Medians, the fastest run in brackets; then how many times the original's speed, the "
        "median over turns. In square brackets: other numbers than the original's. A dash: there "
        "is no such file. Reasons below.\n\n" + table(header, rows)
    )


def _memory(results: Results) -> str:
    names = _names(results)
    rows = [
        [named(results, cell), *(_growth(cell["results"][name]) for name in names)]
        for cell in results.cells
    ]
    header = ["model, batch x tokens", *(results.label(name) for name in names)]
    return (
        "### Memory of whole models\n\n"
        "What a first run adds to the loaded process at its highest, beyond the outputs; a "
        "fresh process each.\n\n" + table(header, rows)
    )


def _load(results: Results) -> str:
    rows: list[list[str]] = []
    names = _names(results)
    for graph, label in results.data["labels"].items():
        made = results.data["graphs"][graph]
        row = [label]
        for name in names:
            load = loads(results, graph, name)
            seconds = "-" if load is None else f"{load:.2f} s"
            file = f", {size(made[name]['bytes'])}" if "bytes" in made[name] else ""
            row.append(seconds + file)
        rows.append(row)
    header = ["model", *(results.label(name) for name in names)]
    return "### Loading\n\nProcessor time of making an InferenceSession, and the file.\n\n" + table(
        header, rows
    )


def _masks(results: Results) -> str:
    rows: list[list[str]] = []
    names = [name for name in _names(results) if name != ORIGINAL]
    for graph, label in results.data["labels"].items():
        found = results.data["graphs"][graph]
        for mask in MASKS:
            if mask not in found[ORIGINAL].get("masks", {}):
                continue
            shown = [_difference(found[name].get("masks", {}).get(mask)) for name in names]
            rows.append([label, mask, *shown])
    header = ["model", "mask", *(results.label(name) for name in names)]
    return (
        "### The numbers under each mask\n\n"
        f"Largest difference to the original's outputs at {JUDGED_BATCH}x{JUDGED_LENGTH}, as a "
        f"share of its largest number; bold: more than {TOLERANCE:g}.\n\n" + table(header, rows)
    )


def _difference(found: float | str | None) -> str:
    if found is None:
        return "-"
    if isinstance(found, str):
        return "**failed**"
    return f"{found:.0e}" if found <= TOLERANCE else f"**{found:.0e}**"


def _reasons(results: Results) -> str:
    found: dict[tuple[str, str], list[str]] = {}
    for name, place, reason in _refusals(results):
        found.setdefault((name, reason), []).append(place)
    lines = [
        f"* {results.label(name)}: {reason} ({', '.join(dict.fromkeys(places))})"
        for (name, reason), places in found.items()
    ]
    missing = results.data["models"]["missing"]
    lines += [f"* {label}: missing: {reason}" for label, reason in missing.items()]
    return "### What failed, and why\n\n" + "\n".join(lines) if lines else ""


def _refusals(results: Results) -> Iterator[tuple[str, str, str]]:
    for graph, candidates in results.data["graphs"].items():
        label = results.data["labels"][graph]
        for name, about in candidates.items():
            if "reason" in about:
                yield name, label, about["reason"]
            for mask, apart in about.get("masks", {}).items():
                if isinstance(apart, str):
                    yield name, f"{label}, {mask}", apart
    for cell in results.cells:
        for name, result in cell["results"].items():
            if result["status"] != "ok":
                yield name, named(results, cell), result["reason"]

"""Markdown tables of a benchmark run, and those of all that is not a cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ...markdown import markdown_table
from .stats import Results, import_ratio, session_adds


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its first column left, the others right."""
    return markdown_table(header, rows, numbers=True)


def duration(microseconds: float) -> str:
    """Three digits with a unit."""
    if microseconds < 999.5:
        return f"{microseconds:.3g} us"
    if microseconds < 999.5e3:
        return f"{microseconds / 1e3:.3g} ms"
    return f"{microseconds / 1e6:.3g} s"


def size(count: float) -> str:
    """Bytes in MB or GB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def memory(results: Results) -> str:
    """Growth of each candidate by length."""
    names = [name for name in results.data["candidates"] if name != "true-masks"]
    names = [name for name in names if name not in results.names("bound")]
    rows: list[list[str]] = []
    for entry in results.data["memory"]:
        shown: list[str] = []
        for name in names:
            result = entry["results"].get(name)
            if result is None:
                shown.append("missing")
            elif "bytes" in result:
                shown.append(size(result["bytes"]))
            else:
                shown.append("-" if result.get("status", "cannot") == "cannot" else "failed")
        rows.append([entry["name"], *shown])
    header = ["cell", *(results.label(name) for name in names)]
    return (
        "## Memory\n\n"
        "Growth of peak memory over the loaded and warmed process, beyond inputs and outputs; a "
        "fresh process each. A dash: not run (it would take over 12 GB, or the "
        "length is for ours only).\n\n" + table(header, rows)
    )


def session(data: dict[str, Any]) -> str:
    """What AttentionSession adds to a run and to an import."""
    rows: list[list[str]] = []
    added = session_adds(data)
    for masks, found in data["session"]["run"].items():
        bare, ours = (float(np.median([p[name] for p in found])) for name in ("bare", "ours"))
        rows.append([f"masks={masks!r}", duration(bare), duration(ours), f"{added[masks]:+.1f} us"])
    header = ("1x16x16x64", "InferenceSession.run", "AttentionSession.run", "added")
    imports = [
        [name, duration(float(np.median(found)) * 1e6)]
        for name, found in data["session"]["imports"].items()
    ]
    return (
        "## The session's own cost\n\n"
        + table(header, rows)
        + "\n\n"
        + table(("import of", "median"), imports)
        + f"\n\nImport ratio: {import_ratio(data):.2f}."
    )


def load(data: dict[str, Any]) -> str:
    """Requests and latency by number of clients."""
    rows = [
        [
            entry["name"],
            str(entry["clients"]),
            f"{entry['per_second']:,.0f}",
            duration(entry["p50"]),
            duration(entry["p99"]),
            str(entry["errors"]),
        ]
        for entry in data["load"]
    ]
    header = ("cell", "clients", "requests per second", "p50", "p99", "errors")
    return (
        "## Load\n\n"
        "Threads on one `AttentionSession`, each asking again as soon as it is answered "
        f"(`onnx-attn bench --load`); {data['settings']['threads']} threads inside an operator.\n\n"
        + table(header, rows)
    )

"""The Markdown of a benchmark run."""

from __future__ import annotations

from typing import Any

from . import wholes
from .stats import (
    FAR,
    TINY_MICROSECONDS,
    Results,
    Time,
    difference,
    geometric_mean,
    is_all_far,
    is_far,
    time_of,
    verdict,
)
from .tables import duration, load, memory, session, table

# Marks times for which there was no turn with cores near each other.
FAR_MARK = "\N{DAGGER}"
# Rows of the short table for the front page.
SHORT = (
    "plain 1x16x16x64",
    "plain 16x512x512x64",
    "plain 1x4096x4096x64",
    "decode 64x1x50x512",
    "decode ragged 64x1x50x512",
    "causal 1x512x512x64",
    "causal 16x512x512x64",
    "causal 4x2048x2048x64",
    "causal 1x4096x4096x64",
    "causal 1x16384x16384x64",
    "ragged 16x512x512x64",
    "ragged 4x2048x2048x64",
    "causal ragged 16x512x512x64",
    "causal ragged 4x2048x2048x64",
)


def report(data: dict[str, Any]) -> str:
    """The whole page."""
    results = Results(data)
    if wholes.alone(data):
        return f"{wholes.section(data)}\n\n{_made(results)}\n"
    parts = [_heading(results)]
    if results.cells:
        parts += [_ours(results), far_table(results), _everyone(results), _tiny(results)]
    if "memory" in data:
        parts.append(memory(results))
    if "session" in data:
        parts.append(session(data))
    if "load" in data:
        parts.append(load(data))
    if "models" in data:
        parts.append(wholes.section(data))
    parts += [_reasons(results), _method(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def short(data: dict[str, Any]) -> str:
    """The short table: a few cells, ours beside the best peer."""
    results = Results(data)
    if wholes.alone(data):
        return f"{wholes.short(data)}\n\n{_where(results)}\n"
    wanted = [cell for cell in results.cells if cell["name"] in SHORT] or results.cells
    header = ("cell", "ours", "best peer", "ours is")
    rows: list[list[str]] = []
    for cell in wanted:
        time, best = results.time(cell, results.headline), results.best_peer(cell)
        if time is not None and best is not None:
            words = verdict(best.time.median / time.median, results.label(best.name))
            rows.append([cell["name"], duration(time.median), duration(best.time.median), words])
    return table(header, rows) + "\n\n" + _where(results) + "\n"


def _where(results: Results) -> str:
    machine, data = results.data["machine"], results.data
    caches = ", ".join(f"{level} {kept}" for level, kept in machine["caches"].items())
    vectors = ", ".join(machine["vector_units"])
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    return (
        f"{machine['cpu']}, {data['settings']['threads']} threads ({vectors}; caches {caches}), "
        f"{machine['system']}, Python {machine['python']}; {versions}."
    )


def _heading(results: Results) -> str:
    data = results.data
    quick = (
        " This was a `--quick` run: small cells, few turns." if data["settings"]["quick"] else ""
    )
    flags = " --quick" if data["settings"]["quick"] else ""
    return (
        "# Benchmarks\n\n"
        "Made by these two commands (peers come with `pip install 'onnx_attn[bench]'`):\n\n"
        "```\n"
        f"onnx-attn bench{flags} --output benchmarks/results.json\n"
        "onnx-attn bench --report benchmarks/results.json > benchmarks/README.md\n"
        "```\n\n"
        f"{_made(results)}{quick}"
    )


def _made(results: Results) -> str:
    data = results.data
    took = sum(data["took_seconds"].values())
    return (
        f"{data['made']}, {took / 60:.0f} minutes. {_where(results)} "
        f"Load average before: {data['machine']['load_before']}."
    )


def _ours(results: Results) -> str:
    rows: list[list[str]] = []
    for cell in results.cells:
        time, best = results.time(cell, results.headline), results.best_peer(cell)
        masked, ratio = results.time(cell, "true-masks"), results.ratio(cell, results.headline)
        bound = results.bound(cell)
        rows.append(
            [
                cell["name"],
                "" if time is None else _timed(cell, results.headline, time),
                "" if masked is None else duration(masked.median),
                "" if best is None else _timed(cell, best.name, best.time),
                "" if best is None else results.label(best.name),
                "" if ratio is None else f"**{ratio:.2f}**" if ratio >= 1 else f"{ratio:.2f}",
                "" if bound is None or time is None else f"{100 * bound / time.median:.0f} %",
            ]
        )
    header = (
        "cell: mode, batch x Tq x Tv x dim",
        f"ours, {results.headline}",
        "ours, fed [[True]]",
        "best peer",
        "",
        "best peer / ours",
        "of the bound",
    )
    return (
        "## Ours and the best peer\n\n"
        "Medians with quartiles in brackets; a ratio above 1 (bold) means ours is faster. The "
        "bound is the time of the two bare MatMuls times the share of the scores that count: it "
        f"is what softmax, masks and launching leave. {FAR_MARK} all turns were among those of the "
        "next table: compare with care.\n\n"
        f"{_wins(results)}\n\n" + table(header, rows)
    )


def _timed(cell: dict[str, Any], name: str, time: Time) -> str:
    mark = f" {FAR_MARK}" if is_all_far(cell["results"][name]) else ""
    return f"{duration(time.median)}{mark} ({_spread(time)})"


def far_table(results: Results) -> str:
    """The turns in which cores exchanged data slowly."""
    found = [result for cell in results.cells for result in cell["results"].values()]
    turns = [turn for result in found for turn in result["turns"]]
    far = sum(is_far(turn) for turn in turns)
    if not far:
        return ""
    header = (
        "cell",
        f"ours, {results.headline}",
        "ours, dense",
        "best peer",
        "",
        "best peer / ours",
    )
    rows: list[list[str]] = []
    for cell in results.cells:
        time, best = (
            results.time(cell, results.headline, far=True),
            results.best_peer(cell, far=True),
        )
        if time is None or best is None:
            continue
        dense, ratio = results.time(cell, "dense", far=True), best.time.median / time.median
        rows.append(
            [
                cell["name"],
                duration(time.median),
                "" if dense is None else duration(dense.median),
                duration(best.time.median),
                results.label(best.name),
                f"**{ratio:.2f}**" if ratio >= 1 else f"{ratio:.2f}",
            ]
        )
    return (
        "## While cores exchanged data slowly\n\n"
        f"In {far} of {len(turns)} turns the machine's cores exchanged data slowly; the likely "
        "cause is a host that moves a virtual machine's cores away from a cache they share. All "
        "other tables leave these turns out where there are others. Here they are by themselves: "
        "what a core keeps to itself takes no longer, what changes hands takes twice as long.\n\n"
        + table(header, rows)
    )


def _spread(time: Any) -> str:
    return f"{duration(time.q1)} to {duration(time.q3)}"


def _wins(results: Results) -> str:
    ratios = list(results.ratios(results.headline))
    if not ratios:
        return "No cell has both ours and a peer."
    won = [cell for cell, ratio in ratios if ratio >= 1]
    lost = [
        f"{cell['name']} ({ratio:.2f})"
        for cell, ratio in sorted(ratios, key=lambda it: it[1])
        if ratio < 1
    ]
    words = f"Ours is the fastest in {len(won)} of {len(ratios)} cells."
    if lost:
        words += f" Slower than the best peer in: {', '.join(lost)}."
    means: list[str] = []
    for peer in results.names("peer"):
        pairs = [
            (theirs.median, ours.median)
            for cell in results.cells
            if (theirs := results.time(cell, peer))
            and (ours := results.time(cell, results.headline))
        ]
        if pairs:
            mean = geometric_mean([theirs / ours for theirs, ours in pairs])
            means.append(f"{results.label(peer)} {mean:.2f} ({len(pairs)})")
    return words + (
        " Geometric mean of peer / ours over the cells a peer can do (their number): "
        + ", ".join(means)
        + "."
    )


def _everyone(results: Results) -> str:
    names = list(results.data["candidates"])
    rows = [
        [cell["name"], *(_shown(cell["results"].get(name)) for name in names)]
        for cell in results.cells
    ]
    header = ["cell", *(results.label(name) for name in names)]
    return (
        "## Everyone\n\n"
        "Medians. In brackets: timed, but other numbers than Keras's. A dash: cannot do the cell. "
        "Reasons below.\n\n" + table(header, rows)
    )


def _shown(result: dict[str, Any] | None) -> str:
    if result is None:
        return "missing"
    time = time_of(result)
    if result["status"] == "differs":
        return "differs" if time is None else f"({duration(time.median)})"
    if time is None or result["status"] == "failed":
        return "failed" if result["status"] == "failed" else "-"
    return duration(time.median)


def _tiny(results: Results) -> str:
    rows: list[list[str]] = []
    for cell in results.cells:
        bare = cell["results"].get("bare")
        bare_time = results.time(cell, "bare")
        if bare is None or bare_time is None or bare_time.median >= TINY_MICROSECONDS:
            continue
        for name, result in cell["results"].items():
            over = difference(result, bare) if result["status"] == "ok" else None
            if name != "bare" and over is not None and name not in results.names("bound"):
                spread = f"{over.q1:+.1f} to {over.q3:+.1f}"
                rows.append([cell["name"], results.label(name), f"{over.median:+.1f} us", spread])
    if not rows:
        return ""
    processes = results.data["settings"]["processes"]
    header = ("cell", "candidate", "over the bare nodes", "quartiles")
    return (
        f"## Under {TINY_MICROSECONDS:.0f} us\n\n"
        "Here nothing but launching nodes counts, and the same file differs from process to "
        f"process: differences to the bare nodes, in pairs of processes, median of {processes}.\n\n"
        + table(header, rows)
    )


def _reasons(results: Results) -> str:
    lines: list[str] = []
    for name, about in results.data["candidates"].items():
        if about["missing"]:
            lines.append(f"* {about['label']}: missing: {about['missing']}")
        by_reason: dict[str, list[str]] = {}
        for cell in results.cells:
            result = cell["results"].get(name)
            if result is not None and result["status"] != "ok":
                reason = f"{result['status']}: {result['reason']}"
                by_reason.setdefault(reason, []).append(cell["name"])
        lines += [
            f"* {about['label']}: {reason} ({', '.join(cells)})"
            for reason, cells in by_reason.items()
        ]
    return "## Who could not, and why\n\n" + "\n".join(lines) if lines else ""


def _method(results: Results) -> str:
    kept = results.data["settings"]
    paused = " All but the one that is timed are stopped." if kept["others_paused"] else ""
    return (
        "## How it is measured\n\n"
        f"Every candidate has a process of its own and {kept['threads']} threads. They take "
        f"turns of {kept['seconds']} s in a new order each round: {max(1, kept['rounds'] - 1)} "
        f"rounds in each of {kept['processes']} generations of processes for the tiny cells "
        f"(16x16 and decode), {kept['rounds']} rounds in each of "
        f"{min(kept['big_processes'], kept['processes'])} for the others, one round where a score "
        f"matrix is over 512 MB.{paused} All get the same float32 inputs, "
        "64-byte aligned in every other generation and 16 bytes off in the rest. "
        "Before it is timed, a result is compared with the reference in float64: a difference "
        f"above {kept['tolerance']:g} of the largest number is no result of the cell. "
        "Masks come with the batch, as bool `[batch, Tv]`: what a candidate makes of them is "
        "timed; constant causal triangles of torch are not. Before and after each turn runs a "
        "small graph in which threads exchange half of their data: turns in which all threads take "
        f"more than {FAR:g} of one thread's time have a table of their own, and up to as many "
        "rounds follow while a candidate has no others. OpenVINO computes in float32 (by its own "
        "setting); Keras on TensorFlow runs under `tf.function`. Ragged rows are 25, 50, 75 and "
        "100 % full in turn, front padding has the same lengths at the end of the row."
    )

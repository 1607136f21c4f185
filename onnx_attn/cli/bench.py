"""`onnx-attn bench`: measure, or write the tables of a measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ..errors import InputError
from ..file.disk import write_text
from .app import command, console


@command(
    "bench",
    "onnx-attn bench --quick",
    "onnx-attn bench --cell 'causal 16x512' --candidate auto --candidate torch",
    "onnx-attn bench --load",
    "onnx-attn bench --models --cell 'encoder'",
    "onnx-attn bench --output benchmarks/results.json",
    "onnx-attn bench --report benchmarks/results.json > benchmarks/README.md",
)
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Small cells, a minute or two.")] = False,
    cell: Annotated[
        list[str] | None, typer.Option(help="Only cells whose name contains this; repeatable.")
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(help="Only this candidate, or your own as module:function; repeatable."),
    ] = None,
    cells: Annotated[bool, typer.Option("--cells", help="Only the cells.")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Only peak memory.")] = False,
    session: Annotated[bool, typer.Option("--session", help="Only the session's cost.")] = False,
    load: Annotated[bool, typer.Option("--load", help="Only clients under load.")] = False,
    models: Annotated[
        bool, typer.Option("--models", help="Only whole models, rewritten by us and by peers.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of every candidate; all granted ones if not given."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes of each candidate for tiny cells; 8, quick 2."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Turns in each process; 3, quick 2.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds of a turn; 0.1, quick 0.02.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write results here as JSON, and tables beside it as .md."
        ),
    ] = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(
            help="Measure nothing: print the tables of these results; whole models may follow."
        ),
    ] = None,
    short: Annotated[
        bool, typer.Option("--short", help="With --report: only the short table.")
    ] = False,
    listing: Annotated[
        bool, typer.Option("--list", help="Measure nothing: list cells and candidates.")
    ] = False,
) -> None:
    """Time the exported files against other ways to compute the same attention.

    Every candidate runs in its own process and takes turns with the others; its results are
    checked before they are timed. Ends with code 1 if one of our own files is wrong.
    """
    from ..bench.measure import suite
    from ..bench.measure.turns import Turns
    from ..bench.report.page import report as tables
    from ..bench.report.page import short as short_table
    from ..bench.wholes import measure
    from ..device.threads import available_threads

    if report:
        pages = [(short_table if short else tables)(suite.read(path)) for path in report]
        typer.echo("\n".join(pages), nl=False)
        return
    if models:
        chosen, who = [], []
        wholes = measure.choose(cell or [], quick=quick)
        makers = measure.choose_candidates(candidate or [])
    else:
        chosen = suite.choose_cells(cell or [], quick=quick)
        who, wholes, makers = suite.choose_candidates(candidate or []), [], []
    if listing:
        _list([*chosen, *wholes], [*who, *makers])
        return
    flags = {"cells": cells, "memory": memory, "session": session, "load": load, "models": models}
    narrowed = bool(cell or candidate)
    default = ["cells"] if narrowed or quick else list(suite.PARTS)
    request = suite.Request(
        parts=[part for part, wanted in flags.items() if wanted] or default,
        cells=chosen,
        candidates=who,
        wholes=wholes,
        whole_candidates=makers,
        turns=Turns(
            threads=threads or available_threads(),
            processes=processes or (2 if quick else 8),
            rounds=rounds or (2 if quick else 3),
            seconds=seconds or (0.02 if quick else 0.1),
        ),
        quick=quick,
        load_seconds=0.3 if quick else 1.0,
    )
    if output is not None and not output.parent.is_dir():
        raise InputError(f"--output: there is no folder {output.parent}")
    data = _measure(request, output)
    _show(data)
    if output is not None:
        console.print(f"wrote {output} and {output.with_suffix('.md')}", highlight=False)
    wrong = suite.wrong_results(data)
    for line in wrong:
        console.print(f"[bold red]wrong:[/bold red] {line}", highlight=False, markup=True)
    if wrong:
        raise typer.Exit(1)


def _measure(request: Any, output: Path | None) -> dict[str, Any]:
    from ..bench.measure import suite

    columns = (
        SpinnerColumn(),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    # A redraw is work on a core that is being measured.
    with Progress(*columns, console=console, refresh_per_second=1) as bar:
        task = bar.add_task("starting", total=request.steps)
        return suite.run(
            request,
            lambda what: bar.update(task, advance=1, description=what),
            lambda data: None if output is None else _write(output, data),
        )


def _write(path: Path, data: dict[str, Any]) -> None:
    from ..bench.report.page import report as tables

    write_text(path, json.dumps(data, separators=(",", ":")) + "\n")
    write_text(path.with_suffix(".md"), tables(data))


def _show(data: dict[str, Any]) -> None:
    from ..bench.report.stats import Results, verdict
    from ..bench.report.tables import duration
    from ..bench.report.wholes import lines as whole_lines

    results = Results(data)
    if results.cells:
        shown = Table("cell", f"ours, {results.headline}", "best peer", "ours is")
        for cell in results.cells:
            time_, best = results.time(cell, results.headline), results.best_peer(cell)
            ratio = results.ratio(cell, results.headline)
            shown.add_row(
                cell["name"],
                "" if time_ is None else duration(time_.median),
                "" if best is None else duration(best.time.median),
                "" if best is None or ratio is None else verdict(ratio, results.label(best.name)),
            )
        console.print(shown)
    for line in whole_lines(data):
        console.print(line, highlight=False, markup=False)
    for name, about in data["candidates"].items():
        if about["missing"]:
            console.print(f"missing: {name}: {about['missing']}", highlight=False, markup=False)
    for part, took in data["took_seconds"].items():
        console.print(f"{part}: {took} s", highlight=False)


def _list(cells: Any, candidates: Any) -> None:
    shown = Table("cell", "runs in")
    for cell in cells:
        shown.add_row(cell.name, "more processes" if cell.tiny else "")
    console.print(shown)
    who = Table("candidate", "", "kind", "missing")
    for candidate in candidates:
        label = candidate.label.replace("[", r"\[")
        who.add_row(candidate.name, label, candidate.kind, candidate.missing or "")
    console.print(who)

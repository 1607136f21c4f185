"""`onnx-attn doctor`: what this machine runs attention files with, and what to mend."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..doctor import Report, examine
from .app import command, console, write_json


@command("doctor", "onnx-attn doctor", "onnx-attn doctor --json")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Show versions, devices that really start, CUDA libraries and threads; say what to mend.

    Exit code 0: healthy (CPU only is healthy); 1: something to mend.
    """
    report = examine()
    if as_json:
        write_json(report.as_dict())
    else:
        _show(report)
    if not report.healthy:
        raise typer.Exit(1)


def _show(report: Report) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, version in report.versions.items():
        table.add_row(name, version)
    table.add_row("providers built in", ", ".join(report.providers))
    for start in report.starts:
        verdict = "[green]runs[/green]" if start.starts else "[red]does not run[/red]"
        table.add_row(start.device, verdict)
    if not report.cuda["starts"]:
        table.add_row("cuda", "does not start: " + escape(report.cuda["missing"]))
    table.add_row("CUDA of the wheel", str(report.cuda["built_for"] or "none: a CPU-only build"))
    table.add_row("CUDA of the driver", report.cuda["driver"] or "no driver")
    for name, path in report.cuda["libraries"].items():
        table.add_row(name, path or "not found")
    threads = report.threads
    table.add_row(
        "CPU threads",
        f"{threads['used']} (affinity {threads['affinity']}, "
        f"cgroup quota {'none' if threads['cgroup'] is None else threads['cgroup']})",
    )
    console.print(table)
    console.print()
    if report.healthy:
        where = ", ".join(start.device for start in report.starts)
        console.print(f"[bold green]healthy[/bold green]: files run on {where}")
    for problem in report.problems:
        console.print("[bold red]to mend[/bold red]:", escape(problem.what), soft_wrap=True)
        console.print(f"  {problem.fix}", soft_wrap=True, markup=False)

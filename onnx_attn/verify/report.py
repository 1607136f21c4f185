"""A verification as a table: models by runtimes, the largest error in each cell."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_lowercase

from ..markdown import markdown_table
from ..version import __version__
from .judge import Cell
from .run import Verification

WORDS = {"miss": "miss", "failed": "fails", "limit": "no", "missing": "not there"}


@dataclass(frozen=True)
class Table:
    """Head and rows of text, the cell behind each, and the notes that the marks refer to."""

    head: list[str]
    rows: list[list[str]]
    cells: list[list[Cell]]
    notes: list[str]


def make_table(result: Verification) -> Table:
    """One row per model: its name, one cell per runtime, its tolerance.

    A cell without a number, and one out of tolerance, carries the mark of a note that says why.
    """
    notes: dict[str, str] = {}

    def mark(runtime: str, why: str) -> str:
        return notes.setdefault(f"{runtime}: {why}", _letters(len(notes)))

    rows: list[list[str]] = []
    cells: list[list[Cell]] = []
    for model in result.models:
        cells.append([result.cells[model.path, runtime.name] for runtime in result.runtimes])
        texts: list[str] = []
        for runtime, cell in zip(result.runtimes, cells[-1], strict=True):
            number = "" if cell.error is None or cell.status == "limit" else f"{cell.error:.1e}"
            if cell.status == "pass":
                texts.append(number)
            else:
                text = f"{WORDS[cell.status]} {number}".rstrip()
                texts.append(f"{text} ({mark(runtime.title, cell.why)})")
        rows.append([model.name, *texts, str(model.tolerance)])
    head = ["model", *(runtime.title for runtime in result.runtimes), "tolerance"]
    return Table(head, rows, cells, [f"({letter}) {text}" for text, letter in notes.items()])


def _letters(number: int) -> str:
    return (
        ascii_lowercase[number]
        if number < 26
        else f"{_letters(number // 26 - 1)}{_letters(number % 26)}"
    )


def results_markdown(result: Verification) -> str:
    """The table for models/README.md."""
    table = make_table(result)
    versions = [
        result.versions.get(runtime.name, "not there").split(",")[0] for runtime in result.runtimes
    ]
    head = [table.head[0]]
    head += [f"{title} {v}" for title, v in zip(table.head[1:-1], versions, strict=True)]
    rows = [[f"[{row[0]}]({row[0]}/)", *row[1:]] for row in table.rows]
    body = markdown_table([*head, table.head[-1]], rows)
    return "\n".join([body, "", *(f"{note}  " for note in table.notes)]).rstrip()


VERSIONS_HEAD = ["onnx_attn", "opset", "IR", "oldest ONNX Runtime", "tested with"]


def versions_markdown(result: Verification, earlier: str) -> str:
    """The versions table with a row for this version; rows of others in `earlier` stay."""
    rows = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in earlier.splitlines()
    ]
    kept = [row for row in rows[2:] if len(row) == len(VERSIONS_HEAD) and row[0] != __version__]
    opsets = sorted({str(model.opset) for model in result.models})
    irs = sorted({str(model.ir_version) for model in result.models})
    tested = [
        f"{runtime.title} {result.versions[runtime.name]}"
        for runtime in result.runtimes
        if runtime.name in result.versions
    ]
    oldest = result.versions.get("oldest-onnxruntime", "not run")
    row = [__version__, ", ".join(opsets), ", ".join(irs), oldest, "; ".join(tested)]
    return markdown_table(VERSIONS_HEAD, [row, *kept])

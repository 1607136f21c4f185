"""Sets of examples/batch, its scripts as child processes, and what they must write."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import children

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "batch"


def example(
    script: str,
    *arguments: str | Path,
    code: int = 0,
    seconds: float = 60,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """A script of the example in a process of its own."""
    command = (sys.executable, EXAMPLE / script, *arguments)
    return children.run(*command, code=code, seconds=seconds, environment=environment)


def check_written(out: Path, plain: Path) -> None:
    """Every row of the plain loop once, with its bits; rows may stand in another order."""
    wanted, got = (pq.read_table(folder).sort_by("id") for folder in (plain, out))
    assert Counter(got["id"].to_pylist()) == Counter(wanted["id"].to_pylist())
    assert _numbers(got["output"]).equals(_numbers(wanted["output"])), "other bits"


def _numbers(column: pa.ChunkedArray) -> pa.Array:
    """As list<list<float>>: engines write the inner lists by other types."""
    return column.combine_chunks().cast(pa.list_(pa.list_(pa.float32())))


def write_with_a_null(source: Path, target: Path, row: int) -> str:
    """A copy of a Parquet file in which a vector of one row's `value` is null; the row's id."""
    table = pq.read_table(source)
    value = table["value"].to_pylist()
    value[row][3] = None
    column = pa.array(value, pa.list_(pa.list_(pa.float32())))
    table = table.set_column(table.column_names.index("value"), "value", column)
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, target)
    return table["id"][row].as_py()

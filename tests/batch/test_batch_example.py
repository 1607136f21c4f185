"""examples/batch without an engine: the set, the loop, a run that goes on where one stopped."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_sets import example, write_with_a_null
from onnx_attn.reference import attention

ROWS, FILES = 120, 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batch")
    example("make_data.py", folder / "data", "--rows", str(ROWS), "--files", str(FILES))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of the set."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_loop_writes_a_file_for_a_file_with_the_numbers_of_the_reference(folder: Path) -> None:
    done = example("plain.py", folder / "data", folder / "out", "--rows", "16")
    assert done.stdout.splitlines()[-1] == f"{ROWS} rows computed"
    assert re.search(r"3/3  part-00002.parquet  120 rows  \d+ rows/s", done.stdout)
    assert names(folder / "out") == names(folder / "data")
    given, got = (pq.read_table(folder / name) for name in ("data", "out"))
    assert got["id"].equals(given["id"])
    for row in range(0, ROWS, 7):
        query, value = (np.array(given[name][row].as_py())[None] for name in ("query", "value"))
        wanted, _ = attention(query, value, scale=0.125)
        np.testing.assert_allclose(got["output"][row].as_py(), wanted[0], rtol=1e-5, atol=2e-6)


def test_a_second_run_computes_only_what_is_missing(folder: Path) -> None:
    out = folder / "out"
    example("plain.py", folder / "data", out)
    whole = pq.read_table(out)
    (out / "part-00001.parquet").unlink()
    kept = {name: (out / name).stat().st_mtime_ns for name in names(out)}
    done = example("plain.py", folder / "data", out)
    assert "2 of 3 files are there already" in done.stdout
    assert done.stdout.splitlines()[-1] == f"{ROWS // FILES} rows computed"
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert pq.read_table(out).equals(whole)
    assert example("plain.py", folder / "data", out).stdout.endswith("\n0 rows computed\n")


def test_a_refused_row_is_one_line_and_leaves_whole_files_alone(folder: Path) -> None:
    bad = folder / "data" / "part-00001.parquet"
    row = write_with_a_null(bad, bad, 30)
    done = example("plain.py", folder / "data", folder / "out", "--rows", "16", code=2)
    assert done.stderr == (
        f"error: column 'value', row 14 (id {row!r}): holds a null instead of a vector\n"
    )
    assert names(folder / "out") == ["part-00000.parquet"]


@pytest.mark.parametrize("spoil", ["column", "dim", "model"])
def test_input_that_does_not_fit_writes_nothing(spoil: str, folder: Path) -> None:
    path = folder / "data" / "part-00000.parquet"
    table = pq.read_table(path)
    model = folder / "attention.onnx"
    if spoil == "column":
        table = table.drop_columns("value")
        words = "the table has no column named 'value'"
    elif spoil == "dim":
        vectors = pa.array([[[1.0] * 5]] * len(table), pa.list_(pa.list_(pa.float32(), 5)))
        table = table.set_column(table.column_names.index("value"), "value", vectors)
        words = "have vectors of 64 and 5 numbers"
    else:
        model.write_text("text")
        words = "is not an ONNX file"
    pq.write_table(table, path)
    done = example("plain.py", folder / "data", folder / "out", code=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert names(folder / "out") == []


def test_an_empty_file_makes_an_empty_file(folder: Path) -> None:
    path = folder / "data" / "part-00000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    example("plain.py", folder / "data", folder / "out")
    sizes = [pq.read_metadata(folder / "out" / name).num_rows for name in names(folder / "out")]
    assert sizes == [0, 40, 40]

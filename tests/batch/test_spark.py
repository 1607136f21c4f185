"""examples/batch/spark.py with a real Spark, local[2]: the plain loop's rows and bits.

Needs the extra test-spark and Java.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batch_sets import check_written, example, write_with_a_null

pytestmark = pytest.mark.spark

ROWS = 2_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("spark")
    example("make_data.py", made / "data", "--rows", str(ROWS), "--files", "4")
    example("plain.py", made / "data", made / "plain")
    yield made
    shutil.rmtree(made)


def spark(folder: Path, data: str, out: str, code: int = 0) -> Any:
    return example(
        "spark.py",
        folder / data,
        folder / out,
        "--master",
        "local[2]",
        code=code,
        seconds=200,
        environment={"SPARK_LOCAL_DIRS": str(folder / "local"), "SPARK_LOCAL_IP": "127.0.0.1"},
    )


def test_a_plain_loops_bits_and_what_is_written_is_not_computed_again(folder: Path) -> None:
    half = folder / "half"
    half.mkdir()
    for path in sorted((folder / "data").glob("*.parquet"))[:2]:
        shutil.copy(path, half)
    assert spark(folder, "half", "out").stdout.startswith(f"{ROWS // 2} rows computed in ")
    assert spark(folder, "data", "out").stdout.startswith(f"{ROWS // 2} rows computed in ")
    check_written(folder / "out", folder / "plain")


def test_a_row_that_is_refused_is_named(folder: Path) -> None:
    source = next((folder / "data").glob("*.parquet"))
    row = write_with_a_null(source, folder / "bad" / "part.parquet", 77)
    done = spark(folder, "bad", "none", code=2)
    line = f"error: column 'value', row 77 (id {row!r}): holds a null instead of a vector"
    assert done.stderr.splitlines()[-1].endswith(line)
    assert not list((folder / "none").glob("*.parquet"))

"""The same set under Apache Spark: mapInArrow hands the stage one Arrow batch after another.

    pip install 'onnx_attn[batch]' 'pyspark>=4.0'      # and Java 17 or newer
    python examples/batch/spark.py data out

One task reads one partition; its session is opened once, at its first batch. Rows whose ids are in
OUT already are not computed again.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
from pyspark.errors import PythonException
from pyspark.sql import DataFrame, SparkSession

from onnx_attn.batch import AttendBatch

# Rows handed to a call of the stage, as in plain.py.
ROWS = 256
SCHEMA = "id string, output array<array<float>>"

Batches = Iterator[pa.RecordBatch]


def attend_with(stage: AttendBatch) -> Callable[[Batches], Batches]:
    """What a task does with the batches of its partition."""

    def attend(batches: Batches) -> Batches:
        # `stage` came here without a session and opens one at the first batch. A stage that is
        # made in this loop would open one for each of them.
        for batch in batches:
            table = stage(pa.Table.from_batches([batch])).select(["id", "output"])
            yield from table.combine_chunks().to_batches()

    return attend


def missing_rows(spark: SparkSession, data: Path, out: Path) -> DataFrame:
    """Rows of `data` whose ids are not in `out`."""
    rows = spark.read.parquet(str(data.absolute()))
    if not (out / "_SUCCESS").exists():
        return rows
    done = spark.read.parquet(str(out.absolute())).select("id")
    return rows.join(done, "id", "left_anti")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, help="by default attention.onnx beside DATA")
    parser.add_argument("--master", default="local[*]", help="where Spark runs")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of a call of the stage")
    given = parser.parse_args()
    model = given.model or given.data.parent / "attention.onnx"
    spark = (
        SparkSession.builder.master(given.master)
        .appName("attention")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", given.rows)
        .config("spark.ui.enabled", False)
        .getOrCreate()
    )
    start = time.perf_counter()
    rows = missing_rows(spark, given.data, given.out)
    computed = rows.count()
    attended = rows.mapInArrow(attend_with(AttendBatch(model, value="value")), SCHEMA)
    try:
        attended.write.mode("append").parquet(str(given.out.absolute()))
    except PythonException as failed:
        # Spark hands on the text of what the stage raised, not the exception.
        said = re.search(r"^onnx_attn\.errors\.\w+: (.+)", str(failed), re.MULTILINE)
        if said is None:
            raise
        parser.exit(2, f"error: {said[1]}\n")
    took = time.perf_counter() - start
    print(f"{computed} rows computed in {took:.1f} s, {computed / took:.0f} rows/s")
    spark.stop()


if __name__ == "__main__":
    main()

"""The whole set in one process: a loop over Parquet files that can be stopped and started again.

    python examples/batch/plain.py data out

Each file of `data` becomes a file of the same name in `out`, written under another name until it
is whole. A second run computes only what is missing. Memory is bounded by --rows rows.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from onnx_attn import OnnxAttnError
from onnx_attn.batch import AttendBatch

ROWS = 256


def attend_file(stage: AttendBatch, source: Path, target: Path, rows: int = ROWS) -> int:
    """Attend over one Parquet file, `rows` rows at a time; the rows written."""
    made = target.with_name(f".{target.name}.part")
    written = 0

    def attended(table: pa.Table) -> pa.Table:
        return stage(table).select(["id", "output"])

    try:
        with pq.ParquetFile(source) as file:
            schema = attended(file.schema_arrow.empty_table()).schema
            with pq.ParquetWriter(made, schema, compression="zstd") as writer:
                for batch in file.iter_batches(batch_size=rows):
                    writer.write_table(attended(pa.Table.from_batches([batch])))
                    written += len(batch)
        os.replace(made, target)
    finally:
        made.unlink(missing_ok=True)
    return written


def attend_folder(model: Path, data: Path, out: Path, rows: int = ROWS) -> int:
    """Attend over every file of `data` that is not in `out` yet; the rows computed."""
    out.mkdir(parents=True, exist_ok=True)
    files = sorted(data.glob("*.parquet"))
    missing = [path for path in files if not (out / path.name).exists()]
    if len(missing) < len(files):
        print(f"{len(files) - len(missing)} of {len(files)} files are there already")
    stage = AttendBatch(model, value="value")
    start, done = time.perf_counter(), 0
    for number, path in enumerate(missing, 1):
        done += attend_file(stage, path, out / path.name, rows)
        per_second = done / (time.perf_counter() - start)
        print(f"{number}/{len(missing)}  {path.name}  {done} rows  {per_second:.0f} rows/s")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, help="by default attention.onnx beside DATA")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows in memory at a time")
    given = parser.parse_args()
    model = given.model or given.data.parent / "attention.onnx"
    try:
        print(f"{attend_folder(model, given.data, given.out, given.rows)} rows computed")
    except OnnxAttnError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()

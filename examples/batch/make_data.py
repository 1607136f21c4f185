"""A set of Parquet files to attend over: questions and passages as ragged token embeddings.

    python examples/batch/make_data.py data            # 20,000 rows in 16 files
    python examples/batch/make_data.py data --rows 2000 --files 4

Each row is `id`, `query` (3 to 12 token vectors) and `value` (8 to 64), all of dim 64 and drawn
from a vocabulary of 4,000 words: lists of float32[64], the Arrow type that is read without a copy.
Beside the data it writes attention.onnx, the file that the other scripts run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onnx_attn import Attention

DIM, WORDS = 64, 4000
QUERY, VALUE = (3, 12), (8, 64)


def ragged(words: np.ndarray, lengths: np.ndarray, draw: np.random.Generator) -> pa.Array:
    """list<fixed_size_list<float>[64]>: lengths[r] random words in row r."""
    numbers = words[draw.integers(0, len(words), lengths.sum())]  # [tokens, dim]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), DIM)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), vectors)


def table(first: int, rows: int, words: np.ndarray) -> pa.Table:
    """Rows `first` to `first + rows`; the same numbers on every run."""
    draw = np.random.default_rng([7, first])
    columns = {
        name: ragged(words, draw.integers(low, high + 1, rows), draw)
        for name, (low, high) in {"query": QUERY, "value": VALUE}.items()
    }
    ids = pa.array([f"row-{row:06d}" for row in range(first, first + rows)])
    return pa.table({"id": ids, **columns})


def make(folder: Path, rows: int, files: int) -> None:
    """Write `files` Parquet files with `rows` rows in all, and attention.onnx beside `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    words = np.random.default_rng(7).standard_normal((WORDS, DIM), np.float32)
    edges = np.linspace(0, rows, files + 1).astype(int)
    for number in range(files):
        part = table(int(edges[number]), int(edges[number + 1] - edges[number]), words)
        pq.write_table(part, folder / f"part-{number:05d}.parquet", compression="zstd")
    layer = Attention(use_scale=True)
    layer.set_weights([0.125])
    layer.export(folder.parent / "attention.onnx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--files", type=int, default=16)
    given = parser.parse_args()
    make(given.folder, given.rows, given.files)
    size = sum(path.stat().st_size for path in given.folder.glob("*.parquet"))
    print(f"{given.rows} rows in {given.files} files, {size / 1e6:.0f} MB: {given.folder}")


if __name__ == "__main__":
    main()

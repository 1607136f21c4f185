"""Ragged columns of Arrow tables: rows of vectors, read without copying, padded, written."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import InputError, OnnxAttnError

# 32-bit offsets, those of Arrow's `list`, end here.
MOST_OFFSET = 2**31 - 1
FLOATS = {"halffloat": "float16", "float": "float32", "double": "float64"}
ROWS_NAMED = 8


def arrow() -> Any:
    """The module pyarrow, which ships no types; raises OnnxAttnError where it is missing."""
    try:
        return import_module("pyarrow")
    except ImportError as error:
        raise OnnxAttnError(
            "onnx_attn.batch needs pyarrow: pip install 'onnx_attn[batch]'"
        ) from error


class RowNames:
    """What messages call the rows of a table: the number and, where there is one, the id."""

    def __init__(self, table: Any, row_id: str) -> None:
        found = row_id in table.column_names
        self._column = table.schema.get_field_index(row_id) if found else -1
        self._table, self._row_id = table, row_id

    def of(self, *rows: int) -> str:
        """Like "row 3 (id 'a3')", counted from 0."""
        named = [self._one(int(row)) for row in rows[:ROWS_NAMED]]
        if len(rows) > ROWS_NAMED:
            named.append(f"{len(rows) - ROWS_NAMED} more")
        return f"row{'s' * (len(rows) > 1)} {', '.join(named)}"

    def _one(self, row: int) -> str:
        if self._column < 0:  # none of that name, or several
            return str(row)
        value = self._table.column(self._column)[row].as_py()
        return f"{row} ({self._row_id} {reprlib.repr(value)})"


@dataclass(frozen=True)
class Layout:
    """What a ragged column's type says: the outer and inner list, and the float type."""

    large: bool
    inner_large: bool
    dim: int | None
    dtype: str


@dataclass(frozen=True)
class RaggedColumn:
    """A column whose rows are vectors of one dim: float[length of the row, dim].

    `lengths` int64[rows] is 0 and `null` bool[rows] True in null rows. `dim` is None where neither
    the type nor any vector tells. `chunks` hold the vectors as Arrow keeps them, float[n, dim];
    row r lies in chunk `chunk_of[r]` from vector `starts[r]` on.
    """

    name: str
    layout: Layout
    dim: int | None
    lengths: Array
    null: Array
    starts: Array
    chunk_of: Array
    chunks: Sequence[Array]

    def vectors(self, row: int) -> Array:
        """float[length, dim] of one row; no copy."""
        start = int(self.starts[row])
        chunk = self.chunks[int(self.chunk_of[row])]
        return chunk[start : start + int(self.lengths[row])]

    def padded(
        self, rows: Array, batch: int, length: int, dtype: np.dtype[Any], names: RowNames
    ) -> Array:
        """The rows below each other, zeros behind each: dtype[batch, length, dim].

        Raises InputError for a number that `dtype` cannot hold.
        """
        assert self.dim is not None
        out = np.zeros((batch, length, self.dim), dtype)
        for place, row in enumerate(rows):
            given = self.vectors(row)
            taken = out[place, : len(given)]
            with np.errstate(over="ignore"):
                taken[:] = given
            if given.dtype != dtype and (np.isfinite(given) & ~np.isfinite(taken)).any():
                raise InputError(
                    f"column {self.name!r}, {names.of(row)}: holds a number too large for {dtype}"
                )
        return out


def layout_of(name: str, kind: Any) -> Layout:
    """The layout of a column of Arrow type `kind`; raises InputError unless it is ragged floats."""
    types = arrow().types
    expected = (
        f"column {name!r}: expected list<fixed_size_list<float>[dim]> or list<list<float>>, one "
        f"list of vectors a row; received {kind}"
    )
    if not (types.is_list(kind) or types.is_large_list(kind)):
        raise InputError(expected)
    vector = kind.value_type
    fixed = types.is_fixed_size_list(vector)
    if not (fixed or types.is_list(vector) or types.is_large_list(vector)):
        raise InputError(expected)
    dtype = FLOATS.get(str(vector.value_type))
    if dtype is None:
        raise InputError(f"{expected}. Cast its numbers to a float type")
    dim = vector.list_size if fixed else None
    if dim == 0:
        raise InputError(f"{expected}. Scores need at least one feature: dim must not be 0")
    return Layout(types.is_large_list(kind), types.is_large_list(vector), dim, dtype)


def read_column(table: Any, name: str, names: RowNames) -> RaggedColumn:
    """The ragged column `name` of a table, checked.

    Raises InputError if it is not there, is not ragged floats, or a row holds a null vector, a
    null number or vectors of different dim; the message names the row.
    """
    column = table.column(column_index(table, name))
    layout = layout_of(name, column.type)
    lengths = np.zeros(len(column), np.int64)
    null = np.zeros(len(column), np.bool_)
    starts, chunk_of = np.zeros_like(lengths), np.zeros_like(lengths)
    chunks: list[Array] = []
    dim, first = layout.dim, 0
    for chunk in column.chunks:
        rows = np.arange(first, first + len(chunk))
        first += len(chunk)
        if chunk.null_count:
            null[rows] = chunk.is_null().to_numpy(zero_copy_only=False)
            # What lies under a null is anything: rows of their own memory, without it.
            rows, chunk = rows[~null[rows]], chunk.drop_null()
        if not len(chunk):
            continue
        offsets = chunk.offsets.to_numpy()
        lengths[rows] = np.diff(offsets)
        starts[rows] = offsets[:-1] - offsets[0]
        vectors = chunk.values.slice(offsets[0], offsets[-1] - offsets[0])
        if not len(vectors):
            continue
        where = _Place(name, rows, offsets - offsets[0], names)
        flat, dim = _flat(vectors, dim, where)
        chunk_of[rows] = len(chunks)
        chunks.append(flat)
    chunks = chunks or [np.empty((0, dim or 0), layout.dtype)]
    return RaggedColumn(name, layout, dim, lengths, null, starts, chunk_of, chunks)


@dataclass(frozen=True)
class _Place:
    """Which row a vector of a chunk belongs to."""

    column: str
    rows: Array
    offsets: Array
    names: RowNames

    def error(self, vector: int, text: str) -> InputError:
        row = self.rows[np.searchsorted(self.offsets, vector, side="right") - 1]
        return InputError(f"column {self.column!r}, {self.names.of(row)}: {text}")


def _flat(vectors: Any, dim: int | None, where: _Place) -> tuple[Array, int]:
    """float[n, dim] over the memory of a chunk's vectors, and dim; the first vector sets it."""
    if vectors.null_count:
        raise where.error(_first(vectors.is_null()), "holds a null instead of a vector")
    if arrow().types.is_fixed_size_list(vectors.type):
        assert dim is not None
        numbers = vectors.values.slice(vectors.offset * dim, len(vectors) * dim)
    else:
        offsets = vectors.offsets.to_numpy()
        sizes = np.diff(offsets)
        dim = int(sizes[0]) if dim is None else dim
        other = np.flatnonzero(sizes != dim)
        if len(other):
            raise where.error(
                other[0],
                f"holds a vector of {sizes[other[0]]} numbers where vectors before it have {dim}",
            )
        if dim == 0:
            raise where.error(0, "holds a vector without numbers: dim must not be 0")
        numbers = vectors.values.slice(offsets[0], offsets[-1] - offsets[0])
    if numbers.null_count:
        raise where.error(_first(numbers.is_null()) // dim, "holds a null among its numbers")
    return numbers.to_numpy().reshape(-1, dim), dim


def _first(flags: Any) -> int:
    return int(np.flatnonzero(flags.to_numpy(zero_copy_only=False))[0])


def column_index(table: Any, name: str) -> int:
    """Where the column `name` is; raises InputError unless there is exactly one."""
    found = table.schema.get_all_field_indices(name)
    if len(found) != 1:
        raise InputError(
            f"the table has {'several columns' if found else 'no column'} named {name!r}; "
            f"its columns: {_listed(table.column_names)}"
        )
    return found[0]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def write_column(lengths: Array, null: Array, rows: Array, layout: Layout) -> Any:
    """An Arrow array of the rows `rows` float[sum of lengths, dim], laid out as `layout` says."""
    pa = arrow()
    numbers = pa.array(rows.reshape(-1))
    if layout.dim is not None:
        vectors = pa.FixedSizeListArray.from_arrays(numbers, layout.dim)
    else:
        sizes = np.full(len(rows), rows.shape[1])
        vectors = _list(sizes, numbers, layout.inner_large)
    return _list(lengths, vectors, layout.large, null)


def write_matrices(
    heights: Array, widths: Array, null: Array, numbers: Array, layout: Layout
) -> Any:
    """An Arrow array of one matrix a row, heights[r] lists of widths[r] of the `numbers`."""
    inner = _list(np.repeat(widths, heights), arrow().array(numbers), layout.large)
    return _list(heights, inner, layout.large, null)


def _list(lengths: Array, values: Any, large: bool, null: Array | None = None) -> Any:
    pa = arrow()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if not large and offsets[-1] > MOST_OFFSET:
        raise InputError(
            f"a column of {offsets[-1]} entries does not fit into Arrow's list, which ends at "
            f"{MOST_OFFSET}. Give fewer rows at a time, or query as large_list"
        )
    kind = pa.LargeListArray if large else pa.ListArray
    mask = pa.array(null) if null is not None and null.any() else None
    return kind.from_arrays(
        pa.array(offsets.astype("int64" if large else "int32")), values, mask=mask
    )

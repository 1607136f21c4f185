"""Ragged Arrow columns of every make are read as the same numbers, or refused by name."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_attn import InputError
from onnx_attn.batch.columns import Layout, RowNames, read_column, write_column, write_matrices

DIM = 3
FIXED = pa.list_(pa.float32(), DIM)
LAYOUTS = {
    "list of fixed": pa.list_(FIXED),
    "large_list of fixed": pa.large_list(FIXED),
    "list of list": pa.list_(pa.list_(pa.float32())),
    "list of large_list": pa.list_(pa.large_list(pa.float32())),
    "large_list of large_list": pa.large_list(pa.large_list(pa.float32())),
}

vector = st.lists(st.floats(-4, 4, width=16), min_size=DIM, max_size=DIM)
row = st.none() | st.lists(vector, max_size=4)


def read(column: Any, name: str = "query", **others: Any) -> Any:
    table = pa.table({name: column, **others})
    return read_column(table, name, RowNames(table, "id"))


def as_lists(column: Any) -> list[Any]:
    return [None if null else column.vectors(row).tolist() for row, null in enumerate(column.null)]


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(row, max_size=8),
    kind=st.sampled_from(sorted(LAYOUTS)),
    cuts=st.lists(st.integers(0, 8), max_size=3),
    start=st.integers(0, 3),
    stop=st.integers(0, 8),
)
def test_slices_and_chunks_are_read_as_they_are(
    rows: list[Any], kind: str, cuts: list[int], start: int, stop: int
) -> None:
    ends = sorted([0, *(min(cut, len(rows)) for cut in cuts), len(rows)])
    pieces = pairwise(ends)
    chunks = [pa.array(rows[a:b], LAYOUTS[kind]) for a, b in pieces]
    column = read(pa.chunked_array(chunks, LAYOUTS[kind]).slice(start, stop))
    assert as_lists(column) == rows[start : start + stop]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_column_without_chunks_is_empty(kind: str) -> None:
    column = read(pa.chunked_array([], LAYOUTS[kind]))
    assert column.lengths.tolist() == []
    assert column.dim == (DIM if "fixed" in kind else None)


def test_a_list_over_a_sliced_child() -> None:
    numbers = pa.array(np.arange(30, dtype=np.float32)).slice(3)
    vectors = pa.FixedSizeListArray.from_arrays(numbers, DIM).slice(2)
    column = read(pa.ListArray.from_arrays(pa.array([1, 3, 4], pa.int32()), vectors))
    assert as_lists(column) == [[[12, 13, 14], [15, 16, 17]], [[18, 19, 20]]]
    lists = pa.ListArray.from_arrays(pa.array([0, 3, 6, 9], pa.int32()), numbers).slice(1)
    column = read(pa.ListArray.from_arrays(pa.array([0, 0, 2], pa.int32()), lists))
    assert as_lists(column) == [[], [[6, 7, 8], [9, 10, 11]]]


def test_what_lies_under_a_null_is_never_looked_at() -> None:
    lists = pa.array([[1, 2, 3], [7], None, [4, 5, 6]], pa.list_(pa.float32()))
    column = pa.ListArray.from_arrays(
        pa.array([0, 1, 3, 4], pa.int32()), lists, mask=pa.array([False, True, False])
    )
    assert as_lists(read(column)) == [[[1, 2, 3]], None, [[4, 5, 6]]]


def test_fixed_size_vectors_are_read_without_a_copy() -> None:
    numbers = pa.array(np.arange(12, dtype=np.float32))
    column = pa.ListArray.from_arrays(
        pa.array([0, 4], pa.int32()), pa.FixedSizeListArray.from_arrays(numbers, DIM)
    )
    vectors = read(column).vectors(0)
    assert np.shares_memory(vectors, numbers.to_numpy())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (pa.float32(), "expected list<fixed_size_list<float>"),
        (pa.list_(pa.float32()), "received list<"),
        (FIXED, "received fixed_size_list"),
        (pa.list_(pa.list_(pa.int64())), "Cast its numbers to a float type"),
        (pa.list_(pa.list_(pa.string())), "Cast its numbers to a float type"),
        (pa.list_(pa.list_(FIXED)), "Cast its numbers"),
        (pa.list_(pa.list_(pa.float32(), 0)), "dim must not be 0"),
        (pa.list_view(FIXED), "received list_view"),
        (pa.fixed_shape_tensor(pa.float32(), [2, DIM]), "received extension"),
    ],
    ids=str,
)
def test_other_types_are_refused_by_name(kind: Any, words: str) -> None:
    with pytest.raises(InputError, match=r"column 'query'.*received") as raised:
        read(pa.chunked_array([], kind))
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[[1, 2]], [[1, 2], [1, 2, 3]]], "holds a vector of 3 numbers where vectors before"),
        ([[[1, 2]], [[1, 2], None]], "holds a null instead of a vector"),
        ([[[1, 2]], [[None, 2]]], "holds a null among its numbers"),
    ],
    ids=["another dim", "null vector", "null number"],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_bad_row_is_named(rows: list[Any], words: str, chunked: bool) -> None:
    kind = LAYOUTS["list of list"]
    parts = [rows[:1], rows[1:]] if chunked else [rows]
    column = pa.chunked_array([pa.array(part, kind) for part in parts])
    with pytest.raises(InputError, match=r"^column 'query', row 1 \(id 'b'\): ") as raised:
        read(column, id=pa.array(["a", "b"]))
    assert words in str(raised.value)
    with pytest.raises(InputError, match=r"^column 'query', row 1: "):
        read(column)


def test_vectors_without_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="row 1: holds a vector without numbers"):
        read(pa.array([[], [[]]], LAYOUTS["list of list"]))


def test_a_missing_and_a_doubled_column() -> None:
    table = pa.table({"a": [1], "b": [2]})
    with pytest.raises(InputError, match=r"no column named 'query'; its columns: 'a', 'b'"):
        read_column(table, "query", RowNames(table, "id"))
    doubled = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["query", "query"])
    with pytest.raises(InputError, match="several columns named 'query'"):
        read_column(doubled, "query", RowNames(doubled, "id"))


def test_many_rows_are_named_shortly() -> None:
    table = pa.table({"id": range(20)})
    assert RowNames(table, "id").of(3) == "row 3 (id 3)"
    assert RowNames(table, "id").of(*range(10)).endswith("7 (id 7), 2 more")
    assert RowNames(table, "name").of(3, 4) == "rows 3, 4"


@pytest.mark.parametrize(
    "layout",
    [
        Layout(False, False, 2, "float32"),
        Layout(True, False, 2, "float64"),
        Layout(False, True, None, "float16"),
        Layout(True, False, None, "float32"),
    ],
    ids=str,
)
def test_what_is_written_is_read_again(layout: Layout) -> None:
    lengths, null = np.array([2, 0, 0, 1]), np.array([False, True, False, False])
    rows = np.arange(6, dtype=layout.dtype).reshape(3, 2)
    written = write_column(lengths, null, rows, layout)
    written.validate(full=True)
    column = read(written)
    assert column.layout == layout
    assert as_lists(column) == [[[0, 1], [2, 3]], None, [], [[4, 5]]]


def test_matrices_of_other_widths() -> None:
    layout = Layout(False, False, 2, "float32")
    heights, widths = np.array([2, 0, 1, 2]), np.array([1, 3, 2, 0])
    null = np.array([False, True, False, False])
    written = write_matrices(heights, widths, null, np.arange(4, dtype=np.float32), layout)
    written.validate(full=True)
    assert written.to_pylist() == [[[0], [1]], None, [[2, 3]], [[], []]]


def test_more_than_arrows_list_holds_is_refused() -> None:
    layout = Layout(False, False, 2, "float32")
    nothing = np.zeros(0, np.float32)
    with pytest.raises(InputError, match=r"4294967296 entries .* or query as large_list"):
        write_matrices(np.array([2]), np.array([2**31]), np.array([False]), nothing, layout)

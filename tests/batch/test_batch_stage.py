"""AttendBatch gives every row what the reference gives that row alone, or names what is wrong."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_attn import AdditiveAttention, Attention, AttentionSession, InputError, ModelError
from onnx_attn.batch import AttendBatch
from onnx_attn.reference import attention
from onnx_attn.verify.vectors import TOLERANCES

DIM, VALUE_DIM = 6, 4
RNG = np.random.default_rng(5)

# Every kind of file that a table may be sent through: the layer, and its export options.
FILES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (Attention(), {}),
    "causal, scores": (Attention(causal=True), {"return_attention_scores": True}),
    "value mask alone": (Attention(use_scale=True), {"masks": "value"}),
    "query mask alone": (Attention(), {"masks": "query", "return_attention_scores": True}),
    "no masks": (Attention(causal=True), {"masks": "none"}),
    "optional inputs": (Attention(use_scale=True), {"inputs": "optional", "scale": "input"}),
    "training": (Attention(dropout=0.5), {"training": True}),
    "dense": (Attention(), {"schedule": "dense"}),
    "tiled": (Attention(), {"schedule": "tiled"}),
    "fused": (Attention(), {"schedule": "fused"}),
    "concat": (Attention(score_mode="concat"), {"return_attention_scores": True}),
    "additive": (AdditiveAttention(use_scale=False), {}),
    "no bias given": (Attention(), {"bias": True}),
    "float64": (Attention(dtype="float64"), {}),
    "float16": (Attention(dtype="float16"), {"return_attention_scores": True}),
    "fixed batch": (Attention(), {"dims": {"batch": 3}}),
    "fixed lengths": (Attention(), {"dims": {"batch": 2, "Tq": 8, "Tv": 8}}),
    "fixed dims": (Attention(), {"dims": {"dim": DIM, "value_dim": VALUE_DIM}}),
    "fixed mask": (Attention(), {"dims": {"value_mask_batch": 1, "value_mask_Tv": 1}}),
}
MODELS = {
    name: layer.to_onnx(**options).SerializeToString() for name, (layer, options) in FILES.items()
}
ARROW = {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64()}


def vectors(lengths: list[int | None], dim: int, dtype: str = "float32") -> list[Any]:
    return [
        None if length is None else RNG.standard_normal((length, dim)).astype(dtype).tolist()
        for length in lengths
    ]


def ragged(rows: list[Any], dim: int | None, dtype: str = "float32") -> pa.Array:
    """As list<fixed_size_list[dim]>, or list<list> for None."""
    inner = pa.list_(ARROW[dtype]) if dim is None else pa.list_(ARROW[dtype], dim)
    return pa.array(
        [row if row is None else [np.array(v, dtype) for v in row] for row in rows],
        pa.list_(inner),
    )


def table_of(
    query: list[int | None], value: list[int | None], dtype: str = "float32", fixed: bool = True
) -> pa.Table:
    return pa.table(
        {
            "id": [f"r{row}" for row in range(len(query))],
            "query": ragged(vectors(query, DIM, dtype), DIM if fixed else None, dtype),
            "value": ragged(vectors(value, VALUE_DIM, dtype), VALUE_DIM if fixed else None, dtype),
            "key": ragged(vectors(value, DIM, dtype), DIM if fixed else None, dtype),
        }
    )


def check(layer: Any, table: pa.Table, result: pa.Table, scores: bool = False) -> None:
    """Every row against the float64 reference of that row alone."""
    dtype = layer.get_config()["dtype"]
    tolerance = TOLERANCES[dtype]
    config = layer.get_config()
    additive = isinstance(layer, AdditiveAttention)
    assert result.select(table.column_names).equals(table)
    for row in range(len(table)):
        given = [table[name][row].as_py() for name in ("query", "value", "key")]
        output = result["output"][row].as_py()
        if any(part is None for part in given):
            assert output is None
            assert not scores or result["scores"][row].as_py() is None
            continue
        dims = (DIM, VALUE_DIM, DIM)
        query, value, key = (
            np.array(part, dtype).reshape(1, -1, dim) for part, dim in zip(given, dims, strict=True)
        )
        wanted, weights = attention(
            query,
            value,
            key,
            score_mode="additive" if additive else config["score_mode"],
            scale=1.0 if config["use_scale"] else None,
            causal=config["causal"],
            compute="float64" if dtype == "float64" else "float32",
        )
        bounds = {"rtol": tolerance.rtol, "atol": tolerance.atol}
        got = np.array(output, np.float64).reshape(wanted[0].shape)
        np.testing.assert_allclose(got, wanted[0], **bounds)
        if scores:
            got = np.array(result["scores"][row].as_py(), np.float64).reshape(weights[0].shape)
            np.testing.assert_allclose(got, weights[0], **bounds)


length = st.none() | st.integers(0, 8)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=12, deadline=None)
@given(lengths=st.lists(st.tuples(length, length), max_size=9), rows=st.integers(1, 4))
def test_rows_of_any_lengths(name: str, lengths: list[tuple[Any, Any]], rows: int) -> None:
    layer, options = FILES[name]
    if name == "fixed mask":  # this file takes no mask but [[True]]
        lengths = [(query, 8) for query, _ in lengths]
    dtype = layer.get_config()["dtype"]
    fixed = rows % 2 == 0 or all(not value for _, value in lengths)
    table = table_of([q for q, _ in lengths], [v for _, v in lengths], dtype, fixed)
    scores = options.get("return_attention_scores", False)
    stage = AttendBatch(
        MODELS[name], value="value", key="key", rows=rows, scores="scores" if scores else None
    )
    result = stage(table)
    for column in result.columns:
        column.validate(full=True)
    check(layer, table, result, scores)
    assert result.schema.field("output").type == table.schema.field("value").type


def test_self_attention_and_value_as_key() -> None:
    table = table_of([3, 0, 2, None], [1, 2, 0, 3])
    table = table.set_column(2, "value", ragged(vectors([1, 2, 0, 3], DIM), DIM))
    session = AttentionSession(MODELS["plain"], device="cpu")
    for value in (None, "value"):
        result = AttendBatch(MODELS["plain"], value=value, output="attended")(table)
        for row in (0, 2):
            query = np.array(table["query"][row].as_py(), np.float32)[None]
            rows = np.array(table[value or "query"][row].as_py(), np.float32)
            wanted = session(query, rows.reshape(1, -1, DIM))
            assert np.allclose(result["attended"][row].as_py(), wanted[0], atol=1e-6)
        assert result["attended"][3].as_py() is None
        assert result["attended"][1].as_py() == []


def test_a_file_without_key_takes_one_column_for_both() -> None:
    model = Attention().to_onnx(key=False).SerializeToString()
    table = pa.table({"query": ragged(vectors([3, 1], DIM), DIM)})
    got, wanted = (AttendBatch(each)(table)["output"] for each in (model, MODELS["plain"]))
    assert np.allclose(got[0].as_py(), wanted[0].as_py(), atol=1e-6)
    with pytest.raises(InputError, match=r"key='key': this file was exported with key=False"):
        AttendBatch(model, value="value", key="key")


def test_an_empty_value_gives_zeros_also_where_no_row_has_one() -> None:
    table = table_of([2, 1], [0, 0], fixed=True)
    result = AttendBatch(MODELS["plain"], value="value", key="key")(table)
    assert result["output"].to_pylist() == [[[0.0] * VALUE_DIM] * 2, [[0.0] * VALUE_DIM]]
    table = table_of([2, 1], [0, 0], fixed=False)
    result = AttendBatch(MODELS["fixed dims"], value="value", key="key")(table)
    assert result["output"].to_pylist() == [[[0.0] * VALUE_DIM] * 2, [[0.0] * VALUE_DIM]]
    with pytest.raises(InputError, match=r"'value': no row .* row 0 \(id 'r0'\) wants zeros"):
        AttendBatch(MODELS["plain"], value="value", key="key")(table)


def test_padding_leaves_no_trace_in_bits_of_the_same_table() -> None:
    lengths = [int(n) for n in RNG.integers(1, 40, 50)]
    table = table_of(lengths, lengths[::-1])
    stage = AttendBatch(MODELS["plain"], value="value", key="key")
    first = stage(table)
    assert stage(table).equals(first)
    chunked = pa.concat_tables([table.slice(0, 7), table.slice(7, 0), table.slice(7)])
    assert stage(chunked).equals(first)


def test_no_rows_at_all_keep_the_schema() -> None:
    full = table_of([1, 2], [1, 2])
    stage = AttendBatch(MODELS["causal, scores"], value="value", key="key", scores="scores")
    wanted = stage(full).schema
    assert stage(full.slice(2)).schema == wanted
    assert stage(full.schema.empty_table()).schema == wanted
    nulls = table_of([None, None], [1, None])
    assert stage(nulls).schema == wanted
    assert stage(nulls)["output"].null_count == 2


def test_metadata_and_other_columns_stay() -> None:
    table = table_of([1, 2], [2, 1]).replace_schema_metadata({"made": "by hand"})
    table = table.append_column("note", pa.array(["x", None]).dictionary_encode())
    result = AttendBatch(MODELS["plain"], value="value", key="key")(table)
    assert result.schema.metadata == {b"made": b"by hand"}
    assert result.column_names == [*table.column_names, "output"]
    assert result.select(table.column_names).equals(table)


def test_it_travels_without_its_session_and_opens_one_where_it_arrives(tmp_path: Path) -> None:
    table = table_of([3, 2], [2, 5])
    path = tmp_path / "a.onnx"
    path.write_bytes(MODELS["plain"])
    for model in (path, MODELS["plain"]):
        stage = AttendBatch(model, value="value", key="key")
        wanted = stage(table)
        sent = pickle.dumps(stage)
        assert len(sent) < len(MODELS["plain"]) + 4000
        assert pickle.loads(sent)(table).equals(wanted)
    pa.ipc.new_file(tmp_path / "in", table.schema).close()
    (tmp_path / "stage").write_bytes(pickle.dumps(stage))
    code = (
        "import pickle, sys; from pathlib import Path\n"
        f"stage = pickle.loads(Path({str(tmp_path / 'stage')!r}).read_bytes())\n"
        "print('onnx' in sys.modules, 'typer' in sys.modules, stage)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False False AttendBatch('<")


def test_casts_are_made_only_when_asked_for() -> None:
    table = table_of([2, 3], [3, 1], "float64")
    with pytest.raises(InputError, match=r"'query' holds float64, and this file takes float32"):
        AttendBatch(MODELS["plain"], value="value", key="key")(table)
    result = AttendBatch(MODELS["plain"], value="value", key="key", cast=True)(table)
    assert result.schema.field("output").type == pa.list_(pa.list_(pa.float32(), VALUE_DIM))
    narrow = table.select(["id"])
    for name, dim in (("query", DIM), ("value", VALUE_DIM), ("key", DIM)):
        cast = table[name].cast(pa.list_(pa.list_(pa.float32(), dim)))
        narrow = narrow.append_column(name, cast)
    assert AttendBatch(MODELS["plain"], value="value", key="key")(narrow)["output"].equals(
        result["output"]
    )


def test_a_number_too_large_for_the_files_type_names_its_row() -> None:
    table = pa.table({"id": [7, 8], "query": ragged([[[1.0]], [[1e300]]], 1, "float64")})
    with pytest.raises(InputError, match=r"'query', row 1 \(id 8\): holds a number too large"):
        AttendBatch(MODELS["plain"], cast=True)(table)


def test_bfloat16_comes_out_as_float32() -> None:
    model = Attention(dtype="bfloat16").to_onnx(return_attention_scores=True).SerializeToString()
    with pytest.raises(InputError, match=r"bfloat16, which Arrow has not\. Give cast=True"):
        AttendBatch(model)
    table = table_of([2, 3], [3, 1])
    result = AttendBatch(model, value="value", key="key", cast=True, scores="scores")(table)
    exact = AttendBatch(MODELS["plain"], value="value", key="key")(table)
    assert result.schema.field("output").type == pa.list_(pa.list_(pa.float32(), VALUE_DIM))
    for got, wanted in zip(result["output"], exact["output"], strict=True):
        np.testing.assert_allclose(got.as_py(), wanted.as_py(), rtol=3e-2, atol=3e-2)


# ---- calls


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, tuple[int, ...]]]:
    """The shapes of all that a session is fed from here on."""
    seen: list[dict[str, tuple[int, ...]]] = []
    run = AttentionSession.run

    def noting(self: Any, feeds: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append({name: array.shape for name, array in feeds.items()})
        return run(self, feeds, *args, **kwargs)

    monkeypatch.setattr(AttentionSession, "run", noting)
    return seen


def test_calls_keep_to_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [int(n) for n in RNG.integers(1, 60, 200)]
    table = table_of(lengths, lengths[::-1])
    seen = calls_of(monkeypatch)
    limit = 20_000
    stage = AttendBatch(MODELS["plain"], value="value", key="key", rows=32, max_elements=limit)
    stage(table)
    assert sum(call["query"][0] for call in seen) == 200
    for call in seen:
        assert call["query"][0] <= 32
        output = call["query"][0] * call["query"][1] * VALUE_DIM
        assert sum(np.prod(call[name]) for name in ("query", "value", "key")) + output <= limit
    # Rows of like length share a call: far less padding than rows as they come.
    padded = sum(np.prod(call["query"][:2]) + np.prod(call["value"][:2]) for call in seen)
    as_they_come = 2 * 200 * np.mean([max(lengths[row : row + 32]) for row in range(0, 200, 32)])
    assert padded < 0.85 * as_they_come


def test_equal_lengths_need_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls_of(monkeypatch)
    AttendBatch(MODELS["plain"], value="value", key="key")(table_of([2, 2], [3, 3]))
    assert seen == [{"query": (2, 2, DIM), "value": (2, 3, VALUE_DIM), "key": (2, 3, DIM)}]


def test_a_file_without_masks_is_given_rows_of_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls_of(monkeypatch)
    table = table_of([1, 5, 2, 4], [3, 2, 3, 2])
    AttendBatch(MODELS["no masks"], value="value", key="key")(table)
    assert [(call["query"][:2], call["value"][:2]) for call in seen] == [
        ((2, 5), (2, 2)),
        ((2, 2), (2, 3)),
    ]


def test_memory_is_bounded_by_the_call_not_by_the_table(tmp_path: Path) -> None:
    """Ten times the rows: the process grows by the columns alone, in a child that measures it."""
    code = """
import sys
from pathlib import Path
import numpy as np, pyarrow as pa
from onnx_attn.batch import AttendBatch
def table(rows):
    lengths = np.random.default_rng(0).integers(100, 400, rows)
    flat = np.ones(int(lengths.sum()) * 32, np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), 32)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype("int32"))
    return pa.table({"query": pa.ListArray.from_arrays(offsets, vectors)})
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) << 10
stage = AttendBatch(sys.argv[1], max_elements=2**21)
stage(table(100))
grown = []
for rows in (200, 2000):
    given = table(rows)
    before = peak()
    stage(given)
    grown.append(peak() - before - given.nbytes)
print(*grown)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc")
    path = tmp_path / "a.onnx"
    path.write_bytes(MODELS["plain"])
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )

    small, large = map(int, done.stdout.split())
    # Beyond its output, which is as large as its input, a table ten times as long needs no more
    # than offsets and one call: 2^21 numbers are 8 MB.
    assert large < max(small, 0) + (24 << 20)


# ---- bad input


def make(**changes: Any) -> pa.Table:
    table = table_of([2, 3], [3, 1])
    for name, column in changes.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return table


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (make().drop_columns("value"), "the table has no column named 'value'; its columns: 'id'"),
        (make().append_column("output", pa.array([1, 2])), "already has a column named 'output'"),
        (make().append_column("scores", pa.array([1, 2])), "already has a column named 'scores'"),
        (
            make(key=ragged(vectors([3, 2], DIM), DIM)),
            "columns 'value' and 'key', row 1 (id 'r1'): 1 values and 2 keys",
        ),
        (
            make(key=ragged(vectors([3, 1], 5), 5)),
            "columns 'query' and 'key' have vectors of 6 and 5 numbers",
        ),
        (make(query=ragged(vectors([9, 3], DIM), DIM)), "row 0 (id 'r0'): 9 vectors, and max_le"),
        (table_of([2, 3], [3, 9]), "'value', row 1 (id 'r1'): 9 vectors, and max_length is 8"),
        (make(query=pa.array([1.0, 2.0])), "column 'query': expected list<fixed_size_list<float>"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_a_table_that_does_not_fit(table: pa.Table, words: str) -> None:
    stage = AttendBatch(
        MODELS["causal, scores"], value="value", key="key", scores="scores", max_length=8
    )
    with pytest.raises(InputError) as raised:
        stage(table)
    assert words in str(raised.value)


def test_dims_and_lengths_that_the_file_fixes() -> None:
    table = table_of([2, 9], [3, 1])
    with pytest.raises(InputError, match=r"'query', row 1 \(id 'r1'\): 9 vectors, .* Tq=8"):
        AttendBatch(MODELS["fixed lengths"], value="value", key="key")(table)
    model = Attention().to_onnx(dims={"dim": 5}).SerializeToString()
    with pytest.raises(InputError, match=r"'query' has vectors of 6 .* dim fixed at 5"):
        AttendBatch(model, value="value", key="key")(table)
    model = Attention().to_onnx(masks="none", dims={"Tv": 3}).SerializeToString()
    with pytest.raises(InputError, match=r"row 1 .*: 1 vectors, and this file has Tv=3 and no"):
        AttendBatch(model, value="value", key="key")(table)


def test_a_row_too_large_for_a_call_is_named() -> None:
    with pytest.raises(InputError, match=r"row 1 \(id 'r1'\): Tq=500, Tv=3 makes .* is 2000"):
        AttendBatch(MODELS["plain"], value="value", key="key", max_elements=2000)(
            table_of([2, 500], [3, 3])
        )


def test_what_the_session_refuses_names_the_rows() -> None:
    layer = AdditiveAttention()
    layer.set_weights([np.ones(5, np.float32)])
    model = layer.to_onnx().SerializeToString()
    with pytest.raises(
        InputError, match=r"columns 'query', 'value', 'key', rows 0 \(id 'r0'\), 1 "
    ):
        AttendBatch(model, value="value", key="key")(table_of([2, 3], [3, 1]))


@pytest.mark.parametrize(
    ("given", "name"), [({"query": 1}, "dict"), (pa.record_batch({"a": [1]}), "RecordBatch")]
)
def test_other_things_than_tables(given: Any, name: str) -> None:
    with pytest.raises(InputError, match=rf"expected a pyarrow.Table; received {name}"):
        AttendBatch(MODELS["plain"])(given)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rows": 0}, "rows must be a positive integer; received 0"),
        ({"rows": True}, "rows must be a positive integer"),
        ({"max_elements": 1.5}, "max_elements must be a positive integer"),
        ({"max_length": -1}, "max_length must be a positive integer"),
        ({"query": None}, "query must be the name of a column; received None"),
        ({"value": 3}, "value must be the name of a column or None; received 3"),
        ({"key": "key"}, "key='key' without a value"),
        ({"scores": "output"}, "output and scores are both named 'output'"),
        ({"scores": "scores"}, "does not return the scores. Export it with return_attention"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as raised:
        AttendBatch(MODELS["plain"], **arguments)
    assert words in str(raised.value)


def test_a_file_with_heads_is_refused() -> None:
    model = Attention().to_onnx(heads=True).SerializeToString()
    with pytest.raises(InputError, match=r"takes files of query .*; this one takes .*heads"):
        AttendBatch(model)


def test_a_model_that_is_not_ours_is_refused_before_any_row(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        AttendBatch(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="not an ONNX file"):
        AttendBatch(b"nonsense")
    other = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])).SerializeToString()
    with pytest.raises(ModelError, match="not one that onnx_attn wrote"):
        AttendBatch(other)


def test_without_pyarrow_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from onnx_attn.batch import AttendBatch\n"
        "try:\n    AttendBatch('a.onnx')\nexcept Exception as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "onnx_attn.batch needs pyarrow: pip install 'onnx_attn[batch]'\n"

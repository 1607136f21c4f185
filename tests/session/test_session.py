"""AttentionSession: names, defaults, arrays of every kind, OrtValues, life."""

from __future__ import annotations

import copy
import multiprocessing
import operator
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest

from onnx_attn import AdditiveAttention, Attention, AttentionSession, InputError, OnnxAttnError
from onnx_attn.reference import attention

RNG = np.random.default_rng(7)
QUERY = RNG.standard_normal((2, 3, 4)).astype(np.float32)
VALUE = RNG.standard_normal((2, 5, 6)).astype(np.float32)
KEY = RNG.standard_normal((2, 5, 4)).astype(np.float32)
MASK = np.array([[True, True, False, True, False], [True, True, True, True, True]])


def open_file(layer: Any = None, threads: int | None = 1, **options: Any) -> AttentionSession:
    model = (layer or Attention()).to_onnx(**options).SerializeToString()
    return AttentionSession(model, device="cpu", threads=threads)


@pytest.fixture(scope="module")
def session() -> AttentionSession:
    return open_file(return_attention_scores=True)


def test_run_gives_a_dict_and_a_call_a_tuple_of_the_same_numbers(session: AttentionSession) -> None:
    feeds = {"query": QUERY, "value": VALUE, "key": KEY, "value_mask": MASK}
    results = session.run(feeds)
    assert list(results) == ["output", "attention_scores"]
    output, scores = session(QUERY, VALUE, KEY, value_mask=MASK)
    np.testing.assert_array_equal(results["output"], output)
    np.testing.assert_array_equal(results["attention_scores"], scores)
    wanted, wanted_scores = attention(QUERY, VALUE, KEY, value_mask=MASK)
    np.testing.assert_allclose(output, wanted, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(scores, wanted_scores, rtol=1e-5, atol=2e-6)
    raw = session.ort_session.run(None, {**feeds, "query_mask": np.array([[True]])})
    np.testing.assert_array_equal(raw[0], output)


def test_only_the_outputs_asked_for_in_that_order(session: AttentionSession) -> None:
    feeds = {"query": QUERY, "value": VALUE, "key": KEY}
    assert list(session.run(feeds, ["attention_scores"])) == ["attention_scores"]
    both = ["attention_scores", "output"]
    assert list(session.run(feeds, both)) == both
    assert list(session.run(feeds, "output")) == ["output"]


def test_one_output_comes_alone() -> None:
    output = open_file()(QUERY, VALUE, KEY)
    assert isinstance(output, np.ndarray)
    assert output.shape == (2, 3, 6)


@pytest.mark.parametrize("inputs", ["required", "optional"])
def test_what_is_left_out_takes_its_default(inputs: str) -> None:
    layer = Attention(use_scale=True, dropout=0.5)
    layer.set_weights([0.25])
    session = open_file(layer, inputs=inputs, scale="input", training=True)
    value = VALUE[..., :4]
    plain = session(QUERY, value)
    given = session(
        QUERY,
        value,
        value,
        query_mask=np.ones((2, 3), np.bool_),
        value_mask=np.ones((2, 5), np.bool_),
        scale=0.25,
        training=False,
    )
    np.testing.assert_array_equal(plain, given)
    wanted, _ = attention(QUERY, value, scale=0.25)
    np.testing.assert_allclose(plain, wanted, rtol=1e-5, atol=2e-6)
    assert np.abs(session(QUERY, value, scale=3.0) - plain).max() > 1e-3
    # None means left out, under any name.
    none = session.run({"query": QUERY, "value": value, "key": None, "scale": None})
    np.testing.assert_array_equal(none["output"], plain)


def test_concat_score_weight_as_an_input() -> None:
    layer = Attention(score_mode="concat")
    layer.set_weights([2.0])
    session = open_file(layer, scale="input")
    feeds = {"query": QUERY, "value": VALUE, "key": KEY}
    wanted, _ = attention(QUERY, VALUE, KEY, score_mode="concat", concat_score_weight=-1.5)
    got = session.run({**feeds, "concat_score_weight": -1.5})["output"]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-6)
    assert np.abs(session.run(feeds)["output"] - got).max() > 1e-3


def test_contract_can_be_read(session: AttentionSession) -> None:
    assert list(session.inputs) == ["query", "value", "key", "query_mask", "value_mask"]
    assert session.inputs["key"].shape == ("batch", "Tv", "dim")
    assert session.outputs["attention_scores"].dtype == "float32"
    assert session.config["layer"] == "Attention"
    assert session.config["use_scale"] is False
    assert session.export_options["return_attention_scores"] is True
    assert isinstance(session.ort_session, onnxruntime.InferenceSession)
    assert session.device == "cpu"


def big_endian(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder(">"))


def read_only(array: np.ndarray) -> np.ndarray:
    copied = array.copy()
    copied.flags.writeable = False
    return copied


def every_second(array: np.ndarray) -> np.ndarray:
    wide = np.full((array.shape[0], array.shape[1] * 2, *array.shape[2:]), 99).astype(array.dtype)
    wide[:, ::2] = array
    return wide[:, ::2]


def unaligned(array: np.ndarray) -> np.ndarray:
    raw = np.zeros(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


class Subclass(np.ndarray):
    """As libraries make them, with an attribute or two."""


class Foreign:
    """A tensor of another library: only __array__ is known."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.array


KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "Fortran order": np.asfortranarray,
    "every second row": every_second,
    "reversed twice": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "transposed": lambda a: np.ascontiguousarray(np.moveaxis(a, 0, -1)).transpose(
        a.ndim - 1, *range(a.ndim - 1)
    ),
    "read-only": read_only,
    "big-endian": big_endian,
    "subclass": lambda a: a.view(Subclass),
    "foreign": Foreign,
    "unaligned": unaligned,
    "memory map": lambda a: _memory_map(a),
}


def _memory_map(array: np.ndarray) -> np.ndarray:
    import tempfile

    with tempfile.TemporaryFile() as file:
        mapped = np.memmap(file, array.dtype, "w+", shape=array.shape)
        mapped[...] = array
        return mapped


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (kind, dtype)
        for kind in KINDS
        for dtype in ("float16", "bfloat16", "float32", "float64")
        if (kind, dtype) != ("big-endian", "bfloat16")  # ml_dtypes has one byte order
    ],
)
def test_arrays_of_every_kind_give_the_same_numbers(kind: str, dtype: str) -> None:
    session = SESSIONS[dtype]
    cast = np.dtype(getattr(ml_dtypes, dtype, dtype))
    plain = [QUERY.astype(cast), VALUE.astype(cast), KEY.astype(cast)]
    wanted = session(*plain, value_mask=MASK)
    make = KINDS[kind]
    got = session(*map(make, plain), value_mask=make(MASK))
    np.testing.assert_array_equal(got, wanted)
    for array, kept in zip(plain, (QUERY, VALUE, KEY), strict=True):
        np.testing.assert_array_equal(array, kept.astype(cast))


SESSIONS = {
    dtype: open_file(Attention(dtype=dtype))
    for dtype in ("float16", "bfloat16", "float32", "float64")
}


def test_repeated_rows_without_memory_of_their_own() -> None:
    repeated = np.broadcast_to(QUERY[:1, :1], (2, 3, 4))
    assert repeated.strides[:2] == (0, 0)
    got = SESSIONS["float32"](repeated, VALUE, KEY)
    np.testing.assert_array_equal(got, SESSIONS["float32"](repeated.copy(), VALUE, KEY))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(0, 3, 5, 4), (2, 0, 5, 4), (2, 3, 0, 4), (0, 0, 0, 4)])
def test_empty_arrays(dtype: str, shape: tuple[int, int, int, int]) -> None:
    batch, query_length, value_length, dim = shape
    cast = np.dtype(getattr(ml_dtypes, dtype, dtype))
    query = np.ones((batch, query_length, dim), cast)
    value = np.ones((batch, value_length, 6), cast)
    key = np.ones((batch, value_length, dim), cast)
    output = SESSIONS[dtype](query, value, key)
    assert output.shape == (batch, query_length, 6)
    np.testing.assert_array_equal(output.astype(np.float32), 0)


def test_masked_arrays_are_refused_with_the_way_out(session: AttentionSession) -> None:
    value = np.ma.masked_array(VALUE, VALUE > 0)
    with pytest.raises(InputError, match=r"value: .*masked array.*value\.filled\(0\).*value_mask"):
        session(QUERY, value, KEY)
    query = np.ma.masked_array(QUERY, QUERY > 0)
    with pytest.raises(InputError, match=r"query\.filled\(0\).*query_mask"):
        session(query, VALUE, KEY)


def test_scalars_of_python_and_of_numpy() -> None:
    session = open_file(Attention(use_scale=True), scale="input")
    value = VALUE[..., :4]
    wanted = session(QUERY, value, scale=np.array(0.5, np.float32))
    for scale in (0.5, np.float32(0.5)):
        np.testing.assert_array_equal(session(QUERY, value, scale=scale), wanted)
    np.testing.assert_array_equal(session(QUERY, value, scale=0), session(QUERY, value, scale=0.0))
    with pytest.raises(InputError, match=r"scale: expected float32\[\]; received float64"):
        session(QUERY, value, scale=np.array(0.5))
    with pytest.raises(InputError, match=r"scale: .*received True"):
        session(QUERY, value, scale=True)
    with pytest.raises(InputError, match=r"scale: .*too large"):
        session(QUERY, value, scale=1e300)
    with pytest.raises(InputError, match=r"scale: .*too large"):
        session(QUERY, value, scale=10**400)
    assert np.isnan(session(QUERY, value, scale=float("nan"))).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_ort_values_in_and_out(dtype: str) -> None:
    session = SESSIONS[dtype]
    cast = np.dtype(getattr(ml_dtypes, dtype, dtype))
    feeds = {"query": QUERY.astype(cast), "value": VALUE.astype(cast), "key": KEY.astype(cast)}
    wanted = session.run(feeds)["output"]

    def ort_value(array: np.ndarray) -> onnxruntime.OrtValue:
        if dtype == "bfloat16":
            return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
                array.view(np.uint16), 16
            )
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)

    values = {name: ort_value(array) for name, array in feeds.items()}
    np.testing.assert_array_equal(session.run(values)["output"], wanted)
    mixed = {**feeds, "value": values["value"]}
    np.testing.assert_array_equal(session.run(mixed)["output"], wanted)
    out = session.run(feeds, ort_values=True)["output"]
    assert isinstance(out, onnxruntime.OrtValue)
    assert out.device_name() == "cpu"
    assert out.shape() == [2, 3, 6]
    # Out of one session, into the next, as data that stays on a GPU would go.
    again = session.run({"query": values["query"], "value": out, "key": values["query"]})
    assert again["output"].shape == (2, 3, 6)


def test_ort_values_are_checked_like_arrays(session: AttentionSession) -> None:
    def value(array: np.ndarray) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)

    with pytest.raises(InputError, match=r"query: expected float32.*OrtValue of tensor\(double\)"):
        session.run({"query": value(QUERY.astype(np.float64)), "value": VALUE, "key": KEY})
    with pytest.raises(InputError, match="same length: one value for each key"):
        session.run({"query": QUERY, "value": value(VALUE[:, :4].copy()), "key": KEY})


@pytest.mark.parametrize("kind", ["bytes", "path"])
def test_pickles_and_copies(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Attention().export("a.onnx")
    model = path.read_bytes() if kind == "bytes" else path
    session = AttentionSession(model, device="cpu", threads=2, spin=False)
    wanted = session(QUERY, VALUE, KEY)
    sent = pickle.dumps(session)
    assert (len(sent) > 1000) == (kind == "bytes")
    # A worker may run in another folder.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for other in (pickle.loads(sent), copy.copy(session), copy.deepcopy(session)):
        np.testing.assert_array_equal(other(QUERY, VALUE, KEY), wanted)
        options = other.ort_session.get_session_options()
        assert options.intra_op_num_threads == 2
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    session.close()
    with pytest.raises(OnnxAttnError, match="closed"):
        pickle.loads(pickle.dumps(session))(QUERY, VALUE, KEY)


def test_workers_of_a_spawn_pool_run_one_pickled_session() -> None:
    session = open_file()
    wanted = session(QUERY, VALUE, KEY)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        for result in pool.starmap(operator.call, [(session, QUERY, VALUE, KEY)] * 4, chunksize=1):
            np.testing.assert_array_equal(result, wanted)


def test_closing() -> None:
    with open_file() as session:
        session(QUERY, VALUE, KEY)
    assert "closed" in repr(session)
    for use in (
        lambda: session(QUERY, VALUE, KEY),
        lambda: session.run({"query": QUERY, "value": VALUE, "key": KEY}),
        lambda: session.ort_session,
    ):
        with pytest.raises(OnnxAttnError, match="closed"):
            use()
    session.close()
    assert next(iter(session.inputs)) == "query"


def test_closing_waits_for_no_call_and_breaks_none() -> None:
    session = open_file(threads=2)
    query = RNG.standard_normal((1, 2048, 64)).astype(np.float32)
    wanted = session(query, query)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(session, query, query)
        while not running.running() and not running.done():
            pass
        session.close()
        failed = running.exception()
        if failed is None:
            np.testing.assert_array_equal(running.result(), wanted)
        else:  # closed before the call had begun
            assert isinstance(failed, OnnxAttnError)
            assert "closed" in str(failed)


def test_threads_and_spin_reach_the_runtime() -> None:
    model = Attention().to_onnx().SerializeToString()
    for threads, spin in ((1, True), (3, False)):
        session = AttentionSession(model, device="cpu", threads=threads, spin=spin)
        options = session.ort_session.get_session_options()
        assert options.intra_op_num_threads == threads
        entry = options.get_session_config_entry("session.intra_op.allow_spinning")
        assert entry == str(int(spin))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": 0}, "threads must be an integer from 1"),
        ({"threads": True}, "threads must be"),
        ({"threads": 1.5}, "threads must be"),
        ({"threads": 100_000}, "threads must be"),
        ({"spin": 1}, "spin must be True or False"),
        ({"use_tf32": "yes"}, "use_tf32 must be True or False"),
        ({"memory_limit": 0}, "memory_limit must be a positive number of bytes"),
        ({"memory_limit": 2**30}, "device='cpu' has none"),
        ({"device": "gpu"}, "device must be 'cpu', 'cuda', 'cuda:N' or 'auto'; received 'gpu'"),
        ({"device": "cuda:-1"}, "device must be"),
        ({"device": "cuda:"}, "device must be"),
        ({"device": None}, "device must be"),
    ],
)
def test_arguments_that_are_no_possible_value(arguments: dict[str, Any], message: str) -> None:
    model = Attention().to_onnx().SerializeToString()
    with pytest.raises(InputError, match=message):
        AttentionSession(model, **{"device": "cpu", **arguments})


def test_more_shapes_than_are_remembered_stay_checked() -> None:
    session = open_file(masks="none")
    row = np.ones((1, 1, 1), np.float32)
    for length in range(1, 1100):
        session.run({"query": row, "value": np.ones((1, length, 1), np.float32)})
    assert len(session._seen) <= 1024
    with pytest.raises(InputError, match="same length"):
        session(row, np.ones((1, 3, 1), np.float32), np.ones((1, 4, 1), np.float32))


def test_additive_attention_scale_as_an_input() -> None:
    layer = AdditiveAttention()
    layer.set_weights([np.arange(4.0)])
    wide = np.ones((2, 3, 5), np.float32)
    for options in ({}, {"scale": "input", "inputs": "optional"}):
        fixed = open_file(layer, **options)
        assert fixed(QUERY, VALUE, KEY).shape == (2, 3, 6)
        with pytest.raises(InputError, match=r"query: .* with dim=4, as in the file's scale"):
            fixed(wide, wide)
    fitting = {"query": wide, "value": wide, "scale": np.ones(5, np.float32)}
    assert fixed.run(fitting)["output"].shape == (2, 3, 5)
    session = open_file(layer, scale="input")
    plain = session(QUERY, VALUE, KEY)
    np.testing.assert_array_equal(
        plain, session(QUERY, VALUE, KEY, scale=np.arange(4, dtype=np.float32))
    )
    with pytest.raises(InputError, match=r"scale: .*vector with one entry per feature"):
        session(QUERY, VALUE, KEY, scale=np.float32(1))
    with pytest.raises(InputError, match="same last axis"):
        session(QUERY, VALUE, KEY, scale=np.ones(3, np.float32))


QUIET = """
import numpy as np
from onnx_attn import AttentionSession, OnnxAttnError
for model in {models!r}:
    try:
        session = AttentionSession(model, device={device!r})
        query, value = np.ones((2, 3, 4), np.float32), np.ones((2, 5, 4), np.float32)
        session.run({{"query": query, "value": value}})
    except OnnxAttnError as error:
        assert str(error)
"""


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_the_runtime_writes_nothing_to_the_terminal(device: str, tmp_path: Path) -> None:
    layer = Attention(use_scale=True, dropout=0.5)
    good = layer.export(tmp_path / "a.onnx", scale="input", inputs="optional", training=True)
    broken = tmp_path / "b.onnx"
    data = good.read_bytes()
    # A node type that does not exist: the runtime refuses the graph, with a log line of its own.
    broken.write_bytes(data.replace(b"MatMul", b"MatMux"))
    code = QUIET.format(models=[str(good), str(broken)], device=device)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

"""Promise: the walk over a bias gives what the dense nodes give, whatever the bias is.

Dense here are the nodes that exporters write: MatMul, Mul, Add, Softmax, MatMul, in the same
runtime. Equal means equal to float rounding, and NaN where they have NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxscript import GraphBuilder

from onnx_attn.graph.builder import OpBuilder
from onnx_attn.graph.schedules.bias_walk import StepSize, bias_facts, bias_walk, step_size

FLOATS = {"float32": ir.DataType.FLOAT, "float64": ir.DataType.DOUBLE}
LOWEST = float(np.finfo(np.float32).min)
PENALTIES = {"-1e4": -1e4, "-1e9": -1e9, "lowest": LOWEST, "-inf": -np.inf}


def model_of(
    form: str,
    *,
    bias: bool = True,
    causal: bool = False,
    mask: bool = False,
    weights: bool = False,
    block: int | None = 16,
    group: int = 1,
    scale: float | None = 0.3,
    penalty: float = -1e9,
    opset: int = 17,
    dtype: str = "float32",
) -> onnx.ModelProto:
    """The walk, or the dense nodes, as a model of query, key, value, bias and mask."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="attention")
    builder = GraphBuilder(graph)
    op, kind = OpBuilder(builder.op), FLOATS[dtype]
    query = builder.input("query", kind, ir.Shape(["batch", "heads", "Tq", "dim"]))
    key = builder.input("key", kind, ir.Shape(["batch", "heads", "Tv", "dim"]))
    value = builder.input("value", kind, ir.Shape(["batch", "heads", "Tv", "value_dim"]))
    added = key_mask = None
    if bias:
        dims = ["bias_batch", "bias_heads", "bias_Tq", "bias_Tv"]
        added = builder.input("bias", kind, ir.Shape(dims))
    if mask:
        key_mask = builder.input("mask", ir.DataType.BOOL, ir.Shape(["mask_batch", "Tv"]))
    Tq, Tv = op.Shape(query, start=2, end=3), op.Shape(key, start=2, end=3)
    if form == "walk":
        sizes = op.Shape(query, start=1, end=2), Tq, Tv
        if block is None:
            step = step_size(op, *sizes)
        else:
            step = StepSize(op.Constant(value_ints=[group]), op.Constant(value_ints=[block]))
        told = {"causal": causal, "key_mask": key_mask, "penalty": penalty, "dtype": kind}
        facts = bias_facts(op, added, *sizes, step, **told)
        results = bias_walk(op, query, key, value, scale, facts, weights_wanted=weights)
    else:
        scores = op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2]))
        if scale is not None:
            scores = op.Mul(scores, op.Constant(value=ir.tensor(np.array(scale, dtype))))
        if added is not None:
            scores = op.Add(scores, added)
        hidden = op.Constant(value=ir.tensor(np.array(penalty, dtype)))
        future = op.Constant(value=ir.tensor(np.array(0, dtype)))
        if causal:
            square = op.Expand(hidden, op.Concat(Tq, Tv, axis=0))
            future = op.Trilu(square, op.Constant(value_int=1), upper=1)
        if key_mask is not None:
            future = op.Where(op.Unsqueeze(key_mask, [1, 2]), future, hidden)
        found = op.Softmax(op.Add(scores, future), axis=-1)
        results = (op.MatMul(found, value), found)
    count = 0
    for node in ir.traversal.RecursiveGraphIterator(graph):
        node.metadata_props.clear()
        for output in node.outputs:
            count += 1
            output.name = f"value_{count}"
    for result, name, dim in zip(results, ("output", "weights"), ("value_dim", "Tv"), strict=False):
        if name == "output" or weights:
            result.dtype, result.shape = kind, ir.Shape(["batch", "heads", "Tq", dim])
            builder.add_output(result, name)
    return ir.to_proto(ir.Model(graph, ir_version=8))


@functools.cache
def session_of(form: str, **options: Any) -> onnxruntime.InferenceSession:
    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads = 1
    model = model_of(form, **options).SerializeToString()
    return onnxruntime.InferenceSession(model, how, providers=["CPUExecutionProvider"])


def tensors(
    shape: tuple[int, int, int, int], seed: int = 0, size: float = 1.0, dtype: str = "float32"
) -> dict[str, Any]:
    """Query, key and value of a shape (batch, heads, Tq, Tv)."""
    rng = np.random.default_rng(seed)
    batch, heads, Tq, Tv = shape
    return {
        "query": (size * rng.standard_normal((batch, heads, Tq, 8))).astype(dtype),
        "key": (size * rng.standard_normal((batch, heads, Tv, 8))).astype(dtype),
        "value": rng.standard_normal((batch, heads, Tv, 5)).astype(dtype),
    }


def assert_same(feeds: dict[str, Any], atol: float = 1e-6, **options: Any) -> None:
    walked = session_of("walk", **options).run(None, feeds)
    dense = session_of("dense", **{**options, "block": None}).run(None, feeds)
    assert len(walked) == len(dense)
    for got, wanted in zip(walked, dense, strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=atol, equal_nan=True)


# What may be seen: of queries [Tq, 1] and keys [1, Tv].
SEEN: dict[str, Callable[[Any, Any], Any]] = {
    "everything": lambda i, j: j >= 0 * i,
    "causal": lambda i, j: j <= i,
    "tail": lambda i, j: j < j.size - j.size // 3 + 0 * i,
    "causal, front": lambda i, j: (j <= i) & (j >= j.size // 3),
    "front": lambda i, j: j >= j.size // 3 + 0 * i,
    "gaps": lambda i, j: (j % 5 != 2) & (i >= 0),
    "causal, gaps": lambda i, j: (j <= i) & (j % 7 != 3),
    "one hole": lambda i, j: ~((j == j.size // 2) & (i > j.size // 2)),
    "window": lambda i, j: (j <= i) & (j > i - 20),
    "window to both sides": lambda i, j: abs(i - j) < 15,
    "prefix": lambda i, j: (j <= i) | (j < 12),
    "anti-causal": lambda i, j: j >= i,
    "off by one": lambda i, j: j <= i + 1,
    "not itself": lambda i, j: j < i,
    "blocks": lambda i, j: i // 16 == j // 16,
    "nothing": lambda i, j: j < 0 * i,
    "one key": lambda i, j: j == j.size - 1 + 0 * i,
    "random": lambda i, j: np.random.default_rng(3).random(np.broadcast(i, j).shape) < 0.3,
    "some rows nothing": lambda i, j: (j <= i) & (i % 11 != 4),
}

# What is added without hiding anything, or beside what is hidden.
ADDED: dict[str, Callable[[Any, Any], Any]] = {
    "ALiBi": lambda i, j: -abs(i - j) * 0.05,
    "causal ALiBi": lambda i, j: np.where(j <= i, (j - i) * 0.05, LOWEST),
    "relative": lambda i, j: np.sin(i - j),
    "weak": lambda i, j: np.where(j <= i, 0.0, -5.0),
    "-500": lambda i, j: np.where(j <= i, 0.0, -500.0),
    "near the limit": lambda i, j: np.where(j <= i, 0.0, -8999.0),
    "constant": lambda i, j: np.full(np.broadcast(i, j).shape, 2.5),
    "zeros but the first": lambda i, j: np.where(j == 0 * i, 1.0, 0.0),
    "positive": lambda i, j: np.where(j == i, 1e4, 0.0),
}


def grid(Tq: int, Tv: int) -> tuple[Any, Any]:
    return np.ogrid[:Tq, :Tv][0], np.ogrid[:Tq, :Tv][1]


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("seen", SEEN)
def test_every_kind_of_mask(seen: str, penalty: str, group: int) -> None:
    for Tq, Tv in ((61, 61), (50, 33), (17, 61), (1, 9)):
        shown = SEEN[seen](*grid(Tq, Tv))
        bias = np.where(shown, 0, np.float32(PENALTIES[penalty])).astype(np.float32)[None, None]
        for size in (1.0, 10.0):  # scores up to about 3 and 300
            feeds = tensors((2, 3, Tq, Tv), size=size)
            assert_same(feeds | {"bias": bias}, group=group)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_heads_that_see_other_keys(group: int) -> None:
    """Each head has a mask of its own, or a bias; some see nothing where others see."""
    shape = (2, 4, 61, 50)
    for names in (
        ["causal", "front", "nothing", "window"],
        ["tail", "one key", "blocks", "random"],
        ["tail", "everything", "tail", "front"],
    ):
        shown = [SEEN[name](*grid(*shape[2:])) for name in names]
        for low in PENALTIES.values():
            bias = np.where(shown, 0, np.float32(low)).astype(np.float32)[None]
            assert_same(tensors(shape) | {"bias": bias}, group=group)
            assert_same(tensors(shape) | {"bias": bias[:, ::-1].copy()}, group=group)
            bias[:, 2] += ADDED["ALiBi"](*grid(*shape[2:])).astype(np.float32)
            both = np.concatenate([bias, bias[:, ::-1]])
            assert_same(tensors(shape) | {"bias": both}, group=group, weights=True)


@pytest.mark.parametrize(
    ("heads", "Tq", "Tv", "expected"),
    [
        (1, 1, 1, (1, 1)),
        (12, 512, 512, (12, 128)),
        (12, 2048, 2048, (12, 64)),
        (12, 8192, 8192, (3, 64)),
        (7, 8192, 8192, (1, 128)),
        (6, 300, 300, (6, 100)),
        (4, 100, 10**6, (1, 50)),
    ],
)
def test_a_step_takes_as_many_heads_as_fit(
    heads: int, Tq: int, Tv: int, expected: tuple[int, int]
) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 17}, name="size")
    builder = GraphBuilder(graph)
    given = {"heads": heads, "Tq": Tq, "Tv": Tv}
    values = [builder.input(name, ir.DataType.INT64, ir.Shape([1])) for name in given]
    step = step_size(OpBuilder(builder.op), *values)
    for name, value in (("group", step.heads), ("block", step.block)):
        value.dtype, value.shape = ir.DataType.INT64, ir.Shape([1])
        builder.add_output(value, name)
    model = ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    feeds = {name: np.array([size]) for name, size in given.items()}
    assert tuple(int(size[0]) for size in session.run(None, feeds)) == expected


@pytest.mark.parametrize("added", ADDED)
def test_every_kind_of_bias(added: str) -> None:
    for Tq, Tv in ((61, 61), (50, 33), (17, 61), (1, 9)):
        bias = ADDED[added](*grid(Tq, Tv)).astype(np.float32)[None, None]
        for size in (1.0, 10.0):
            assert_same(tensors((2, 3, Tq, Tv), size=size) | {"bias": bias}, group=3)


@pytest.mark.parametrize("size", [100, 128, 257, 1030])
def test_blocks_as_they_are_chosen(size: int) -> None:
    shown = SEEN["causal, front"](*grid(size, size))
    bias = np.where(shown, 0, np.float32(-1e9)).astype(np.float32)[None, None]
    assert_same(tensors((1, 2, size, size)) | {"bias": bias}, block=None)


@pytest.mark.parametrize("opset", [17, 18, 21])
@pytest.mark.parametrize("axes", range(16))
def test_every_broadcast(axes: int, opset: int) -> None:
    shape = (2, 3, 21, 26)
    dims = [size if axes >> axis & 1 else 1 for axis, size in enumerate(shape)]
    rng = np.random.default_rng(axes)
    for bias in (rng.standard_normal(dims), np.where(rng.random(dims) < 0.4, -1e9, 0)):
        feeds = tensors(shape) | {"bias": bias.astype(np.float32)}
        assert_same(feeds, opset=opset)


@settings(deadline=None, max_examples=120)
@given(
    data=st.data(),
    bias=st.booleans(),
    causal=st.booleans(),
    mask=st.booleans(),
    weights=st.booleans(),
    block=st.sampled_from([1, 4, 16]),
)
def test_any_of_them_together(data: Any, **options: bool) -> None:
    """A bias, causal and a key mask: one penalty where both of the latter hide."""
    shape = data.draw(st.tuples(*(st.integers(1, top) for top in (3, 3, 23, 23))))
    seed = data.draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    feeds = tensors(shape, seed)
    if options["bias"]:
        dims = [data.draw(st.sampled_from([1, size])) for size in shape]
        hidden = data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
        low = np.float32(data.draw(st.sampled_from(list(PENALTIES.values()))))
        plain = rng.standard_normal(dims) if data.draw(st.booleans()) else np.zeros(dims)
        feeds["bias"] = np.where(rng.random(dims) < hidden, low, plain).astype(np.float32)
    if options["mask"]:
        share = data.draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
        batch, keys = data.draw(st.sampled_from([1, shape[0]])), np.arange(shape[3])
        feeds["mask"] = rng.random((batch, shape[3])) < share
        if data.draw(st.booleans()):
            feeds["mask"] = keys >= rng.integers(0, shape[3] + 1, (batch, 1))
    heads = shape[1]
    group = data.draw(st.sampled_from([n for n in (1, 2, 3) if heads % n == 0]))
    assert_same(feeds, atol=2e-6, group=group, **options)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_causal_and_mask_with_a_penalty_of_the_models_own(penalty: str) -> None:
    shape = (3, 2, 40, 40)
    mask = np.arange(40) >= np.array([[0], [13], [40]])
    options = {"bias": False, "causal": True, "mask": True, "penalty": PENALTIES[penalty]}
    assert_same(tensors(shape) | {"mask": mask}, **options)


def test_float64() -> None:
    shape = (2, 2, 30, 30)
    bias = np.where(SEEN["causal, front"](*grid(30, 30)), 0, -1e9)[None, None]
    feeds = tensors(shape, dtype="float64") | {"bias": bias}
    assert_same(feeds, atol=1e-12, dtype="float64", weights=True)


def test_a_scale_of_one_needs_no_product() -> None:
    assert_same(tensors((1, 2, 20, 20)) | {"bias": np.zeros((1, 1, 1, 1), "f")}, scale=None)


@pytest.mark.parametrize("options", [{}, {"mask": True}, {"mask": True, "bias": False}], ids=str)
@pytest.mark.parametrize("opset", [17, 18, 21])
def test_models_are_valid_and_lean(options: dict[str, bool], opset: int) -> None:
    model = model_of("walk", causal=True, opset=opset, **options)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    graph = ir.from_proto(model).graph
    inner = [
        ir.from_proto(attribute.g)
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.HasField("g")
    ]
    assert all(not body.initializers for body in inner)
    nodes = [
        node for node in ir.traversal.RecursiveGraphIterator(graph) if node.op_type != "Constant"
    ]
    assert len(nodes) <= 200


def test_a_site_is_lean() -> None:
    """What every further site adds, when the facts are there: at most 60 nodes."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 17}, name="attention")
    builder = GraphBuilder(graph)
    op, kind = OpBuilder(builder.op), ir.DataType.FLOAT
    query, key, value, bias = (
        builder.input(name, kind, ir.Shape([None] * 4)) for name in ("query", "key", "value", "b")
    )
    Tq, Tv = op.Shape(query, start=2, end=3), op.Shape(key, start=2, end=3)
    heads, block = op.Shape(query, start=1, end=2), op.Constant(value_ints=[16])
    facts = bias_facts(op, bias, heads, Tq, Tv, StepSize(heads, block))

    def nodes() -> int:
        every = ir.traversal.RecursiveGraphIterator(graph)
        return sum(node.op_type != "Constant" for node in every)

    shared = nodes()
    bias_walk(op, query, key, value, 0.5, facts)
    assert nodes() - shared <= 60

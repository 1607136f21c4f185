"""Small models with attention written in the ways that exporters and people write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnxscript import GraphBuilder

LOWEST = float(np.finfo(np.float32).min)
HEADS, WIDTH, TABLE = 2, 4, 64
DIM = HEADS * WIDTH


@dataclass
class Writer:
    """Nodes of one model: inputs x [batch, seq, dim] and mask [batch, seq], 1 where it counts."""

    opset: int = 17
    seed: int = 0
    op: Any = field(init=False)
    builder: Any = field(init=False)

    def __post_init__(self) -> None:
        graph = ir.Graph([], [], nodes=[], opset_imports={"": self.opset}, name="model")
        self.builder = GraphBuilder(graph)
        self.op = self.builder.op
        self.random = np.random.default_rng(self.seed)

    def input(self, name: str, kind: ir.DataType, *dims: Any) -> Any:
        return self.builder.input(name, kind, ir.Shape(dims))

    def constant(self, array: Any, dtype: Any = np.float32) -> Any:
        return self.op.Constant(value=ir.tensor(np.asarray(array, dtype)))

    def weight(self, *shape: int) -> Any:
        return self.constant(self.random.standard_normal(shape) / np.sqrt(shape[0]))

    def model(self, **outputs: tuple[Any, tuple[Any, ...]]) -> onnx.ModelProto:
        for name, (value, dims) in outputs.items():
            value.name, value.dtype, value.shape = name, ir.DataType.FLOAT, ir.Shape(dims)
            self.builder.add_output(value, name)
        graph = self.builder.graph
        taken: set[str] = set()
        for node in ir.traversal.RecursiveGraphIterator(graph):
            node.metadata_props.clear()
            for value in node.outputs:
                if value.name not in outputs:
                    value.name = f"{node.op_type}_{len(taken)}"
                taken.add(value.name)
        proto = ir.to_proto(ir.Model(graph, ir_version=8 if self.opset < 19 else 10))
        del proto.graph.value_info[:]
        return proto


# How a mask meets the scores [batch, heads, Tq, Tv] (or [batch, Tq, Tv]); `shown` is a bool of the
# same rank, True where a key is seen.


def _add_where(penalty: float) -> Callable[..., Any]:
    def apply(w: Writer, scores: Any, shown: Any) -> Any:
        bias = w.op.Where(shown, w.constant(0.0), w.constant(penalty))
        return w.op.Add(scores, bias)

    return apply


def _fill(penalty: float) -> Callable[..., Any]:
    def apply(w: Writer, scores: Any, shown: Any) -> Any:
        return w.op.Where(w.op.Not(shown), w.constant(penalty), scores)

    return apply


def _where_shown(w: Writer, scores: Any, shown: Any) -> Any:
    return w.op.Where(shown, scores, w.constant(-1e9))


def _keras_where(w: Writer, scores: Any, shown: Any) -> Any:
    return w.op.Where(w.op.Not(shown), w.op.Sub(scores, w.constant(1e9)), scores)


def _keras_products(w: Writer, scores: Any, shown: Any) -> Any:
    hidden = w.op.Not(shown)
    lower = w.op.Mul(w.op.Cast(hidden, to=1), w.op.Sub(scores, w.constant(1e9)))
    return w.op.Add(lower, w.op.Mul(scores, w.op.Cast(w.op.Not(hidden), to=1)))


def _keras_heads(w: Writer, scores: Any, shown: Any) -> Any:
    kept = w.op.Mul(w.op.Cast(shown, to=1), scores)
    low = w.op.Mul(w.constant(-2.372671e38), w.op.Cast(w.op.Not(shown), to=1))
    return w.op.Add(kept, low)


def _tf2onnx(w: Writer, scores: Any, shown: Any) -> Any:
    hidden = w.op.Cast(w.op.Not(shown), to=1)
    return w.op.Sub(scores, w.op.Mul(w.constant(1e9), hidden))


def _old_bert(w: Writer, scores: Any, shown: Any) -> Any:
    numbers = w.op.Cast(w.op.Cast(shown, to=7), to=1)
    low = w.op.Mul(w.op.Sub(w.constant(1.0), numbers), w.constant(-10000.0))
    return w.op.Add(scores, low)


def _opt(w: Writer, scores: Any, shown: Any) -> Any:
    bias = w.op.Where(shown, w.constant(0.0), w.constant(LOWEST))
    return w.op.Max(w.op.Add(scores, bias), w.constant(LOWEST))


def _gpt1(w: Writer, scores: Any, shown: Any) -> Any:
    numbers = w.op.Cast(shown, to=1)
    low = w.op.Mul(w.constant(-10000.0), w.op.Sub(w.constant(1.0), numbers))
    return w.op.Add(w.op.Mul(scores, numbers), low)


def _sub_then_mul(w: Writer, scores: Any, shown: Any) -> Any:
    bias = w.op.Where(shown, w.constant(0.0), w.constant(-1e9))
    return w.op.Mul(w.op.Neg(w.op.Sub(w.op.Neg(bias), scores)), w.constant(0.5))


MASKS: dict[str, Callable[..., Any]] = {
    "add lowest": _add_where(LOWEST),
    "add -inf": _add_where(-np.inf),
    "add -1e9": _add_where(-1e9),
    "fill -1e9": _fill(-1e9),
    "fill -inf": _fill(-np.inf),
    "fill lowest": _fill(LOWEST),
    "fill -1e4": _fill(-1e4),
    "where shown": _where_shown,
    "keras where": _keras_where,
    "keras products": _keras_products,
    "keras heads": _keras_heads,
    "tf2onnx": _tf2onnx,
    "old bert": _old_bert,
    "opt": _opt,
    "gpt1": _gpt1,
    "scaled after": _sub_then_mul,
}

# What a query sees, as bool [.., Tq or 1, Tv] of the scores' rank.


def _lengths(w: Writer, q: Any, k: Any) -> tuple[Any, Any]:
    second_last = w.constant(-2, np.int64)
    return w.op.Gather(w.op.Shape(q), second_last), w.op.Gather(w.op.Shape(k), second_last)


def _range(w: Writer, length: Any) -> Any:
    return w.op.Range(w.constant(0, np.int64), length, w.constant(1, np.int64))


def _by_ranges(w: Writer, q: Any, k: Any) -> Any:
    rows, columns = (_range(w, length) for length in _lengths(w, q, k))
    return w.op.LessOrEqual(columns, w.op.Unsqueeze(rows, [1]))


def _by_trilu(w: Writer, q: Any, k: Any) -> Any:
    lengths = [w.op.Unsqueeze(length, [0]) for length in _lengths(w, q, k)]
    ones = w.op.Expand(w.constant(1.0), w.op.Concat(*lengths, axis=0))
    return w.op.Not(w.op.Equal(w.op.Trilu(ones, upper=0), w.constant(0.0)))


def _by_cumsum(w: Writer, q: Any, k: Any) -> Any:
    lengths = [w.op.Unsqueeze(length, [0]) for length in _lengths(w, q, k)]
    shape = w.op.Concat(w.constant([1], np.int64), *lengths, axis=0)
    ones = w.op.Expand(w.constant(1, np.int32), shape)
    rows, columns = (w.op.CumSum(ones, w.constant(axis, np.int32)) for axis in (-2, -1))
    return w.op.GreaterOrEqual(rows, columns)


def _by_table(w: Writer, q: Any, k: Any) -> Any:
    lengths = [w.op.Unsqueeze(length, [0]) for length in _lengths(w, q, k)]
    table = w.constant(np.tri(512)[None], np.bool_)
    return w.op.Slice(
        table,
        w.constant([0, 0], np.int64),
        w.op.Concat(*lengths, axis=0),
        w.constant([1, 2], np.int64),
    )


def _window(w: Writer, q: Any, k: Any) -> Any:
    rows, columns = (_range(w, length) for length in _lengths(w, q, k))
    rows = w.op.Unsqueeze(rows, [1])
    near = w.op.Greater(columns, w.op.Sub(rows, w.constant(5, np.int64)))
    return w.op.And(w.op.LessOrEqual(columns, rows), near)


def _off_by_one(w: Writer, q: Any, k: Any) -> Any:
    rows, columns = (_range(w, length) for length in _lengths(w, q, k))
    return w.op.Less(columns, w.op.Unsqueeze(rows, [1]))


ORDERS: dict[str, Callable[..., Any]] = {
    "ranges": _by_ranges,
    "trilu": _by_trilu,
    "cumsum": _by_cumsum,
    "table": _by_table,
    "window": _window,
    "off by one": _off_by_one,
}

# What is done to the weights; `shown` as above, of rank 4.


def _nan_to_num(w: Writer, weights: Any, _: Any) -> Any:
    op, zero = w.op, w.constant(0.0)
    weights = op.Where(op.IsNaN(weights), zero, weights)
    large = op.And(op.IsInf(weights), op.Greater(weights, zero))
    weights = op.Where(large, w.constant(-LOWEST), weights)
    small = op.And(op.IsInf(weights), op.Less(weights, zero))
    return op.Where(small, w.constant(LOWEST), weights)


def _some(axis: int) -> Callable[..., Any]:
    def apply(w: Writer, weights: Any, shown: Any) -> Any:
        some = w.op.ReduceMax(w.op.Cast(shown, to=1), axes=[axis], keepdims=1)
        return w.op.Mul(w.op.Add(some, w.constant(0.5)), weights)

    return apply


AFTER: dict[str, Callable[..., Any]] = {
    "guard": lambda w, x, _: w.op.Where(w.op.IsNaN(x), w.constant(0.0), x),
    "nan_to_num": _nan_to_num,
    "clip": lambda w, x, _: w.op.Clip(x, w.constant(0.0), w.constant(1.0)),
    "half": lambda w, x, _: w.op.Div(x, w.constant([[[[2.0]]]])),
    "zeroed": lambda w, x, shown: w.op.Where(w.op.Not(shown), w.constant(0.0), x),
    "times the mask": lambda w, x, shown: w.op.Mul(x, w.op.Cast(shown, to=1)),
    "times each query": _some(3),
    "times each key": _some(2),
}

TRANSPOSES = ("last two", "at once", "reshapes", "scaled", "of the scores")
SCALES = ("none", "mul", "div", "on query", "both", "computed", "per head")


def attention(
    *,
    mask: str | None = "add lowest",
    order: str | None = None,
    padding: bool = True,
    scale: str = "mul",
    transpose: str = "last two",
    heads: bool = True,
    einsum: bool = False,
    after: str | None = None,
    groups: bool = False,
    opset: int = 17,
    outputs: tuple[str, ...] = ("out",),
    crosses: bool = False,
    large: float = 1.0,
    name: str = "attention/Softmax",
) -> onnx.ModelProto:
    """One layer of attention with a projection of its output."""
    w = Writer(opset)
    op = w.op
    x = w.input("x", ir.DataType.FLOAT, "batch", "seq", DIM)
    source, length = x, "seq"
    if crosses:
        source, length = (
            w.input("memory", ir.DataType.FLOAT, "batch", "memory_seq", DIM),
            ("memory_seq"),
        )
    flags = None
    if padding and mask is not None:
        flags = w.input("mask", ir.DataType.INT64, "batch", length)
    q, k, v = (op.MatMul(given, w.weight(DIM, DIM)) for given in (x, source, source))
    q = op.Mul(q, w.constant(large))
    if heads:
        split = [0, 0, HEADS, WIDTH]
        q, k, v = (op.Reshape(t, w.constant(split, np.int64)) for t in (q, k, v))
        if groups:  # one key head for all query heads, expanded
            k, v = (op.Slice(t, [0], [1], [2]) for t in (k, v))
            shape = op.Concat(op.Shape(k, start=0, end=2), [HEADS, WIDTH], axis=0)
            k, v = (op.Expand(t, shape) for t in (k, v))
    number = WIDTH**-0.5
    if scale in ("on query", "both"):
        q = op.Mul(q, w.constant(number if scale == "on query" else np.sqrt(number)))
    scaled_key = scale == "both"
    if heads and not einsum:
        q, v = (op.Transpose(t, perm=[0, 2, 1, 3]) for t in (q, v))
    lengths_of_key = k
    if einsum:
        assert heads
        scores = op.Einsum(q, k, equation="bqhd,bkhd->bhqk")
        lengths_of_query = op.Transpose(q, perm=[0, 2, 1, 3])
        lengths_of_key = op.Transpose(k, perm=[0, 2, 1, 3])
    else:
        lengths_of_query = q
        if heads and transpose == "at once":
            kt = op.Transpose(k, perm=[0, 2, 3, 1])
            lengths_of_key = op.Transpose(k, perm=[0, 2, 1, 3])
        else:
            k = op.Transpose(k, perm=[0, 2, 1, 3]) if heads else k
            lengths_of_key = k
            if transpose == "reshapes" and heads:
                shape = op.Shape(k)
                flat = op.Reshape(k, op.Concat([-1], op.Slice(shape, [2], [4]), axis=0))
                flat = op.Transpose(flat, perm=[0, 2, 1])
                back = op.Concat(
                    op.Slice(shape, [0], [2]),
                    op.Slice(shape, [3], [4]),
                    op.Slice(shape, [2], [3]),
                    axis=0,
                )
                kt = op.Reshape(flat, back)
            else:
                kt = op.Transpose(k, perm=[0, 1, 3, 2] if heads else [0, 2, 1])
        if scaled_key or transpose == "scaled":
            kt = op.Mul(kt, w.constant(np.sqrt(number)))
        if transpose == "of the scores":
            swap = [0, 1, 3, 2] if heads else [0, 2, 1]
            scores = op.Transpose(op.MatMul(lengths_of_key, op.Transpose(q, perm=swap)), perm=swap)
        else:
            scores = op.MatMul(q, kt)
    if scale == "mul":
        scores = op.Mul(scores, w.constant(number))
    elif scale == "div":
        scores = op.Div(scores, w.constant([1 / number]))
    elif scale == "computed":
        width = op.Cast(op.Gather(op.Shape(q), w.constant(-1, np.int64)), to=1)
        scores = op.Div(scores, op.Sqrt(width))
    elif scale == "per head" and heads:
        scores = op.Mul(scores, w.constant(np.array([0.5, 0.25]).reshape(1, HEADS, 1, 1)))
    if mask is not None:
        scores, shown = _masked(
            w, scores, mask, order, flags, lengths_of_query, lengths_of_key, heads
        )
    weights = op.Softmax(scores, axis=-1, _name=name)
    if after is not None:
        weights = AFTER[after](w, weights, shown)
    if einsum:
        out = op.Einsum(weights, v, equation="bhqk,bkhd->bqhd")
    elif transpose == "of the scores":
        swap = [0, 1, 3, 2] if heads else [0, 2, 1]
        out = op.MatMul(op.Transpose(v, perm=swap), op.Transpose(weights, perm=swap))
        out = op.Transpose(out, perm=[0, 3, 1, 2] if heads else [0, 2, 1])
    else:
        out = op.MatMul(weights, v)
        out = op.Transpose(out, perm=[0, 2, 1, 3]) if heads else out
    if heads:
        out = op.Reshape(out, w.constant([0, 0, DIM], np.int64))
    out = op.MatMul(out, w.weight(DIM, DIM))
    given: dict[str, tuple[Any, tuple[Any, ...]]] = {"out": (out, ("batch", "seq", DIM))}
    if "weights" in outputs:
        lead = ("batch", HEADS) if heads else ("batch",)
        given["weights"] = (weights, (*lead, "seq", length))
    return w.model(**given)


def _masked(
    w: Writer, scores: Any, mask: str, order: str | None, flags: Any, q: Any, k: Any, heads: bool
) -> tuple[Any, Any]:
    shown = None
    if order is not None:
        shown = ORDERS[order](w, q, k)
        while len(shown.shape) < (4 if heads else 3):
            shown = w.op.Unsqueeze(shown, [0])
    if flags is not None:
        by_key = w.op.Cast(w.op.Unsqueeze(flags, [1, 2] if heads else [1]), to=9)
        shown = by_key if shown is None else w.op.And(shown, by_key)
    return MASKS[mask](w, scores, shown), shown

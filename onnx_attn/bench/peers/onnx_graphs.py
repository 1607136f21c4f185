"""Peers that are ONNX graphs in ONNX Runtime: written by hand, by op, by Keras; and the bound."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto
from onnx import helper as make
from onnx.numpy_helper import from_array

from ...arrays import Array
from ..candidate import CannotError, Prepared
from ..cells import Cell

FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL
OUTPUTS = ("output", "attention_scores")
# Queries per block of the bound's second form: scores of a block stay in a core's cache.
BOUND_BLOCK = 256
EXCHANGES = 4


def session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    """An InferenceSession as ours is set: `threads` explicit, all else as it comes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_graph(model: bytes, cell: Cell, tensors: dict[str, Array], threads: int) -> Prepared:
    """`model` on the inputs it asks for; its outputs, in order, are those of the cell."""
    runner = session(model, threads)
    feeds = {entry.name: tensors[entry.name] for entry in runner.get_inputs()}
    found = [entry.name for entry in runner.get_outputs()][: 2 if cell.scores else 1]

    def arrays(result: Any) -> dict[str, Array]:
        return dict(zip(OUTPUTS, result, strict=False))

    return Prepared(lambda: runner.run(found, feeds), arrays)


def graph(
    nodes: list[Any],
    cell: Cell,
    constants: dict[str, Array],
    opset: int = 17,
    *,
    fixed_shapes: bool = False,
) -> bytes:
    """A model of `nodes` with the cell's inputs and outputs."""
    B, Tq, Tv, dim = (
        (cell.batch, cell.Tq, cell.Tv, cell.dim)
        if fixed_shapes or cell.fixed
        else ("B", "Tq", "Tv", "dim")
    )
    value = make.make_tensor_value_info
    inputs = [
        value("query", FLOAT, [B, Tq, dim]),
        value("value", FLOAT, [B, Tv, dim]),
        value("key", FLOAT, [B, Tv, dim]),
    ]
    if cell.padding != "none":
        inputs.append(value("value_mask", BOOL, [B, Tv]))
    outputs = [value("output", FLOAT, [B, Tq, dim])]
    if cell.scores:
        outputs.append(value("attention_scores", FLOAT, [B, Tq, Tv]))
    initializers = [from_array(array, name) for name, array in constants.items()]
    domains = [make.make_opsetid("", opset), make.make_opsetid("com.microsoft", 1)]
    made = make.make_graph(nodes, "peer", inputs, outputs, initializers)
    return make.make_model(
        made, opset_imports=domains, ir_version=8 if opset < 19 else 10
    ).SerializeToString()


def bare(cell: Cell, tensors: dict[str, Array], threads: int) -> Prepared:
    """Transpose, MatMul, Softmax, MatMul; causal by Trilu, masks by Where, added to the scores."""
    node: Any = make.make_node
    nodes: list[Any] = [node("Transpose", ["key"], ["key_t"], perm=[0, 2, 1])]
    constants: dict[str, Any] = {}
    scores, bias = "scores", None
    nodes.append(node("MatMul", ["query", "key_t"], [scores]))
    if cell.causal:
        constants |= {"hidden": np.float32(-1e9), "one": np.array(1)}
        nodes += [
            node("Shape", ["query"], ["rows"], start=1, end=2),
            node("Shape", ["key"], ["columns"], start=1, end=2),
            node("Concat", ["rows", "columns"], ["square"], axis=0),
            node("Expand", ["hidden", "square"], ["all_hidden"]),
            node("Trilu", ["all_hidden", "one"], ["future"], upper=1),
        ]
        bias = "future"
    if cell.padding != "none":
        constants |= {"hidden": np.float32(-1e9), "axis": np.array([1]), "seen": np.float32(0)}
        nodes += [
            node("Unsqueeze", ["value_mask", "axis"], ["mask"]),
            node("Where", ["mask", bias or "seen", "hidden"], ["masked"]),
        ]
        bias = "masked"
    if bias:
        nodes.append(node("Add", [scores, bias], ["biased"]))
        scores = "biased"
    weights = "attention_scores" if cell.scores else "weights"
    nodes.append(node("Softmax", [scores], [weights], axis=-1))
    nodes.append(node("MatMul", [weights, "value"], ["output"]))
    as_arrays = {name: np.asarray(constant) for name, constant in constants.items()}
    return run_graph(graph(nodes, cell, as_arrays), cell, tensors, threads)


def attention_op(cell: Cell, tensors: dict[str, Array], threads: int) -> Prepared:
    """The ONNX operator Attention of opset 23: one head, scale 1."""
    node: Any = make.make_node
    nodes: list[Any] = []
    mask = ""
    constants: dict[str, Array] = {}
    if cell.padding != "none":
        constants["axes"] = np.array([1, 2])
        constants["shape"] = np.array([cell.batch, 1, cell.Tq, cell.Tv])
        nodes = [
            node("Unsqueeze", ["value_mask", "axes"], ["mask_of_rows"]),
            node("Expand", ["mask_of_rows", "shape"], ["mask"]),
        ]
        mask = "mask"
    outputs = ["output", "", "", "scores"] if cell.scores else ["output"]
    nodes.append(
        node(
            "Attention",
            ["query", "key", "value", mask] if mask else ["query", "key", "value"],
            outputs,
            q_num_heads=1,
            kv_num_heads=1,
            scale=1.0,
            is_causal=int(cell.causal),
            qk_matmul_output_mode=3,
        )
    )
    if cell.scores:
        constants["heads"] = np.array([1])
        nodes.append(node("Squeeze", ["scores", "heads"], ["attention_scores"]))
    # With named dims its shape inference gives 0 and ONNX Runtime warns at every run.
    model = graph(nodes, cell, constants, 23, fixed_shapes=True)
    return run_graph(model, cell, tensors, threads)


def multi_head_attention(cell: Cell, tensors: dict[str, Array], threads: int) -> Prepared:
    """com.microsoft.MultiHeadAttention: one head, scale 1."""
    if cell.scores:
        raise CannotError("MultiHeadAttention does not return the weights after softmax")
    node: Any = make.make_node
    nodes: list[Any] = []
    arguments = ["query", "key", "value"]
    if cell.padding != "none":
        nodes.append(node("Cast", ["value_mask"], ["mask"], to=TensorProto.INT32))
        arguments += ["", "mask"]
    nodes.append(
        node(
            "MultiHeadAttention",
            arguments,
            ["output"],
            domain="com.microsoft",
            num_heads=1,
            scale=1.0,
            mask_filter_value=-1e9,
            unidirectional=int(cell.causal),
        )
    )
    return run_graph(graph(nodes, cell, {}), cell, tensors, threads)


def keras_model(cell: Cell) -> bytes:
    """The file Keras's exporter wrote for the cell's mode (`make_keras_export` made it)."""
    switched = {
        "causal": cell.causal,
        "value_mask": cell.padding != "none",
        "scores": cell.scores,
    }
    name = "_".join(word for word, on in switched.items() if on) or "plain"
    return (files("onnx_attn.bench.peers") / "keras_export" / f"{name}.onnx").read_bytes()


def keras_export(cell: Cell, tensors: dict[str, Array], threads: int) -> Prepared:
    """Keras's own ONNX export."""
    return run_graph(keras_model(cell), cell, tensors, threads)


def _two_matmuls() -> bytes:
    cell = Cell("bound", 1, 1, 1, 1)
    nodes = [
        make.make_node("Transpose", ["key"], ["key_t"], perm=[0, 2, 1]),
        make.make_node("MatMul", ["query", "key_t"], ["scores"]),
        make.make_node("MatMul", ["scores", "value"], ["output"]),
    ]
    return graph(nodes, cell, {})


def nothing_to_check(_result: object) -> dict[str, Array]:
    """A bound computes no attention."""
    return {}


def matmuls(_cell: Cell, tensors: dict[str, Array], threads: int) -> Prepared:
    """(query @ key^T) @ value: the arithmetic that no exact dense attention can do without."""
    feeds = {name: tensors[name] for name in ("query", "value", "key")}
    runner = session(_two_matmuls(), threads)
    return Prepared(lambda: runner.run(None, feeds), nothing_to_check)


def matmuls_in_blocks(cell: Cell, tensors: dict[str, Array], threads: int) -> Prepared:
    """The same, in blocks of queries and one batch row at a time: scores never leave the cache."""
    if cell.Tq <= BOUND_BLOCK:
        raise CannotError(f"needs more than {BOUND_BLOCK} queries")
    runner = session(_two_matmuls(), threads)
    feeds = [
        {
            "query": tensors["query"][row : row + 1, start : start + BOUND_BLOCK],
            "value": tensors["value"][row : row + 1],
            "key": tensors["key"][row : row + 1],
        }
        for row in range(cell.batch)
        for start in range(0, cell.Tq, BOUND_BLOCK)
    ]

    def run() -> None:
        for block in feeds:
            runner.run(None, block)

    return Prepared(run, nothing_to_check)


def exchange_chain() -> bytes:
    """Attention of 128 queries to 512 keys, EXCHANGES times in turn, each on the result before.

    Two threads share its first MatMul by keys and its Softmax by queries, so that half of the
    scores change hands.
    """
    cell, node = Cell("exchange", 1, 128, 512, 64), make.make_node
    nodes = [node("Transpose", ["key"], ["key_t"], perm=[0, 2, 1])]
    query = "query"
    for number in range(EXCHANGES):
        scores, weights = f"scores_{number}", f"weights_{number}"
        output = "output" if number == EXCHANGES - 1 else f"output_{number}"
        nodes += [
            node("MatMul", [query, "key_t"], [scores]),
            node("Softmax", [scores], [weights], axis=-1),
            node("MatMul", [weights, "value"], [output]),
        ]
        query = output
    return graph(nodes, cell, {})

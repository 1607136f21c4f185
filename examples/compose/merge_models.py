"""onnx_attn's file merged into a larger model with `onnx.compose`.

An encoder and a head that know nothing of onnx_attn, and an attention file between them, become
one model: token ids in, a probability out. `onnx.compose.merge_models` joins models of the same
IR version and opset only, so both are stated where each part is made.

    python examples/compose/merge_models.py               # opset 17, IR 8
    python examples/compose/merge_models.py --opset 21    # opset 21, IR 10
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.compose
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from onnx_attn import Attention

IR_OF_OPSET = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10}
VOCABULARY, DIM = 30, 16
PADDING = 0
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}


def encoder(table: np.ndarray, opset: int) -> onnx.ModelProto:
    """Token ids [batch, T] to embeddings [batch, T, dim] and the mask of real tokens [batch, T]."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "tokens"], ["embedded"]),
            helper.make_node("Greater", ["tokens", "padding"], ["real"]),
        ],
        "encoder",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "T"])],
        [
            helper.make_tensor_value_info("embedded", TensorProto.FLOAT, ["batch", "T", DIM]),
            helper.make_tensor_value_info("real", TensorProto.BOOL, ["batch", "T"]),
        ],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array(PADDING, np.int64), "padding"),
        ],
    )
    return stated(graph, opset)


def head(weights: np.ndarray, opset: int) -> onnx.ModelProto:
    """Attended rows [batch, T, dim] to a probability [batch, 1]: maximum over T, then logistic."""
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["rows"], ["columns"], perm=[0, 2, 1]),
            helper.make_node("GlobalMaxPool", ["columns"], ["largest"]),  # [batch, dim, 1]
            helper.make_node("Flatten", ["largest"], ["pooled"]),  # [batch, dim]
            helper.make_node("MatMul", ["pooled", "weights"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["probability"]),
        ],
        "head",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", "T", DIM])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(weights, "weights")],
    )
    return stated(graph, opset)


def stated(graph: onnx.GraphProto, opset: int) -> onnx.ModelProto:
    """A model that says opset and IR: left out, onnx stamps its newest, which may load nowhere."""
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_OF_OPSET[opset]
    )


def merged_model(table: np.ndarray, weights: np.ndarray, scale: float, opset: int):
    """Encoder, attention and head as one model."""
    layer = Attention(use_scale=True)
    layer.set_weights([scale])
    with tempfile.TemporaryDirectory() as folder:
        attention = onnx.load(layer.export(Path(folder) / "attention.onnx", key=False, opset=opset))
    # It says "this model is an attention layer", which will not be true of the merged one.
    del attention.metadata_props[:]
    parts = {"encoder": encoder(table, opset), "attention": attention, "head": head(weights, opset)}
    for name, part in parts.items():
        print(f"{name}: opset {part.opset_import[0].version}, IR {part.ir_version}")
    # Prefixes keep the parts' names apart. They go on the parts around the attention: onnx.compose
    # does not carry a prefix into subgraphs, and an attention file may hold some (`If`, `Scan`).
    add_prefix = onnx.compose.add_prefix
    model = onnx.compose.merge_models(
        add_prefix(parts["encoder"], "encoder/", rename_inputs=False),
        parts["attention"],
        # One tensor may feed several inputs: this is self-attention, one mask for both sides.
        io_map=[
            ("encoder/embedded", "query"),
            ("encoder/embedded", "value"),
            ("encoder/real", "query_mask"),
            ("encoder/real", "value_mask"),
        ],
    )
    model = onnx.compose.merge_models(
        model,
        add_prefix(parts["head"], "head/", rename_outputs=False),
        io_map=[("output", "head/rows")],
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def in_numpy(tokens, table, weights, scale):
    """The merged model in NumPy float64."""
    embedded, real = table[tokens].astype(np.float64), tokens > PADDING
    scores = scale * embedded @ np.swapaxes(embedded, 1, 2) - 1e9 * ~real[:, None, :]
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    rows = shares @ embedded * real[:, :, None]
    return 1 / (1 + np.exp(-rows.max(1) @ weights))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--opset", type=int, choices=sorted(IR_OF_OPSET), default=17)
    opset = parser.parse_args().opset

    random = np.random.default_rng(0)
    table = random.normal(size=(VOCABULARY, DIM)).astype(np.float32)
    weights = random.normal(size=(DIM, 1)).astype(np.float32)
    scale = 0.25
    tokens = random.integers(1, VOCABULARY, size=(3, 7))
    tokens[1, 4:] = tokens[2, 2:] = PADDING

    model = merged_model(table, weights, scale, opset)
    inputs = ", ".join(given.name for given in model.graph.input)
    outputs = ", ".join(given.name for given in model.graph.output)
    print(
        f"merged: {inputs} -> {outputs}, {len(model.graph.node)} nodes, "
        f"opset {model.opset_import[0].version}, IR {model.ir_version}"
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (probability,) = session.run(None, {"tokens": tokens})
    expected = in_numpy(tokens, table, weights, scale)
    print(f"largest error against NumPy: {np.abs(probability - expected).max():.1e}")
    return 0 if np.allclose(probability, expected, **TOLERANCE) else 1


if __name__ == "__main__":
    sys.exit(main())

"""onnx_attn's onnxscript functions inside a graph of your own.

A self-attention block as somebody else would write it: three learned projections, the formulas of
`onnx_attn.graph` between them, a residual connection. The functions are calls in the model until
`inline_local_functions` flattens it; what ONNX Runtime then loads holds standard ops only.

    python examples/compose/functions_in_your_graph.py
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
from onnxscript import BOOL, FLOAT, script
from onnxscript import opset17 as op

from onnx_attn.graph import (
    dot_scores,
    masked_output,
    masked_scores,
    scaled_query,
    softmax_weights,
    value_mask_bias,
    weighted_sum,
)

IR_VERSION = 8  # the IR of opset 17, which the functions are written in
DIM, HEAD_DIM = 12, 8
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}


@script(default_opset=op)
def self_attention_block(
    x: FLOAT["batch", "T", DIM],
    mask: BOOL["batch", "T"],
    query_weights: FLOAT[DIM, HEAD_DIM],
    key_weights: FLOAT[DIM, HEAD_DIM],
    value_weights: FLOAT[DIM, DIM],
    scale: FLOAT,
) -> FLOAT["batch", "T", DIM]:
    query = op.MatMul(x, query_weights)  # [batch, T, head_dim]
    key = op.MatMul(x, key_weights)  # [batch, T, head_dim]
    value = op.MatMul(x, value_weights)  # [batch, T, dim]
    scores = dot_scores(scaled_query(query, scale), key)  # [batch, T, T]
    bias = value_mask_bias(mask, scores)  # [batch, 1, T], in the type of the scores
    weights = softmax_weights(masked_scores(scores, bias))
    attended = masked_output(weighted_sum(weights, value), mask)  # [batch, T, dim]
    return op.Add(x, attended)


def flat_model(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The block with its trained `weights` as one flat model, for ONNX Runtime 1.12 and later."""
    model = self_attention_block.to_model_proto(ir_version=IR_VERSION)
    called = sorted({function.name for function in model.functions})
    model = onnx.inliner.inline_local_functions(model)
    for name, weight in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
        model.graph.input.remove(next(given for given in model.graph.input if given.name == name))
    # After inlining nothing is called any more: the domain of our functions can go.
    standard = [entry for entry in model.opset_import if entry.domain == ""]
    del model.opset_import[:]
    model.opset_import.extend(standard)
    onnx.checker.check_model(model, full_check=True)
    print(f"onnx_attn functions called: {', '.join(called)}")
    print(
        f"after inlining: {len(model.graph.node)} nodes, {len(model.functions)} functions, "
        f"opset {model.opset_import[0].version}, IR {model.ir_version}"
    )
    return model


def in_numpy(x, mask, query_weights, key_weights, value_weights, scale):
    """The same block in NumPy float64."""
    x = x.astype(np.float64)
    scores = scale * (x @ query_weights) @ np.swapaxes(x @ key_weights, 1, 2)  # [batch, T, T]
    scores = scores - 1e9 * ~mask[:, None, :]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return x + weights @ (x @ value_weights) * mask[:, :, None]


def main() -> int:
    random = np.random.default_rng(0)
    weights = {
        "query_weights": (random.normal(size=(DIM, HEAD_DIM)) * DIM**-0.5).astype(np.float32),
        "key_weights": (random.normal(size=(DIM, HEAD_DIM)) * DIM**-0.5).astype(np.float32),
        "value_weights": (random.normal(size=(DIM, DIM)) * DIM**-0.5).astype(np.float32),
        "scale": np.array(HEAD_DIM**-0.5, np.float32),
    }
    feeds = {
        "x": random.normal(size=(2, 5, DIM)).astype(np.float32),
        "mask": np.array([[True] * 5, [True, True, True, False, False]]),
    }
    session = onnxruntime.InferenceSession(
        flat_model(weights).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (output,) = session.run(None, feeds)
    expected = in_numpy(**feeds, **weights)
    print(f"output {output.dtype}{list(output.shape)}")
    print(f"largest error against NumPy: {np.abs(output - expected).max():.1e}")
    return 0 if np.allclose(output, expected, **TOLERANCE) else 1


if __name__ == "__main__":
    sys.exit(main())

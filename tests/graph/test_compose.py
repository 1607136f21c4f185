"""Promise: composable. Our formulas inside somebody else's onnxscript"""

import numpy as np
import onnx
import onnxruntime
from onnx import inliner
from onnxscript import BOOL, FLOAT, script
from onnxscript import opset17 as op

from onnx_attn.graph import (
    causal_bias,
    dot_product_attention,
    dot_scores,
    masked_output,
    masked_scores,
    scaled_query,
    softmax_weights,
    value_and_causal_bias,
    value_mask_bias,
    weighted_sum,
)
from onnx_attn.reference import attention


@script(default_opset=op)
def projected_attention(
    words: FLOAT["batch", "T", "features"],
    query_kernel: FLOAT["features", "dim"],
    key_kernel: FLOAT["features", "dim"],
    value_kernel: FLOAT["features", "dim"],
    scale: FLOAT,
) -> FLOAT["batch", "T", "dim"]:
    query = op.MatMul(words, query_kernel)
    key = op.MatMul(words, key_kernel)
    value = op.MatMul(words, value_kernel)
    scores = dot_scores(scaled_query(query, scale), key)
    visible = masked_scores(scores, causal_bias(query, key))
    return weighted_sum(softmax_weights(visible), value)


def test_projections_around_our_attention() -> None:
    rng = np.random.default_rng(0)
    words = rng.standard_normal((2, 7, 6)).astype(np.float32)
    kernels = rng.standard_normal((3, 6, 4)).astype(np.float32)
    model = projected_attention.to_model_proto(ir_version=8)
    flat = inliner.inline_local_functions(model)
    assert not flat.functions
    assert {node.domain for node in flat.graph.node} == {""}
    onnx.checker.check_model(flat, full_check=True)
    session = onnxruntime.InferenceSession(flat.SerializeToString())
    (output,) = session.run(
        None,
        {
            "words": words,
            "query_kernel": kernels[0],
            "key_kernel": kernels[1],
            "value_kernel": kernels[2],
            "scale": np.array(0.5, np.float32),
        },
    )
    query, key, value = (words @ kernel for kernel in kernels)
    wanted, _ = attention(query, value, key, scale=0.5, causal=True)
    np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-5)


@script(default_opset=op)
def masked_self_attention(
    words: FLOAT["batch", "T", "dim"],
    mask: BOOL["batch", "T"],
) -> tuple[FLOAT["batch", "T", "dim"], FLOAT["batch", "T", "dim"]]:
    padded, _weights = dot_product_attention(words, words, words, value_mask_bias(mask, words))
    both = value_and_causal_bias(mask, causal_bias(words, words))
    causal, _causal_weights = dot_product_attention(words, words, words, both)
    return masked_output(padded, mask), causal


def test_whole_attention_with_masks() -> None:
    rng = np.random.default_rng(1)
    words = rng.standard_normal((3, 5, 4)).astype(np.float32)
    mask = np.arange(5)[None] >= np.array([[0], [2], [5]])
    flat = inliner.inline_local_functions(masked_self_attention.to_model_proto(ir_version=8))
    onnx.checker.check_model(flat, full_check=True)
    session = onnxruntime.InferenceSession(flat.SerializeToString())
    padded, causal = session.run(None, {"words": words, "mask": mask})
    wanted, _ = attention(words, words, value_mask=mask, query_mask=mask)
    np.testing.assert_allclose(padded, wanted, rtol=1e-5, atol=2e-6)
    wanted, _ = attention(words, words, value_mask=mask, causal=True)
    np.testing.assert_allclose(causal, wanted, rtol=1e-5, atol=2e-6)

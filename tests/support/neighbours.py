"""A causal file of free sizes behind, before and as a model of fixed length, in ONNX Runtime.

Child processes import this module by its name: ONNX Runtime has crashed on such models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx
import onnxruntime
from onnx import compose, parser
from onnxruntime.tools.onnx_model_utils import fix_output_shapes, make_dim_param_fixed

from onnx_attn import Attention
from onnx_attn.reference import attention
from oracle import close

BATCH, DIM = 2, 8
Feeds = dict[str, np.ndarray]
Made = tuple[onnx.ModelProto, Feeds, np.ndarray]


def behind(model: onnx.ModelProto, length: int, x: np.ndarray) -> Made:
    """The file's tensors are outputs of an encoder."""
    encoder = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        encoder (float[{BATCH},{length},{DIM}] x) => (float[{BATCH},{length},{DIM}] q,
            float[{BATCH},{length},{DIM}] v, float[{BATCH},{length},{DIM}] k)
        {{ q = Tanh(x) v = Neg(x) k = Abs(x) }}"""
    )
    links = [("q", "query"), ("v", "value"), ("k", "key")]
    wanted, _ = attention(np.tanh(x), -x, np.abs(x), causal=True)
    return compose.merge_models(encoder, model, io_map=links), {"x": x}, wanted


def before(model: onnx.ModelProto, length: int, x: np.ndarray) -> Made:
    """The file's output goes to a decoder."""
    decoder = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        decoder (float[{BATCH},{length},{DIM}] hidden) => (float[{BATCH},{length},{DIM}] y)
        {{ y = Neg(hidden) }}"""
    )
    wanted, _ = attention(x, -x, np.abs(x), causal=True)
    feeds = {"query": x, "value": -x, "key": np.abs(x)}
    return compose.merge_models(model, decoder, io_map=[("output", "hidden")]), feeds, -wanted


def fixed(model: onnx.ModelProto, length: int, x: np.ndarray) -> Made:
    """Lengths and batch are fixed by ONNX Runtime's tool."""
    for name, size in (("batch", BATCH), ("Tq", length), ("Tv", length), ("value_dim", DIM)):
        make_dim_param_fixed(model.graph, name, size)
    fix_output_shapes(model)
    wanted, _ = attention(x, -x, np.abs(x), causal=True)
    return model, {"query": x, "value": -x, "key": np.abs(x)}, wanted


MAKERS: dict[str, Callable[[onnx.ModelProto, int, np.ndarray], Made]] = {
    "behind": behind,
    "before": before,
    "make_dim_param_fixed": fixed,
}


def check_all(where: str, lengths: Iterable[int]) -> None:
    """Raise unless every length gives the right numbers; the last line printed is that at work."""
    file = Attention(causal=True).to_onnx(masks="none").SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    for length in lengths:
        print(length, flush=True)  # noqa: T201
        x = np.random.default_rng(length).standard_normal((BATCH, length, DIM), np.float32)
        made, feeds, wanted = MAKERS[where](onnx.load_from_string(file), length, x)
        onnx.checker.check_model(made, full_check=True)
        session = onnxruntime.InferenceSession(
            made.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        (got,) = session.run(None, feeds)
        close(got, wanted, "float32")

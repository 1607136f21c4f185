"""Peers that are other runtimes and frameworks. Each is imported only in its own process."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from ...arrays import Array
from ..candidate import CannotError, Prepared
from ..cells import Cell
from ..ours import our_model
from .onnx_graphs import OUTPUTS, keras_model


def openvino_ours(cell: Cell, tensors: dict[str, Array], threads: int) -> Prepared:
    """Our dense file in OpenVINO."""
    return _openvino(our_model(cell, "dense"), tensors, threads)


def openvino_keras(cell: Cell, tensors: dict[str, Array], threads: int) -> Prepared:
    """Keras's own ONNX export in OpenVINO."""
    return _openvino(keras_model(cell), tensors, threads)


def _openvino(model: bytes, tensors: dict[str, Array], threads: int) -> Prepared:
    openvino: Any = import_module("openvino")
    core: Any = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled: Any = core.compile_model(core.read_model(model), "CPU", settings)
    request: Any = compiled.create_infer_request()
    feeds = {port.get_any_name(): tensors[port.get_any_name()] for port in compiled.inputs}

    def run() -> Any:
        return request.infer(feeds, share_inputs=True, share_outputs=True)

    def arrays(result: Any) -> dict[str, Array]:
        return {
            name: np.array(result[port])
            for name, port in zip(OUTPUTS, compiled.outputs, strict=False)
        }

    return Prepared(run, arrays)


def torch_sdpa(cell: Cell, tensors: dict[str, Array], threads: int) -> Prepared:
    """torch.nn.functional.scaled_dot_product_attention: scale 1, masks as bool.

    The causal triangle is made once, outside the run; combining it with the cell's value mask is
    part of the run, since the mask comes with the batch.
    """
    if cell.scores:
        raise CannotError("scaled_dot_product_attention does not return the weights")
    torch: Any = import_module("torch")
    torch.set_num_threads(threads)
    query, value, key = (
        torch.from_numpy(tensors[name])[:, None] for name in ("query", "value", "key")
    )  # [batch, 1, T, dim]
    attend = torch.nn.functional.scaled_dot_product_attention
    mask, triangle = None, None
    if cell.padding != "none":
        mask = torch.from_numpy(tensors["value_mask"])[:, None, None, :]
        if cell.causal:
            triangle = torch.ones(cell.Tq, cell.Tv, dtype=torch.bool).tril()

    def run() -> Any:
        with torch.inference_mode():
            if mask is None:
                return attend(query, key, value, is_causal=cell.causal, scale=1.0)
            seen = mask if triangle is None else mask & triangle
            return attend(query, key, value, attn_mask=seen, scale=1.0)

    def arrays(result: Any) -> dict[str, Array]:
        return {"output": result[:, 0].numpy()}

    return Prepared(run, arrays)


def keras_tensorflow(cell: Cell, tensors: dict[str, Array], threads: int) -> Prepared:
    """keras.layers.Attention on TensorFlow, called under tf.function."""
    tensorflow: Any = import_module("tensorflow")
    threading: Any = tensorflow.config.threading
    if threading.get_intra_op_parallelism_threads() != threads:
        threading.set_intra_op_parallelism_threads(threads)
        threading.set_inter_op_parallelism_threads(1)
    keras: Any = import_module("keras")
    layer: Any = keras.layers.Attention()
    inputs = [tensorflow.constant(tensors[name]) for name in ("query", "value", "key")]
    mask = None
    if cell.padding != "none":
        mask = tensorflow.constant(tensors["value_mask"])

    @tensorflow.function
    def call(query: Any, value: Any, key: Any, value_mask: Any) -> Any:
        return layer(
            [query, value, key],
            mask=None if value_mask is None else [None, value_mask],
            use_causal_mask=cell.causal,
            return_attention_scores=cell.scores,
        )

    def arrays(result: Any) -> dict[str, Array]:
        results = result if cell.scores else (result,)
        return {name: part.numpy() for name, part in zip(OUTPUTS, results, strict=False)}

    return Prepared(lambda: call(*inputs, mask), arrays)

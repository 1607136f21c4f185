"""Write the ONNX files that Keras's own exporter makes of its Attention layer.

They are the benchmark's peer "Keras's ONNX export" and lie beside this script. Needs an
environment of its own; the files here were made with keras 3.15.1, tensorflow-cpu 2.21.0,
tf2onnx 1.17.0 and onnx 1.23.2:

    pip install keras tensorflow-cpu tf2onnx onnx
    KERAS_BACKEND=tensorflow python onnx_attn/bench/peers/make_keras_export.py
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "keras_export"


def write(path: Path, *, value_mask: bool, causal: bool, scores: bool) -> None:
    """One file: inputs query, value, key and, with `value_mask`, value_mask; any shapes."""
    keras: Any = import_module("keras")
    tensors = [keras.Input((None, None), name=name) for name in ("query", "value", "key")]
    example: list[Any] = [np.zeros((1, 2, 8), np.float32)] * 3
    inputs, mask = list(tensors), None
    if value_mask:
        inputs.append(keras.Input((None,), dtype="bool", name="value_mask"))
        mask = [None, inputs[-1]]
        example.append(np.ones((1, 2), np.bool_))
    outputs = keras.layers.Attention()(
        tensors, mask=mask, use_causal_mask=causal, return_attention_scores=scores
    )
    model = keras.Model(inputs, outputs)
    model(example)
    model.export(str(path), format="onnx", verbose=False)


def main() -> None:
    """Write every file, named by what is switched on."""
    FOLDER.mkdir(exist_ok=True)
    for value_mask in (False, True):
        for causal in (False, True):
            for scores in (False, True):
                switched = {"causal": causal, "value_mask": value_mask, "scores": scores}
                name = "_".join(word for word, on in switched.items() if on) or "plain"
                write(FOLDER / f"{name}.onnx", value_mask=value_mask, causal=causal, scores=scores)


if __name__ == "__main__":
    main()

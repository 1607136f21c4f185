"""Write the whole models of the benchmark, as exporters write them, without their weights.

They lie beside this script in graphs/. Needs environments of their own; the files here were made
with torch 2.13.0 and transformers 5.18.0, and with keras 3.15.1, tensorflow-cpu 2.21.0, tf2onnx
1.17.0:

    python -m onnx_attn.bench.wholes.make_graphs torch
    KERAS_BACKEND=tensorflow python -m onnx_attn.bench.wholes.make_graphs keras
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from .skeleton import pack

FOLDER = Path(__file__).parent / "graphs"
VOCABULARY, WIDTH, LAYERS = 1000, 384, 6
KERAS_WIDTH, KERAS_HEADS, KERAS_BLOCKS = 256, 4, 4
# TorchScript's exporter writes any of them; torch.export's writes 18 and newer.
OPSETS = {"ts": 17, "dynamo": 20}


def decoder(heads: int) -> Any:
    """GPT-2 from a configuration: causal, up to 2,048 tokens."""
    hub: Any = import_module("transformers")
    configuration = hub.GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=heads, n_positions=2048
    )
    configuration.use_cache = False
    return hub.GPT2Model(configuration).eval()


def encoder() -> Any:
    """BERT from the configuration of a small sentence encoder: 12 heads, up to 512 tokens."""
    hub: Any = import_module("transformers")
    configuration = hub.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        intermediate_size=4 * WIDTH,
    )
    return hub.BertModel(configuration, add_pooling_layer=False).eval()


def export_torch(model: Any, exporter: str, path: Path) -> None:
    """`model` by one of torch's two exporters, any batch and length."""
    torch: Any = import_module("torch")

    class HiddenStates(torch.nn.Module):  # pyright: ignore[reportUntypedBaseClass]
        """What is exported: a plain tensor as output."""

        def __init__(self) -> None:
            super().__init__()  # pyright: ignore
            self.model = model

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.model(input_ids=ids, attention_mask=mask, return_dict=True)[0]

    example = torch.ones((2, 11), dtype=torch.int64), torch.ones((2, 11), dtype=torch.int64)
    names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["out"]}
    if exporter == "ts":
        axes = {name: {0: "batch", 1: "seq"} for name in ("input_ids", "attention_mask", "out")}
        how: dict[str, Any] = {"dynamic_axes": axes, "dynamo": False}
    else:
        sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", max=512)}
        how = {"dynamic_shapes": (sizes, sizes), "dynamo": True, "external_data": False}
    opset = OPSETS[exporter]
    torch.onnx.export(HiddenStates(), example, str(path), opset_version=opset, **names, **how)


def keras_model(heads: int | None) -> Any:
    """Four blocks of causal attention: keras.layers.Attention, or MultiHeadAttention with masks."""
    keras: Any = import_module("keras")
    layers = keras.layers
    ids = keras.Input((None,), dtype="int32", name="ids")
    embed = layers.Embedding(VOCABULARY, KERAS_WIDTH, mask_zero=heads is not None)
    states = embed(ids)
    for _ in range(KERAS_BLOCKS):
        normal = layers.LayerNormalization()(states)
        if heads is None:
            query, value, key = (layers.Dense(KERAS_WIDTH)(normal) for _ in range(3))
            layer = layers.Attention(use_scale=True)
            seen = layer([query, value, key], use_causal_mask=True)
            layer.scale.assign(KERAS_WIDTH**-0.5)  # about where training puts it
        else:
            layer = layers.MultiHeadAttention(heads, KERAS_WIDTH // heads)
            seen = layer(normal, normal, use_causal_mask=True)
        states = layers.Add()([states, seen])
        hidden = layers.Dense(4 * KERAS_WIDTH, activation="relu")(states)
        states = layers.Add()([states, layers.Dense(KERAS_WIDTH)(hidden)])
    return keras.Model(ids, states)


def export_keras(model: Any, path: Path) -> None:
    """`model.export(format="onnx")`."""
    model(np.ones((1, 4), np.int32))
    model.export(str(path), format="onnx", verbose=False)


def main(framework: str) -> None:
    """Write the models of one framework."""
    FOLDER.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"

        def keep(name: str) -> None:
            pack(onnx.load(path), FOLDER / f"{name}.onnx.gz")

        if framework == "torch":
            import_module("torch").manual_seed(0)
            for heads in (6, 12):
                export_torch(decoder(heads), "ts", path)
                keep(f"decoder_{heads}_heads.ts")
            for exporter in OPSETS:
                export_torch(encoder(), exporter, path)
                keep(f"encoder.{exporter}")
        else:
            import_module("keras").utils.set_random_seed(0)
            for name, heads in (("attention", None), ("multi_head", KERAS_HEADS)):
                export_keras(keras_model(heads), path)
                keep(f"keras_{name}")


if __name__ == "__main__":
    main(*sys.argv[1:])

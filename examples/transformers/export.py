"""Write models/: small transformers from configurations, by both of torch's exporters.

The files are in the repository, so nobody needs to run this to run `rewrite.py`. They were made
with torch 2.13.0, transformers 5.18.0 and onnxscript 0.7.2.

    pip install torch transformers onnxscript
    python examples/transformers/export.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx
import torch
import transformers

MODELS = Path(__file__).parent / "models"
WIDTH, LAYERS, HEADS, VOCABULARY, LONGEST = 32, 2, 4, 100, 320


class HiddenStates(torch.nn.Module):
    """A model with two inputs and a tensor as its output, as exporters like it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def encoder() -> torch.nn.Module:
    configuration = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=LONGEST,
    )
    return transformers.BertModel(configuration, add_pooling_layer=False).eval()


def decoder() -> torch.nn.Module:
    configuration = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=LONGEST,
        bos_token_id=1,
        eos_token_id=1,
        use_cache=False,
    )
    return transformers.GPT2Model(configuration).eval()


def export(model: torch.nn.Module, path: Path, *, dynamo: bool) -> None:
    """One file: input_ids and attention_mask int64[batch, seq] to hidden_states."""
    example = (torch.ones((2, 11), dtype=torch.int64), torch.ones((2, 11), dtype=torch.int64))
    names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["hidden_states"]}
    if dynamo:
        sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", max=LONGEST)}
        how = {"dynamic_shapes": (sizes, sizes), "dynamo": True, "external_data": False}
    else:
        both = names["input_names"] + names["output_names"]
        axes = {name: {0: "batch", 1: "seq"} for name in both}
        how = {"dynamic_axes": axes, "dynamo": False}
    opset = 20 if dynamo else 17
    torch.onnx.export(HiddenStates(model), example, str(path), opset_version=opset, **names, **how)
    forget_sources(path)


def forget_sources(path: Path) -> None:
    """Exporters note the lines of Python that a node came from: the paths of your machine."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    del model.metadata_props[:]
    onnx.save(model, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=MODELS, help="folder to write to")
    folder = parser.parse_args().out
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = encoder()
    export(model, folder / "encoder.torchscript.onnx", dynamo=False)
    export(model, folder / "encoder.torch_export.onnx", dynamo=True)
    export(decoder(), folder / "decoder.torchscript.onnx", dynamo=False)


if __name__ == "__main__":
    main()

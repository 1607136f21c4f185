"""The whole models, at sizes and under masks, and what is fed to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from ...arrays import Array
from ...rewrite.proof import difference
from ...rewrite.runs import Runner
from ..cells import LENGTHS, Errors

Mask = Literal["none", "tails", "front", "gaps"]

MASKS: tuple[Mask, ...] = get_args(Mask)
GRAPHS = Path(__file__).parent / "graphs"
# What `onnx-attn rewrite` allows: the original's own rounding, layer by layer, is of that size.
TOLERANCE = 1e-4
# Where masks are tried: long enough that no optimizer's short form is taken.
JUDGED_BATCH, JUDGED_LENGTH = 4, 320
# Large enough that a few rows tell, small enough that ids index every model's table.
SHOWN_SHARE = 0.7


class Graph(NamedTuple):
    """A model that was exported: its file under graphs/, and what onnxruntime.transformers asks.

    `inputs` are the ids and, if the model takes one, the mask of real tokens; where there is none
    and `pads`, tokens of id 0 are padding.
    """

    label: str
    model_type: str
    heads: int
    width: int
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    dtype: str = "int64"
    pads: bool = True

    @property
    def masks(self) -> tuple[Mask, ...]:
        """The masks that can be said to it."""
        return MASKS if self.pads else MASKS[:1]


GRAPH: dict[str, Graph] = {
    "decoder_6_heads.ts": Graph("GPT-2, 6 heads, TorchScript", "gpt2", 6, 384),
    "decoder_12_heads.ts": Graph("GPT-2, 12 heads, TorchScript", "gpt2", 12, 384),
    "encoder.ts": Graph("BERT, 12 heads, TorchScript", "bert", 12, 384),
    "encoder.dynamo": Graph("BERT, 12 heads, torch.export", "bert", 12, 384),
    "keras_attention": Graph("Keras Attention, causal", "bert", 1, 256, ("ids",), "int32", False),
    "keras_multi_head": Graph("Keras MultiHeadAttention", "bert", 4, 256, ("ids",), "int32"),
}
# The least ids any of the models knows; 0 is padding.
VOCABULARY = 1000


@dataclass(frozen=True)
class Whole:
    """One whole model at a size and under a mask; its candidates' files lie in `folder`."""

    graph: str
    batch: int
    length: int
    mask: Mask = "none"
    tiny: bool = False
    folder: str = ""

    @property
    def name(self) -> str:
        """Model, size and mask, as `--cell` takes it."""
        ragged = "" if self.mask == "none" else f" {self.mask}"
        return f"{self.graph} {self.batch}x{self.length}{ragged}"

    @property
    def huge(self) -> bool:
        """Whether only one candidate at a time may be loaded: never, all fit side by side."""
        return False

    @property
    def visible_share(self) -> float:
        """Share of the tokens that are no padding."""
        return float(shown(self).mean())


WHOLES = (
    Whole("decoder_6_heads.ts", 1, 2048),
    Whole("decoder_6_heads.ts", 1, 512),
    Whole("decoder_6_heads.ts", 8, 512, "tails"),
    Whole("decoder_6_heads.ts", 1, 32, tiny=True),
    Whole("decoder_12_heads.ts", 1, 2048),
    Whole("encoder.ts", 8, 512, "tails"),
    Whole("encoder.ts", 16, 256, "tails"),
    Whole("encoder.ts", 1, 32, tiny=True),
    Whole("encoder.dynamo", 8, 512, "tails"),
    Whole("encoder.dynamo", 16, 256, "tails"),
    Whole("keras_attention", 1, 2048),
    Whole("keras_attention", 1, 32, tiny=True),
    Whole("keras_multi_head", 1, 2048),
    Whole("keras_multi_head", 8, 512, "tails"),
)
QUICK_WHOLES = (
    Whole("keras_attention", 1, 256),
    Whole("keras_multi_head", 4, 160, "tails"),
)


def shown(whole: Whole) -> Array:
    """Which tokens are no padding: bool[batch, length].

    tails and front: rows are 25, 50, 75 and 100 % full in turn, as in the ragged cells.
    """
    batch, length = whole.batch, whole.length
    places = np.arange(length)
    full = np.maximum(1, np.resize(np.array(LENGTHS), batch) * length).astype(np.int64)[:, None]
    if whole.mask == "tails":
        return places < full
    if whole.mask == "front":
        return places >= length - full
    seen = np.ones((batch, length), np.bool_)
    if whole.mask == "gaps":
        seen = np.random.default_rng(5).random((batch, length)) < SHOWN_SHARE
        seen[:, 0] = True
    return seen


def inputs(whole: Whole) -> dict[str, Array]:
    """What the model is fed: the same numbers in every process."""
    graph, seen = GRAPH[whole.graph], shown(whole)
    ids = np.random.default_rng(7).integers(1, VOCABULARY, (whole.batch, whole.length))
    if len(graph.inputs) > 1:
        arrays = [ids, seen]
    else:
        arrays = [np.where(seen, ids, 0) if graph.pads else ids]
    pairs = zip(graph.inputs, arrays, strict=True)
    return {name: array.astype(graph.dtype) for name, array in pairs}


def file_of(whole: Whole, candidate: str) -> Path:
    """Where a candidate's form of a model lies."""
    name = candidate.replace(":", "-")
    return Path(whole.folder) / f"{whole.graph}.{name}.onnx"


@cache
def _original(path: Path) -> Runner:
    return Runner(path.read_bytes(), None, path.name)


def expected(whole: Whole) -> dict[str, Array]:
    """What the original makes of it, by output's name."""
    runner = _original(file_of(whole, "original"))
    return dict(zip(runner.outputs, runner(inputs(whole)), strict=True))


def largest_errors(results: Mapping[str, Array], wanted: Mapping[str, Array]) -> Errors:
    """Largest differences of outputs, as shares of the original's largest number."""
    apart = max(
        (difference(array, results[name]) if name in results else np.inf)
        for name, array in wanted.items()
    )
    return Errors(apart, apart)

"""Models of many exporters: each site is rewritten or refused for a reason, the numbers stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_pairs import Runner, small_blocks, worst
from onnx_attn.rewrite.normal import read_source
from onnx_attn.rewrite.proof import RunError, difference
from onnx_attn.rewrite.rewriting import Builder
from onnx_attn.rewrite.samples import Sampler
from onnx_attn.rewrite.splice import WALK_FROM

__all__ = ["small_blocks"]

MODELS = Path(__file__).parent / "models"
NAMES = sorted(path.stem for path in MODELS.glob("*.onnx"))
# They return the weights.
REFUSED = {
    "keras3_tf.all",
    "keras3_tf.masks",
    "keras3_tf.scores",
    "keras3_torch.masks",
    "tf2onnx_tf27.masks",
}
# Their tables of positions end at 64.
SHORT = {
    "bart_sdpa.dynamo",
    "bert_eager.dynamo",
    "bert_sdpa.ts",
    "distilbert_eager.ts",
    "gpt2_eager.ts",
    "gpt2_sdpa.dynamo",
    "gpt2nomask_sdpa.dynamo",
}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_the_same_at_other_lengths_and_masks(name: str) -> None:
    source = read_source(MODELS / f"{name}.onnx")
    builder = Builder(source, walk_from=1)
    reasons = {site.reason for site in builder.sites}
    if name in REFUSED:
        assert reasons == {"its weights are an output of the model"}
        return
    assert reasons == {None}
    after = Runner(builder.build([site.name for site in builder.sites]))
    before = Runner(source.proto)
    with np.load(MODELS / f"{name}.npz") as arrays:
        feeds = {key[3:]: arrays[key] for key in arrays.files if key.startswith("in.")}
        outputs = [arrays[f"out.{output.name}"] for output in source.proto.graph.output]
    assert worst(outputs, after(feeds)) <= 1e-5
    sampler = Sampler(builder.model(), builder.sites)
    ran = 0
    for batch, length in ((1, 1), (2, 5), (3, 31), (2, 57)):
        for sample in sampler.samples(batch, length, None):
            try:
                old = before(sample.feeds)
            except Exception:
                continue  # a position beyond the model's tables
            ran += 1
            assert worst(old, after(sample.feeds)) <= 1e-5, sample.words
    assert ran >= 2


@pytest.mark.parametrize("name", sorted(set(NAMES) - REFUSED - SHORT))
def test_numbers_are_the_same_where_the_walk_begins_and_beyond(name: str) -> None:
    """With the threshold and the blocks that users get."""
    source = read_source(MODELS / f"{name}.onnx")
    builder = Builder(source, walk_from=WALK_FROM)
    before, after = Runner(source.proto), Runner(builder.build([s.name for s in builder.sites]))
    sampler = Sampler(builder.model(), builder.sites)
    for batch, length in ((2, WALK_FROM - 1), (1, WALK_FROM), (2, 333)):
        for sample in sampler.samples(batch, length, None):
            assert worst(before(sample.feeds), after(sample.feeds)) <= 1e-5, (length, sample.words)


def test_masks_of_many_exporters_need_no_matrix() -> None:
    found = {}
    for name in NAMES:
        builder = Builder(read_source(MODELS / f"{name}.onnx"), walk_from=1)
        model = builder.build([site.name for site in builder.sites if site.reason is None])
        found[name] = sum(node.op_type in ("Trilu", "CumSum") for node in model.graph.node)
    causal = {"gpt2_eager.ts", "gpt2_sdpa.dynamo", "keras_single_causal", "llama_sdpa.ts"}
    assert {found[name] for name in causal} == {0}


def test_difference_counts_nan_and_infinity() -> None:
    a = np.array([1.0, np.nan, np.inf, -2.0])
    assert difference(a, a.copy()) == 0
    assert difference(a, np.array([1.0, np.nan, np.inf, -2.2])) == pytest.approx(0.1)
    assert difference(a, np.array([1.0, 3.0, np.inf, -2.0])) == np.inf
    assert difference(a, np.array([np.nan, np.nan, np.inf, -2.0])) == np.inf
    assert difference(a, np.array([1.0, np.nan, -np.inf, -2.0])) == np.inf
    assert RunError("words").args == ("words",)

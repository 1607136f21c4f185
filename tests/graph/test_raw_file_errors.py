"""A raw dense file, run with ONNX Runtime alone, fails on shapes that do not fit.

Where a node guards the rule, its name is in the runtime's message: that is what a user of any
other language reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnx_attn import AdditiveAttention, Attention

LAYERS: dict[str, Any] = {
    "plain": Attention(),
    "causal": Attention(causal=True),
    "scaled": Attention(use_scale=True),
    "concat": Attention(score_mode="concat", use_scale=True),
    "float16": Attention(dtype="float16"),
    "float64": Attention(dtype="float64", causal=True),
    "additive": AdditiveAttention(use_scale=False),
}

# Shapes by what is wrong with them; the others keep GOOD's. Each says which rule's node must be
# named, None where the runtime's own shape error has no name of ours to show.
GOOD = {
    "query": (2, 3, 4),
    "value": (2, 5, 6),
    "key": (2, 5, 4),
    "query_mask": (2, 3),
    "value_mask": (2, 5),
}
LENGTH = "key_and_value_must_have_the_same_length"
DIM = "query_and_key_must_have_the_same_dim"
MASK = "value_mask_must_fit_the_key"
ROWS = "batches_and_masks_must_fit_the_query"

WRONG: dict[str, dict[str, tuple[int, ...]]] = {
    "value longer than key": {"value": (2, 6, 6)},
    "value shorter than key": {"value": (2, 4, 6)},
    "value of length 1": {"value": (2, 1, 6)},
    "key of length 1": {"key": (2, 1, 4)},
    "value of length 0": {"value": (2, 0, 6)},
    "key of length 0": {"key": (2, 0, 4)},
    "key of batch 1": {"key": (1, 5, 4)},
    "value of batch 1": {"value": (1, 5, 6)},
    "key and value of batch 1": {"key": (1, 5, 4), "value": (1, 5, 6)},
    "query of batch 1": {"query": (1, 3, 4), "query_mask": (1, 3)},
    "key of batch 3": {"key": (3, 5, 4)},
    "value of batch 3": {"value": (3, 5, 6)},
    "query of batch 3": {"query": (3, 3, 4), "query_mask": (3, 3)},
    "dim of key": {"key": (2, 5, 3)},
    "dim of key is 1": {"key": (2, 5, 1)},
    "dim of query is 1": {"query": (2, 3, 1)},
    "query_mask too long": {"query_mask": (2, 4)},
    "query_mask too short": {"query_mask": (2, 2)},
    "query_mask of batch 3": {"query_mask": (3, 3)},
    "value_mask too long": {"value_mask": (2, 6)},
    "value_mask too short": {"value_mask": (2, 4)},
    "value_mask of batch 3": {"value_mask": (3, 5)},
    "value_mask of length 0": {"value_mask": (2, 0)},
    "query_mask on one query": {
        "query": (2, 1, 4),
        "query_mask": (2, 5),
    },
    "query_mask's batch on a batch of 1": {
        "query": (1, 3, 4),
        "value": (1, 5, 6),
        "key": (1, 5, 4),
        "query_mask": (4, 3),
        "value_mask": (1, 5),
    },
    "value_mask's batch on a batch of 1": {
        "query": (1, 3, 4),
        "value": (1, 5, 6),
        "key": (1, 5, 4),
        "query_mask": (1, 3),
        "value_mask": (4, 5),
    },
    "value_mask on one key": {
        "value": (2, 1, 6),
        "key": (2, 1, 4),
        "value_mask": (2, 5),
    },
    "query_mask on no query": {"query": (2, 0, 4), "query_mask": (2, 5)},
    "value_mask on no key": {"value": (2, 0, 6), "key": (2, 0, 4), "value_mask": (2, 5)},
    "rank": {"query": (3, 4)},
}
NAMED = {
    "value longer than key": LENGTH,
    "value shorter than key": LENGTH,
    "value of length 1": LENGTH,
    "key of length 1": MASK,
    "value_mask on one key": MASK,
    "dim of key": DIM,
    "dim of key is 1": DIM,
    "dim of query is 1": DIM,
    "query_mask on one query": ROWS,
    "query_mask's batch on a batch of 1": ROWS,
    "value_mask's batch on a batch of 1": MASK,
    "query of batch 1": ROWS,
    "key and value of batch 1": ROWS,
}


def raw(layer: Any, **options: Any) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    model = layer.to_onnx(schedule="dense", **options).SerializeToString()
    return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


RAW = {name: raw(layer, return_attention_scores=True) for name, layer in LAYERS.items()}
OUTPUT_ONLY = {name: raw(layer) for name, layer in LAYERS.items()}


def feeds(shapes: dict[str, tuple[int, ...]], name: str) -> dict[str, np.ndarray]:
    dtype = {"float16": np.float16, "float64": np.float64}.get(name, np.float32)
    return {
        tensor: np.ones(shape, np.bool_ if tensor.endswith("_mask") else dtype)
        for tensor, shape in shapes.items()
    }


@pytest.mark.parametrize("sessions", [RAW, OUTPUT_ONLY], ids=["with scores", "output only"])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", LAYERS)
def test_a_raw_file_fails_on_shapes_that_do_not_fit(
    name: str, wrong: str, sessions: dict[str, onnxruntime.InferenceSession]
) -> None:
    with pytest.raises(Exception, match="ONNXRuntimeError") as raised:
        sessions[name].run(None, feeds({**GOOD, **WRONG[wrong]}, name))
    named = NAMED.get(wrong)
    # The runtime names no node where an addition of other shapes fails inside an If.
    unnamed = wrong == "dim of key" and name in ("concat", "additive")
    if named is not None and not unnamed:
        assert named in str(raised.value)


@pytest.mark.parametrize("name", LAYERS)
def test_lengths_without_a_mask(name: str) -> None:
    """No mask that would catch a key of length 1 by its own length."""
    for masks in ("none", "both"):
        session = raw(LAYERS[name], masks=masks)
        for shapes in ({"key": (2, 1, 4)}, {"value": (2, 1, 6)}, {"value": (2, 6, 6)}):
            tensors = {**GOOD, **shapes}
            tensors.update(query_mask=(1, 1), value_mask=(1, 1))
            if masks == "none":
                del tensors["query_mask"], tensors["value_mask"]
            with pytest.raises(Exception, match=LENGTH):
                session.run(None, feeds(tensors, name))


@pytest.mark.parametrize("name", LAYERS)
def test_the_same_file_takes_what_fits(name: str) -> None:
    output, scores = RAW[name].run(None, feeds(GOOD, name))
    assert output.shape == (2, 3, 6)
    assert scores.shape == (2, 3, 5)
    one = {**GOOD, "query_mask": (1, 1), "value_mask": (1, 1)}
    np.testing.assert_array_equal(RAW[name].run(None, feeds(one, name))[0], output)
    rows = {**GOOD, "query_mask": (1, 3), "value_mask": (2, 1)}
    np.testing.assert_array_equal(RAW[name].run(None, feeds(rows, name))[0], output)

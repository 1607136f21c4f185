"""Promise: a raw file refuses every wrong shape, in a node that is named after its rule.

Wrong calls are generated and given to ONNX Runtime itself, without our session.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnx_attn import AdditiveAttention, Attention
from onnx_attn.graph.guards import Rule

LAYERS: dict[str, Any] = {
    "dot": lambda: Attention(),
    "causal": lambda: Attention(causal=True),
    "concat": lambda: Attention(score_mode="concat"),
    "additive": lambda: AdditiveAttention(use_scale=False),
}
CASES = [(name, schedule) for name in LAYERS for schedule in ("auto", "dense", "tiled")]
CASES.append(("dot", "fused"))
NAMED = re.compile("|".join(rule.value for rule in Rule))


def sessions_of(name: str, schedule: str) -> list[Any]:
    opened: list[Any] = []
    for masks in ("both", "none"):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        model = LAYERS[name]().to_onnx(masks=masks, schedule=schedule)
        opened.append(
            onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        )
    return opened


def right(shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether a call of these shapes is one that DESIGN and README allow."""
    (batch, tq, dim), (tv, width) = shapes["query"], shapes["value"][1:]
    return (
        shapes["key"] == (batch, tv, dim)
        and shapes["value"] == (batch, tv, width)
        and shapes["query_mask"][0] in (1, batch)
        and shapes["query_mask"][1] in (1, tq)
        and shapes["value_mask"][0] in (1, batch)
        and shapes["value_mask"][1] in (1, tv)
    )


def wrong_calls(draw: np.random.Generator, count: int) -> Any:
    """Calls of random shapes, `count` of them wrong by one to three dims."""
    done = 0
    while done < count:
        batch, tq, tv, dim, width = (int(n) for n in draw.integers(1, 5, 5))
        if draw.random() < 0.3:
            tq, tv, dim = (int(n) for n in draw.choice([1, 40, 320, 720], 3))
            dim = min(dim, 40)
        shapes = {
            "query": (batch, tq, dim),
            "value": (batch, tv, width),
            "key": (batch, tv, dim),
            "query_mask": (batch, tq),
            "value_mask": (batch, tv),
        }
        for _ in range(draw.integers(1, 4)):
            name = str(draw.choice(list(shapes)))
            dims = list(shapes[name])
            axis = int(draw.integers(len(dims)))
            dims[axis] = int(draw.choice([0, 1, 2, 3, 5, 8, dims[axis] + 1]))
            shapes[name] = tuple(dims)
        if shapes["query"][1] == 0 or shapes["value"][2] == 0:
            continue  # an output without elements: there a few wrong shapes pass
        if not right(shapes):
            done += 1
            yield shapes


def check(name: str, schedule: str, count: int) -> None:
    draw = np.random.default_rng(CASES.index((name, schedule)))
    with_masks, without = sessions_of(name, schedule)
    for shapes in wrong_calls(draw, count):
        plain = {"query_mask": (1, 1), "value_mask": (1, 1)}
        session = without if not right(shapes | plain) and draw.random() < 0.5 else with_masks
        feeds = {
            given.name: np.ones(shapes[given.name], bool if "mask" in given.name else np.float32)
            for given in session.get_inputs()
        }
        try:
            session.run(None, feeds)
        except Exception as error:
            refusal = str(error)
        else:
            refusal = "none"
        assert NAMED.search(refusal), (shapes, refusal)


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_a_wrong_call_is_refused_by_name(name: str, schedule: str) -> None:
    check(name, schedule, 60)


@pytest.mark.soak
@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_many_wrong_calls_are_refused_by_name(name: str, schedule: str) -> None:
    check(name, schedule, 20_000 // len(CASES) + 1)

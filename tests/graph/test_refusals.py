"""Promise: a raw file refuses every wrong shape, in a node that is named after its rule.

Wrong calls are generated and given to ONNX Runtime itself, without our session. Sizes of 0 are
among them: tensors without elements fit many a shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnx_attn import AdditiveAttention, Attention
from onnx_attn.graph.guards import Rule

Shapes = dict[str, tuple[int, ...]]

LAYERS: dict[str, Any] = {
    "dot": lambda: Attention(use_scale=True),
    "dot without scale": lambda: Attention(),
    "causal": lambda: Attention(causal=True),
    "concat": lambda: Attention(score_mode="concat", use_scale=True),
    "additive": lambda: AdditiveAttention(use_scale=False),
    "additive with scale": lambda: AdditiveAttention(use_scale=True),
}
FORMS: dict[str, Any] = {
    "alone": {},
    "heads": {"heads": True},
    "bias": {"bias": True},
    "heads and bias": {"heads": True, "bias": True},
}
CASES = list(product(LAYERS, ("auto", "dense", "tiled"), FORMS))
CASES.append(("dot without scale", "fused", "alone"))
PLAIN = [case for case in CASES if case[2] == "alone" or case[0] in ("causal", "additive")]
NAMED = re.compile("|".join(rule.value for rule in Rule))


def sessions_of(name: str, schedule: str, form: str) -> list[Any]:
    """Of files with and without masks, key and returned scores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    layer = LAYERS[name]()
    if name == "additive with scale":
        layer.build(3)
    opened: list[Any] = []
    for masks, key, scores in (("both", True, False), ("none", True, False), ("both", False, True)):
        more: dict[str, Any] = {} if schedule == "fused" else {"return_attention_scores": scores}
        if name not in ("dot without scale", "causal", "additive"):
            more["scale"] = "input"
        model = layer.to_onnx(masks=masks, key=key, schedule=schedule, **FORMS[form], **more)
        opened.append(
            onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        )
    return opened


def is_right(shapes: Shapes, name: str) -> bool:
    """Whether a call of these shapes is one that DESIGN and README allow."""
    *lead, tq, dim = shapes["query"]
    tv, width = shapes["value"][-2:]
    if dim == 0:
        return False
    asked: dict[str, tuple[int, ...]] = {
        "value": (*lead, tv, width),
        "key": (*lead, tv, dim),
    }
    if "key" not in shapes:
        asked["value"] = asked.pop("key")
    if name == "additive with scale":
        asked["scale"] = (dim,)
    one_or: dict[str, tuple[int, ...]] = {
        "query_mask": (lead[0], tq),
        "value_mask": (lead[0], tv),
        "bias": (*lead, tq, tv),
    }
    for tensor, shape in shapes.items():
        if tensor in asked:
            fits = shape == asked[tensor]
        elif tensor in one_or:
            fits = all(a in (1, b) for a, b in zip(shape, one_or[tensor], strict=True))
        else:
            fits = tensor == "query" or int(np.prod(shape)) == 1
        if not fits:
            return False
    return True


def drawn(draw: np.random.Generator, names: list[str], name: str, heads: bool) -> Shapes:
    """A call of `names`, most often wrong by one to three dims."""
    batch, count, tq, tv, dim, width = (int(n) for n in draw.integers(0, 5, 6))
    if draw.random() < 0.7:
        batch, count, tq, tv, dim, width = (max(n, 1) for n in (batch, count, tq, tv, dim, width))
    if draw.random() < 0.2:
        tq, tv, dim = (int(n) for n in draw.choice([1, 40, 320, 720], 3))
        dim = min(dim, 40)
    lead = (batch, count) if heads else (batch,)

    def one_or(*dims: int) -> tuple[int, ...]:
        return tuple(size if draw.random() < 0.6 else 1 for size in dims)

    shapes: Shapes = {
        "query": (*lead, tq, dim),
        "value": (*lead, tv, width if "key" in names else dim),
        "key": (*lead, tv, dim),
        "query_mask": one_or(batch, tq),
        "value_mask": one_or(batch, tv),
        "bias": one_or(*lead, tq, tv),
        "scale": (dim,) if name == "additive with scale" else (),
        "concat_score_weight": (),
    }
    shapes = {tensor: shapes[tensor] for tensor in names}
    for _ in range(draw.integers(1, 4)):
        tensor = str(draw.choice(names))
        dims = list(shapes[tensor])
        if dims:
            axis = int(draw.integers(len(dims)))
            dims[axis] = int(draw.choice([0, 1, 2, 3, 5, 8, dims[axis] + 1]))
        else:
            dims = list(one_or(dim))
        shapes[tensor] = tuple(dims)
    return shapes


def wrong_calls(
    draw: np.random.Generator, count: int, names: list[str], name: str, heads: bool
) -> Iterator[Shapes]:
    """`count` calls of wrong shapes."""
    while count:
        shapes = drawn(draw, names, name, heads)
        if shapes["query"][-1] == 0 in shapes["query"][:-2]:
            continue  # of no features, but without a batch there is nothing to compute
        if not is_right(shapes, name):
            count -= 1
            yield shapes


def check(case: tuple[str, str, str], count: int) -> None:
    name, schedule, form = case
    draw = np.random.default_rng(CASES.index(case))
    sessions = sessions_of(name, schedule, form)
    for session in sessions:
        given = {spec.name: spec for spec in session.get_inputs()}
        dtypes = {tensor: bool if "mask" in tensor else np.float32 for tensor in given}
        calls = wrong_calls(draw, count // len(sessions) + 1, list(given), name, "heads" in form)
        for shapes in calls:
            feeds = {tensor: np.ones(shape, dtypes[tensor]) for tensor, shape in shapes.items()}
            try:
                session.run(None, feeds)
            except Exception as error:
                refusal = str(error)
            else:
                refusal = "none"
            assert NAMED.search(refusal), (shapes, refusal)


@pytest.mark.parametrize("case", PLAIN, ids=" ".join)
def test_a_wrong_call_is_refused_by_name(case: tuple[str, str, str]) -> None:
    check(case, 60)


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_many_wrong_calls_are_refused_by_name(case: tuple[str, str, str]) -> None:
    check(case, 20_000 // len(CASES) + 1)


@pytest.mark.parametrize(
    ("layer", "tensors"),
    [
        (Attention(use_scale=True), ("scale",)),
        (Attention(use_scale=True, dtype="float64"), ("scale",)),
        (Attention(score_mode="concat", use_scale=True), ("scale", "concat_score_weight")),
        (Attention(dropout=0.5), ("training",)),
    ],
    ids=["dot", "float64", "concat", "training"],
)
@pytest.mark.parametrize("schedule", ["auto", "dense", "tiled"])
def test_a_scalar_is_one_number(layer: Any, tensors: tuple[str, ...], schedule: str) -> None:
    training = tensors == ("training",)
    options: dict[str, Any] = {"training": True} if training else {"scale": "input"}
    model = layer.to_onnx(schedule=schedule, **options)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    shapes: Shapes = {"query": (2, 4, 3), "value": (2, 5, 3), "key": (2, 5, 3)}
    feeds: dict[str, Any] = {}
    for spec in session.get_inputs():
        kind = {"tensor(bool)": bool, "tensor(double)": np.float64}.get(spec.type, np.float32)
        shape = shapes.get(spec.name, (1, 1) if "mask" in spec.name else ())
        feeds[spec.name] = np.ones(shape, kind)
    for tensor in tensors:
        one = session.run(None, feeds | {tensor: feeds[tensor].reshape(1)})
        if not training:
            np.testing.assert_array_equal(one[0], session.run(None, feeds)[0])
        for shape in ((3,), (2,), (0,), (1, 3), (3, 1)):
            with pytest.raises(Exception, match=f"{tensor}__must_be_one_number"):
                session.run(None, feeds | {tensor: np.ones(shape, feeds[tensor].dtype)})

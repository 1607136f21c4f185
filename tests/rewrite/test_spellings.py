"""Attention in every spelling is found, and the walk gives the numbers of the nodes it replaces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attention_spellings import AFTER, MASKS, ORDERS, SCALES, TRANSPOSES, attention
from model_pairs import Runner, cases, small_blocks, walked, worst

__all__ = ["small_blocks"]

pytestmark = pytest.mark.usefixtures("small_blocks")


def hold(model: object, limit: float = 1e-5) -> None:
    before, after = Runner(model), Runner(walked(model))
    for feeds in cases(model):
        assert worst(before(feeds), after(feeds)) <= limit


@pytest.mark.parametrize(
    ("mask", "order"), [*itertools.product(MASKS, [None, *list(ORDERS)[:2]])], ids=str
)
def test_every_mask(mask: str, order: str | None) -> None:
    hold(attention(mask=mask, order=order, after="guard" if mask == "add -inf" else None))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("heads", [False, True])
def test_every_order(order: str, padding: bool, heads: bool) -> None:
    hold(attention(order=order, padding=padding, heads=heads, mask="fill -1e9"))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("transpose", TRANSPOSES)
def test_every_scale_and_transpose(scale: str, transpose: str) -> None:
    hold(attention(scale=scale, transpose=transpose))
    hold(attention(scale=scale, transpose=transpose, mask=None))


@pytest.mark.parametrize("opset", [17, 18, 20, 21, 22, 23])
@pytest.mark.parametrize("mask", ["add lowest", "old bert", None])
def test_every_opset(opset: int, mask: str | None) -> None:
    hold(attention(opset=opset, mask=mask, order="trilu"))


@pytest.mark.parametrize("mask", ["add lowest", "fill -1e9", "keras heads", None])
@pytest.mark.parametrize("kind", ["einsum", "groups", "crosses", "single"])
def test_every_product(kind: str, mask: str | None) -> None:
    options = {"heads": False} if kind == "single" else {kind: True}
    hold(attention(mask=mask, **options))


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("order", [None, "ranges"])
@pytest.mark.parametrize("mask", ["fill lowest", "fill -1e9"])
def test_all_that_is_done_to_weights(after: str, order: str | None, mask: str) -> None:
    hold(attention(mask=mask, order=order, after=after))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.fixed_dictionaries(
        {
            "mask": st.sampled_from([*MASKS]),
            "order": st.sampled_from([None, *ORDERS]),
            "padding": st.booleans(),
            "scale": st.sampled_from(SCALES),
            "transpose": st.sampled_from(TRANSPOSES),
            "heads": st.booleans(),
            "after": st.sampled_from([None, *AFTER]),
            "groups": st.booleans(),
            "opset": st.sampled_from([17, 20]),
        }
    )
)
def test_any_of_them_together(options: dict[str, object]) -> None:
    if options["order"] is None and not options["padding"]:
        options |= {"mask": None, "after": None}
    if options["mask"] == "scaled after" and options["after"] in ("zeroed", "times the mask"):
        options["after"] = None  # refused: a scaled mask is not seen to be the weights' mask
    if not options["heads"]:
        options["after"] = None
    hold(attention(**options))  # pyright: ignore

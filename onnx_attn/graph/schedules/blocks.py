"""Blocks of queries and windows of keys: how large, and which keys."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from .. import sizes
from ..builder import OpBuilder
from ..formulas import HIDDEN
from ..sizes import Size
from ..steps import Steps
from . import thresholds


def block_size(op: OpBuilder, steps: Steps, queries: Size, keys: Size) -> Size:
    """Query rows of one block of a batch row: at least 1.

    The blocks of a row are of one size, as even as they come: little is left to fill up.
    """
    if not steps.has_dot_scores:
        features = sizes.mul(op, keys, steps.size(op, "dim"), "features_of_query")
        block = sizes.div(op, thresholds.BLOCK_FEATURES, sizes.larger(op, features, 1))
        block = sizes.larger(op, block, 1)
        largest = thresholds.LARGEST_BLOCK
    else:
        block = sizes.div(op, thresholds.BLOCK_PAIRS, keys)
        block = sizes.larger(op, block, thresholds.SMALLEST_BLOCK)
        causal = steps.config.causal
        largest = thresholds.CAUSAL_BLOCK if causal else thresholds.LARGEST_BLOCK
    block = sizes.smaller(op, block, largest)
    # ceil(queries / block) blocks of equal size, rounded up to whole lanes.
    count = ceil_div(op, queries, block, "block_count")
    lanes = sizes.mul(op, count, thresholds.LANES, "lane_count")
    return sizes.mul(op, ceil_div(op, queries, lanes, "lane"), thresholds.LANES, "block")


def ceil_div(op: OpBuilder, a: Size, b: Size, name: str) -> Size:
    """a / b, rounded up."""
    return sizes.div(op, sizes.add(op, a, sizes.sub(op, b, 1)), b, name)


def lanes_of(op: OpBuilder, keys: Size) -> Size:
    """Lanes of a block against `keys`."""
    many = sizes.less(op, thresholds.LANE_KEYS, keys, "many_keys")
    if isinstance(many, bool):
        return 1 if many else thresholds.LANES
    return op.Where(many, [1], [thresholds.LANES], _outputs=["lanes"])


Fact = tuple[ir.Value, ir.DataType, tuple[str | int, ...]]
"""A tensor that a Scan walks by batch row, its type, and the dims of one row."""


def mask_facts(
    op: OpBuilder, steps: Steps, value_mask: ir.Value, query_length: Size, lanes: bool
) -> dict[str, Fact]:
    """What each batch row needs to know of its value mask, found for all rows at once.

    bias: 0 or HIDDEN by key. first, length: where the visible keys begin and end. unbroken, for
    `lanes`: whether none between is hidden. fully_masked: how many queries, from the first on, see
    no key.
    """
    int64 = ir.DataType.INT64
    shown, hidden = steps.number(op, 0.0), steps.number(op, HIDDEN)
    bias = op.Where(value_mask, shown, hidden, _outputs=["value_bias"])
    seen = op.Cast(value_mask, to=int(ir.DataType.INT32), _outputs=["visible_keys"])
    first = op.ArgMax(seen, axis=1, keepdims=1, _outputs=["first_visible"])
    last = op.ArgMax(seen, axis=1, keepdims=1, select_last_index=1, _outputs=["last_visible"])
    length = op.Add(last, [1], _outputs=["visible_length"])
    count = op.ReduceSum(seen, [1], keepdims=1, _outputs=["visible_count"])
    none = op.Equal(count, op.Constant(value=ir.tensor(np.array(0, np.int32))))
    queries = sizes.in_graph(query_length)
    before = op.Min(first, queries) if steps.config.causal else [0]
    fully_masked = op.Where(none, queries, before, _outputs=["fully_masked_queries"])
    facts: dict[str, Fact] = {
        "bias": (bias, steps.compute, ("Tv",)),
        "first": (first, int64, (1,)),
        "length": (length, int64, (1,)),
        "fully_masked": (fully_masked, int64, (1,)),
    }
    if lanes:
        visible = op.Cast(count, to=int(int64))
        unbroken = op.Equal(op.Add(first, visible), length, _outputs=["keys_unbroken"])
        facts["unbroken"] = (unbroken, ir.DataType.BOOL, (1,))
    return facts


@dataclass
class Window:
    """The keys that some query of a row may see: from `first` (None: the start) to `length`."""

    key: ir.Value  # [Tv, dim]
    value: ir.Value  # [Tv, value_dim]
    length: Size
    bias: ir.Value | None = None  # [Tv], 0 or HIDDEN
    first: ir.Value | None = None  # int64[1]
    unbroken: ir.Value | None = None  # bool[1]: no key between is hidden

    def slice(self, op: OpBuilder, begin: Size, end: Size) -> Window:
        """Its keys from `begin` to `end`. Slice itself stops at the last key."""
        bounds = sizes.in_graph(begin), sizes.in_graph(end)
        bias = None if self.bias is None else op.Slice(self.bias, *bounds, [0])
        key, value = (op.Slice(part, *bounds, [0]) for part in (self.key, self.value))
        return replace(self, key=key, value=value, bias=bias)


def weights_by_row(op: OpBuilder, steps: Steps, batch: Size) -> dict[str, Fact]:
    """Weights as inputs of the Scan, where that is a node of the main graph.

    What its body reads by name, tools that go from a node to its inputs leave out.
    """
    found: dict[str, Fact] = {}
    for name in ("scale", "concat_score_weight"):
        weight = getattr(steps.tensors, name)
        if weight is not None and op.builder.parent is None:
            dims = steps.config.weight_dims(name)
            shape = sizes.vector(op, batch, *(1 for _ in dims))
            every = op.Expand(weight, shape, _outputs=[f"{name}_of_rows"])
            found[name] = (every, steps.compute, dims)
    return found

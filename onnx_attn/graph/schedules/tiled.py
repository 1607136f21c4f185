"""The tiled schedule: blocks of queries against the keys they may see. Memory of one block.

An outer Scan walks the batch, so its body gets the rows of query, key, value and mask as views of
rank 2; an inner Scan walks blocks of queries. Keys that no query of a block may see are not read.

Three kinds of query rows, each exact:
* a row that sees a key: hidden keys have the weight exp(-1e9) = 0, so those outside the row's
  window (first visible key to last, or to the query itself where causal) are left out, and those
  inside may get their -1e9 anywhere in the arithmetic;
* a row that sees none (all keys masked, or causal behind padding at the front): Keras's
  softmax(round(score - 1e9)) over all Tv keys. The bias is a single number there, added to the
  finished scores, because the rounding decides the weights;
* rows that fill the last block: computed from zeros, cut off at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from .. import formulas, sizes
from ..builder import OpBuilder, Results, branching, scanned, subgraph
from ..formulas import HIDDEN
from ..guards import Rule, guarded, mask_of_rows, rule
from ..sizes import Size
from ..steps import Steps
from .blocks import Fact, Window, block_size, ceil_div, lanes_of, mask_facts, weights_by_row
from .choice import something_is_empty
from .dense import dense_masked
from .parts import causal_triangle

LAST = 2**31 - 1


def tiled(op: OpBuilder, steps: Steps) -> Results:
    """The output and, where wanted, the weights: [batch, Tq, value_dim], [batch, Tq, Tv].

    A Scan cannot walk nothing: tensors without elements take the dense form.
    """
    return steps.branches(
        op,
        something_is_empty(op, steps),
        then=("of_nothing", lambda op: dense_masked(op, steps)),
        otherwise=("tiled", lambda op: walk(op, steps)),
    )


def walk(op: OpBuilder, steps: Steps) -> Results:
    """All batch rows: a Scan over the batch."""
    steps = guarded(op, steps.in_arithmetic(op))
    tensors = steps.tensors
    # Of the checked tensors, so that no mask is measured against a length before it is checked.
    batch, queries = steps.size(op, "batch"), steps.size(op, "Tq", "query_length")
    keys = steps.size(op, "Tv", "key_length")
    plan = Walk(steps, queries, keys, block_size(op, steps, queries, keys))
    rows: dict[str, Fact] = {
        "query": (tensors.query, steps.compute, ("Tq", "dim")),
        "key": (tensors.key, steps.compute, ("Tv", "dim")),
        "value": (tensors.value, steps.compute, ("Tv", "value_dim")),
    }
    if tensors.value_mask is not None:
        rule_ = Rule.VALUE_MASK
        mask = mask_of_rows(op, tensors.value_mask, batch, keys, "value_mask", rule_)
        rows |= mask_facts(op, steps, mask, queries, plan.may_have_lanes)
    if tensors.query_mask is not None:
        rule_ = Rule.BATCHES
        mask = mask_of_rows(op, tensors.query_mask, batch, queries, "query_mask", rule_)
        rows["query_mask"] = (mask, ir.DataType.BOOL, ("Tq",))
    if steps.config.causal and not isinstance(plan.block, int):
        shape = sizes.vector(op, plan.block, plan.block)
        plan.triangle = causal_triangle(op, steps, shape)
    weights = weights_by_row(op, steps, batch)
    rows |= weights
    views = [
        ir.Value(name=f"{name}_of_row", shape=plan.shape(*dims), type=ir.TensorType(kind))
        for name, (_, kind, dims) in rows.items()
    ]

    def row(op: OpBuilder, *views: ir.Value) -> Results:
        given = dict(zip(rows, views, strict=True))
        tensors = replace(steps.tensors, **{name: given.pop(name) for name in weights})
        plan.steps = replace(steps, tensors=tensors)
        return plan.row(op, **given)

    results = scanned(
        op,
        [tensor for tensor, _, _ in rows.values()],
        subgraph(op, row, plan.outputs("row", "Tq"), views),
        ["attended", "weights"][: 1 + steps.scores_wanted],
    )
    rule(results[0], "attended", Rule.BATCHES)
    return results


@dataclass
class Walk:
    """The bodies of the Scans, for one configuration."""

    steps: Steps
    query_length: Size
    key_length: Size
    block: Size
    triangle: ir.Value | None = None  # [block, block]

    def shape(self, *dims: str | int | None) -> ir.Shape:
        """A declared shape; "block" is known where Tq and Tv are."""
        known = dict(self.steps.known)
        if isinstance(self.block, int):
            known["block"] = self.block
        return ir.Shape([known.get(dim, dim) if isinstance(dim, str) else dim for dim in dims])

    @property
    def may_have_lanes(self) -> bool:
        """Whether all blocks of a row read the same keys and only the output is wanted."""
        same_keys = self.steps.has_dot_scores and not self.steps.config.causal
        return same_keys and not self.steps.scores_wanted

    def row(
        self,
        op: OpBuilder,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        query_mask: ir.Value | None = None,
        **mask_facts: ir.Value,
    ) -> Results:
        """One batch row: [Tq, dim], [Tv, dim], [Tv, value_dim], bool[Tq], facts of the mask."""
        if self.steps.config.causal and self.triangle is None:
            # Of a known size: runtimes compute it once, when they open the file.
            shape = sizes.vector(op, self.block, self.block)
            self.triangle = causal_triangle(op, self.steps, shape)
        query = self.steps.prepare_query(op, query)
        if mask_facts:
            results = self.masked_row(op, query, key, value, **mask_facts)
        else:
            window = Window(key, value, self.key_length)
            results = self.seeing(op, query, self.query_length, window)
        if query_mask is None:
            return results
        shown = op.Unsqueeze(query_mask, [1])
        output = op.Where(shown, results[0], self.steps.number(op, 0.0), _outputs=["output_row"])
        return (output, *results[1:])

    def masked_row(
        self,
        op: OpBuilder,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        bias: ir.Value,
        first: ir.Value,
        length: ir.Value,
        fully_masked: ir.Value,
        unbroken: ir.Value | None = None,
    ) -> Results:
        """One batch row under a value mask."""
        window = Window(key, value, length, bias, first, unbroken)

        def all_see(op: OpBuilder) -> Results:
            return self.seeing(op, query, self.query_length, window)

        def some_see_none(op: OpBuilder) -> Results:
            unseeing = op.Slice(query, [0], fully_masked, [0], _outputs=["fully_masked_rows"])
            parts = [self.unseeing(op, unseeing, fully_masked, key, value)]
            if self.steps.config.causal:
                seeing = op.Slice(query, fully_masked, [LAST], [0], _outputs=["seeing_rows"])
                count = sizes.sub(op, self.query_length, fully_masked, "seeing_queries")
                parts.append(self.seeing(op, seeing, count, window))
            return tuple(
                both[0] if len(both) == 1 else op.Concat(*both, axis=0)
                for both in zip(*parts, strict=True)
            )

        return branching(
            op,
            op.Equal(op.Squeeze(fully_masked), 0, _outputs=["all_queries_see"]),
            subgraph(op, all_see, self.outputs("all_see", "Tq")),
            subgraph(op, some_see_none, self.outputs("some_fully_masked", "Tq")),
            self.names("of_row"),
        )

    def seeing(self, op: OpBuilder, query: ir.Value, query_length: Size, window: Window) -> Results:
        """Queries that each see a key, in blocks."""
        blocks, count = self.blocks(op, query, query_length)
        if self.steps.config.causal:
            return self.causal(op, blocks, count, query_length, window)
        keys = window
        if window.first is not None:
            keys = window.slice(op, window.first, window.length)

        def in_lanes(op: OpBuilder) -> Results:
            return self.in_lanes(op, blocks, count, query_length, keys)

        def body(op: OpBuilder, query: ir.Value) -> Results:
            scores = self.steps.block_scores(op, query, keys.key, keys.bias)
            return self.weighted(op, scores, keys.value, window.first)

        def in_blocks(op: OpBuilder) -> Results:
            return self.scan(op, body, [blocks], count, query_length)

        if not self.may_have_lanes:
            return in_blocks(op)
        if window.unbroken is None:
            return in_lanes(op)
        return branching(
            op,
            window.unbroken,
            subgraph(op, in_lanes, self.outputs("in_lanes", "Tq")),
            subgraph(op, in_blocks, self.outputs("in_blocks", "Tq")),
            ["attended_of_row"],
        )

    def in_lanes(
        self,
        op: OpBuilder,
        blocks: ir.Value,
        block_count: Size,
        query_length: Size,
        keys: Window,
    ) -> Results:
        """Blocks whose queries go in lanes, each lane with keys and values of its own.

        Cores share such a MatMul by lanes, and each finds the scores of its rows in its own cache.
        A MatMul without lanes they share by keys, so that half of all scores change hands.
        """
        count = lanes_of(op, self.key_length)

        def widened(part: ir.Value, dim: str, name: str) -> ir.Value:
            whole = keys.first is None and self.steps.knows("Tv", dim)
            if whole and isinstance(count, int):
                shape: Any = [count, self.steps.known["Tv"], self.steps.known[dim]]
            else:
                shape = op.Concat(sizes.in_graph(count), op.Shape(part), axis=0)
            return op.Expand(part, shape, _outputs=[f"{name}_lanes"])

        key = widened(keys.key, "dim", "keys_in")
        value = widened(keys.value, "value_dim", "values_in")

        def body(op: OpBuilder, query: ir.Value) -> Results:
            dim = self.width(op, query, "dim", 1)
            lanes = sizes.vector(op, count, -1, dim)
            query = op.Reshape(query, lanes, _outputs=["queries_in_lanes"])
            scores = self.steps.scores(op, query, key)  # [lanes, block / lanes, keys]
            weights = op.call_inline(formulas.softmax_weights, scores, _outputs=["weights"])
            attended = self.steps.weighted_sum(op, self.steps.drop(op, weights), value)
            rows = sizes.vector(op, self.block, -1)
            return (op.Reshape(attended, rows, _outputs=["attended"]),)

        return self.scan(op, body, [blocks], block_count, query_length)

    def width(self, op: OpBuilder, tensor: ir.Value, dim: str, axis: int) -> Size:
        """A size of a row's tensor: as fixed in the file, or of the tensor."""
        if self.steps.knows(dim):
            return self.steps.known[dim]
        return op.Shape(tensor, start=axis, end=axis + 1)

    def causal(
        self,
        op: OpBuilder,
        blocks: ir.Value,
        count: Size,
        query_length: Size,
        window: Window,
    ) -> Results:
        """Blocks that read the keys before them and beside them; some beside are hidden.

        Positions count from the window's first key and from the first query that sees it.
        """
        numbers = op.Unsqueeze(op.Range(0, sizes.scalar(op, count), 1), [1])
        befores = op.Mul(numbers, sizes.in_graph(self.block), _outputs=["befores"])
        ends = op.Add(befores, sizes.in_graph(self.block), _outputs=["ends"])
        first: Size = 0
        if window.first is not None:
            first = window.first
            length = sizes.in_graph(window.length)
            befores = op.Min(op.Add(befores, first), length)
            ends = op.Min(op.Add(ends, first), length)

        def body(op: OpBuilder, query: ir.Value, before: ir.Value, end: ir.Value) -> Results:
            past = window.slice(op, first, before)
            beside = window.slice(op, before, end)
            width = op.Shape(beside.key, start=0, end=1)
            triangle = op.Slice(self.triangle, [0], width, [1], _outputs=["causal_bias"])
            if beside.bias is not None:
                triangle = op.Add(triangle, beside.bias, _outputs=["masked_bias"])
            scores = op.Concat(
                self.steps.block_scores(op, query, past.key, past.bias),
                self.steps.block_scores(op, query, beside.key, triangle),
                axis=1,
                _outputs=["scores_masked"],
            )
            start = sizes.in_graph(first)
            value = op.Slice(window.value, start, end, [0], _outputs=["values_seen"])
            return self.weighted(op, scores, value, window.first)

        return self.scan(op, body, [blocks, befores, ends], count, query_length)

    def weighted(
        self, op: OpBuilder, scores: ir.Value, value: ir.Value, first: ir.Value | None
    ) -> Results:
        """The results of one block; the weights widened by zeros to all keys."""
        weights = op.call_inline(formulas.softmax_weights, scores, _outputs=["weights"])
        weights = self.steps.drop(op, weights, rank=2)
        attended = op.MatMul(weights, value, _outputs=["attended"])
        rule(attended, "weighted_sum", Rule.LENGTHS)
        if not self.steps.scores_wanted:
            return (attended,)
        read = op.Shape(weights, start=1, end=2)
        before: Size = 0 if first is None else first
        after = sizes.sub(op, self.key_length, sizes.add(op, read, before))
        pads = sizes.vector(op, 0, before, 0, after)
        return attended, op.Pad(weights, pads, _outputs=["weights_of_all_keys"])

    def unseeing(
        self,
        op: OpBuilder,
        query: ir.Value,
        query_length: Size,
        key: ir.Value,
        value: ir.Value,
    ) -> Results:
        """Queries that see no key, in blocks: every key, each score 1e9 lower, as in Keras."""
        blocks, count = self.blocks(op, query, query_length)

        def body(op: OpBuilder, query: ir.Value) -> Results:
            scores = self.steps.block_scores(op, query, key)
            hidden = op.Add(scores, self.steps.number(op, HIDDEN), _outputs=["scores_masked"])
            return self.weighted(op, hidden, value, None)

        return self.scan(op, body, [blocks], count, query_length)

    def blocks(self, op: OpBuilder, query: ir.Value, query_length: Size) -> tuple[ir.Value, Size]:
        """[Tq, dim] as blocks [blocks, block, dim], filled up with zeros; and their number.

        At least one block, since a Scan cannot walk nothing.
        """
        count = ceil_div(op, query_length, self.block, "blocks")
        count = sizes.larger(op, count, 1, name="block_count")
        missing = sizes.sub(op, sizes.mul(op, count, self.block), query_length, "missing")
        if missing != 0:
            query = op.Pad(query, sizes.vector(op, 0, 0, missing, 0), _outputs=["query_padded"])
        dim = self.width(op, query, "dim", 1)
        shape = sizes.vector(op, count, self.block, dim)
        return op.Reshape(query, shape, _outputs=["query_blocks"]), count

    def scan(
        self,
        op: OpBuilder,
        body: Callable[..., Results],
        inputs: Sequence[ir.Value],
        count: Size,
        query_length: Size,
    ) -> Results:
        """The results of all blocks, without the rows that fill the last one."""
        views = [
            ir.Value(
                name="query_block",
                shape=self.shape("block", "dim"),
                type=ir.TensorType(self.steps.compute),
            )
        ]
        for name in ("before", "end")[: len(inputs) - 1]:
            kind = ir.TensorType(ir.DataType.INT64)
            views.append(ir.Value(name=name, shape=ir.Shape([1]), type=kind))
        results = scanned(
            op,
            inputs,
            subgraph(op, body, self.outputs("of_block", "block"), views),
            self.names("of_blocks"),
        )
        rows = sizes.mul(op, count, self.block, "rows")
        whole: list[ir.Value] = []
        for result in results:
            flat = op.Reshape(result, sizes.vector(op, rows, -1))
            if rows != query_length:
                flat = op.Slice(flat, [0], sizes.in_graph(query_length), [0])
            whole.append(flat)
        return tuple(whole)

    def outputs(self, branch: str, rows: str) -> list[ir.Value]:
        """Declared outputs of a body: attended [rows, value_dim] and, where wanted, weights."""
        kind = ir.TensorType(self.steps.compute)
        declared = [
            ir.Value(name=f"attended_{branch}", shape=self.shape(rows, "value_dim"), type=kind)
        ]
        if self.steps.scores_wanted:
            declared.append(
                ir.Value(name=f"weights_{branch}", shape=self.shape(rows, "Tv"), type=kind)
            )
        return declared

    def names(self, suffix: str) -> list[str]:
        """Names of the results of a Scan or an If."""
        return [f"attended_{suffix}", f"weights_{suffix}"][: 1 + self.steps.scores_wanted]

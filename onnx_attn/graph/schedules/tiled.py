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

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .. import formulas
from ..guards import BATCHES, guarded, mask_of_rows
from ..steps import Steps, branches, subgraph
from .dense import small_dense
from .parts import causal_triangle
from .thresholds import HIDDEN, block_size, lanes_of, query_length, something_is_empty

INT64 = ir.TensorType(ir.DataType.INT64)
LAST = 2**31 - 1


def tiled(op, steps: Steps, scores_wanted: bool):
    """The output and, where wanted, the weights: [batch, Tq, value_dim], [batch, Tq, Tv].

    A Scan cannot walk nothing: tensors without elements take the dense form.
    """
    return branches(
        op,
        steps,
        something_is_empty(op, steps),
        {
            "of_nothing": lambda op: small_dense(op, steps, scores_wanted),
            "tiled": lambda op: walk(op, steps, scores_wanted),
        },
        scores_wanted,
    )


def walk(op, steps, scores_wanted):
    """All batch rows: a Scan over the batch."""
    masks = steps.tensors
    steps, batch, keys = guarded(op, steps)
    query, key, value = steps.tensors.query, steps.tensors.key, steps.tensors.value
    plan = Walk(steps, scores_wanted, query_length(op, steps), keys, block_size(op, steps))
    rows = {
        "query": (query, steps.compute, ("Tq", "dim")),
        "key": (key, steps.compute, ("Tv", "dim")),
        "value": (value, steps.compute, ("Tv", "value_dim")),
    }
    if masks.value_mask is not None:
        mask = mask_of_rows(op, masks.value_mask, batch, keys, "value_mask_must_fit_the_key")
        rows |= plan.mask_facts(op, mask)
    if masks.query_mask is not None:
        mask = mask_of_rows(
            op, masks.query_mask, batch, plan.query_length, f"query_mask__{BATCHES}"
        )
        rows["query_mask"] = (mask, ir.DataType.BOOL, ("Tq",))
    if steps.config.causal:
        plan.triangle = causal_triangle(op, steps, plan.block)
    views = [
        ir.Value(name=f"{name}_of_row", shape=ir.Shape(dims), type=ir.TensorType(kind))
        for name, (_, kind, dims) in rows.items()
    ]

    def row(op, *views):
        return plan.row(op, **dict(zip(rows, views, strict=True)))

    results = op.Scan(
        *(tensor for tensor, _, _ in rows.values()),
        body=subgraph(op, row, plan.outputs("row", "Tq"), views),
        num_scan_inputs=len(rows),
        _outputs=["attended", "weights"][: 1 + scores_wanted],
    )
    return tuple(results) if scores_wanted else (results,)


@dataclass
class Walk:
    """The bodies of the Scans, for one configuration."""

    steps: Steps
    scores_wanted: bool
    query_length: ir.Value  # int64[1]
    key_length: ir.Value  # int64[1]
    block: ir.Value  # int64[1]
    triangle: ir.Value | None = None  # [block, block]

    def mask_facts(self, op, value_mask):
        """What each batch row needs to know of its value mask, found for all rows at once.

        bias: 0 or HIDDEN by key. first, length: where the visible keys begin and end. unbroken:
        whether none between is hidden. blind: how many queries, from the first on, see no key.
        """
        number, int64 = self.steps.number, ir.DataType.INT64
        bias = op.Where(value_mask, number(op, 0.0), number(op, HIDDEN), _outputs=["value_bias"])
        seen = op.Cast(value_mask, to=int(ir.DataType.INT32), _outputs=["visible_keys"])
        first = op.ArgMax(seen, axis=1, keepdims=1, _outputs=["first_visible"])
        last = op.ArgMax(seen, axis=1, keepdims=1, select_last_index=1, _outputs=["last_visible"])
        length = op.Add(last, [1], _outputs=["visible_length"])
        count = op.ReduceSum(seen, [1], keepdims=1, _outputs=["visible_count"])
        none = op.Equal(count, op.Constant(value=ir.tensor(np.array(0, np.int32))))
        before = op.Min(first, self.query_length) if self.steps.config.causal else [0]
        blind = op.Where(none, self.query_length, before, _outputs=["blind_queries"])
        facts = {
            "bias": (bias, self.steps.compute, ("Tv",)),
            "first": (first, int64, (1,)),
            "length": (length, int64, (1,)),
            "blind": (blind, int64, (1,)),
        }
        if self.may_have_lanes:
            shown = op.Cast(count, to=int(int64))
            unbroken = op.Equal(op.Add(first, shown), length, _outputs=["keys_unbroken"])
            facts["unbroken"] = (unbroken, ir.DataType.BOOL, (1,))
        return facts

    @property
    def may_have_lanes(self):
        """Whether all blocks of a row read the same keys and only the output is wanted."""
        dense_keys = self.steps.has_dot_scores and not self.steps.config.causal
        return dense_keys and not self.scores_wanted

    def row(self, op, query, key, value, query_mask=None, **mask_facts):
        """One batch row: [Tq, dim], [Tv, dim], [Tv, value_dim], bool[Tq], facts of the mask."""
        query = self.steps.prepare_query(op, query)
        if mask_facts:
            results = self.masked(op, query, key, value, **mask_facts)
        else:
            results = self.seeing(op, query, self.query_length, Window(key, value, self.key_length))
        if query_mask is None:
            return results
        shown = op.Unsqueeze(query_mask, [1])
        output = op.Where(shown, results[0], self.steps.number(op, 0.0), _outputs=["output_row"])
        return (output, *results[1:])

    def masked(self, op, query, key, value, bias, first, length, blind, unbroken=None):
        """One batch row under a value mask."""
        window = Window(key, value, length, bias, first, unbroken)

        def all_see(op):
            return self.seeing(op, query, self.query_length, window)

        def some_are_blind(op):
            unseeing = op.Slice(query, [0], blind, [0], _outputs=["blind_rows"])
            parts = [self.blind(op, unseeing, blind, key, value)]
            if self.steps.config.causal:
                seeing = op.Slice(query, blind, [LAST], [0], _outputs=["seeing_rows"])
                count = op.Sub(self.query_length, blind, _outputs=["seeing_queries"])
                parts.append(self.seeing(op, seeing, count, window))
            return tuple(
                both[0] if len(both) == 1 else op.Concat(*both, axis=0)
                for both in zip(*parts, strict=True)
            )

        results = op.If(
            op.Equal(op.Squeeze(blind), 0, _outputs=["all_queries_see"]),
            then_branch=subgraph(op, all_see, self.outputs("all_see", "Tq")),
            else_branch=subgraph(op, some_are_blind, self.outputs("some_blind", "Tq")),
            _outputs=self.names("of_row"),
        )
        return tuple(results) if self.scores_wanted else (results,)

    def seeing(self, op, query, query_length, window):
        """Queries that each see a key, in blocks."""
        blocks, count = self.blocks(op, query, query_length)
        if self.steps.config.causal:
            return self.causal(op, blocks, count, query_length, window)
        keys = window if window.first is None else window.slice(op, window.first, window.length)

        def in_lanes(op):
            return self.in_lanes(op, blocks, query_length, keys)

        def body(op, query):
            scores = self.steps.block_scores(op, query, keys.key, keys.bias)
            return self.weighted(op, scores, keys.value, window.first)

        def in_blocks(op):
            return self.scan(op, body, [blocks], query_length)

        if not self.may_have_lanes:
            return in_blocks(op)
        if window.unbroken is None:
            return in_lanes(op)
        output = op.If(
            window.unbroken,
            then_branch=subgraph(op, in_lanes, self.outputs("in_lanes", "Tq")),
            else_branch=subgraph(op, in_blocks, self.outputs("in_blocks", "Tq")),
            _outputs=["attended_of_row"],
        )
        return (output,)

    def in_lanes(self, op, blocks, query_length, keys):
        """Blocks whose queries go in lanes, each lane with keys and values of its own.

        Cores share such a MatMul by lanes, and each finds the scores of its rows in its own cache.
        A MatMul without lanes they share by keys, so that half of all scores change hands.
        """
        count = lanes_of(op, self.key_length)
        key, value = (
            op.Expand(part, op.Concat(count, op.Shape(part), axis=0), _outputs=[f"{name}_lanes"])
            for name, part in (("keys_in", keys.key), ("values_in", keys.value))
        )

        def body(op, query):
            lanes = op.Concat(count, [-1], op.Shape(query, start=1, end=2), axis=0)
            query = op.Reshape(query, lanes, _outputs=["queries_in_lanes"])
            scores = self.steps.scores(op, query, key)  # [lanes, block / lanes, keys]
            weights = op.call_inline(formulas.softmax_weights, scores, _outputs=["weights"])
            attended = self.steps.weighted_sum(op, self.steps.drop(op, weights), value)
            width = op.Shape(attended, start=2, end=3)
            return op.Reshape(attended, op.Concat([-1], width, axis=0), _outputs=["attended"])

        return self.scan(op, body, [blocks], query_length)

    def causal(self, op, blocks, count, query_length, window):
        """Blocks that read the keys before them and beside them; some beside are hidden.

        Positions count from the window's first key and from the first query that sees it.
        """
        numbers = op.Unsqueeze(op.Range(0, op.Squeeze(count), 1), [1])
        befores = op.Mul(numbers, self.block, _outputs=["befores"])
        ends = op.Add(befores, self.block, _outputs=["ends"])
        first = [0]
        if window.first is not None:
            first = window.first
            befores = op.Min(op.Add(befores, first), window.length)
            ends = op.Min(op.Add(ends, first), window.length)

        def body(op, query, before, end):
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
            value = op.Slice(window.value, first, end, [0], _outputs=["values_seen"])
            return self.weighted(op, scores, value, window.first)

        return self.scan(op, body, [blocks, befores, ends], query_length)

    def weighted(self, op, scores, value, first):
        """The results of one block; the weights widened by zeros to all keys."""
        weights = op.call_inline(formulas.softmax_weights, scores, _outputs=["weights"])
        weights = self.steps.drop(op, weights, rank=2)
        attended = op.MatMul(weights, value, _outputs=["attended"])
        if not self.scores_wanted:
            return (attended,)
        read = op.Shape(weights, start=1, end=2)
        before = [0] if first is None else first
        after = op.Sub(self.key_length, op.Add(read, before))
        pads = op.Concat([0], before, [0], after, axis=0)
        return attended, op.Pad(weights, pads, _outputs=["weights_of_all_keys"])

    def blind(self, op, query, query_length, key, value):
        """Queries that see no key, in blocks: every key, each score 1e9 lower, as in Keras."""
        blocks, _ = self.blocks(op, query, query_length)

        def body(op, query):
            scores = self.steps.block_scores(op, query, key)
            hidden = op.Add(scores, self.steps.number(op, HIDDEN), _outputs=["scores_masked"])
            return self.weighted(op, hidden, value, None)

        return self.scan(op, body, [blocks], query_length)

    def blocks(self, op, query, query_length):
        """[Tq, dim] as blocks [blocks, block, dim], filled up with zeros; and their number.

        At least one block, since a Scan cannot walk nothing.
        """
        count = op.Div(op.Add(query_length, op.Sub(self.block, [1])), self.block)
        count = op.Max(count, [1], _outputs=["block_count"])
        missing = op.Sub(op.Mul(count, self.block), query_length)
        padded = op.Pad(query, op.Concat([0, 0], missing, [0], axis=0), _outputs=["query_padded"])
        dim = op.Shape(query, start=1, end=2)
        shape = op.Concat(count, self.block, dim, axis=0)
        return op.Reshape(padded, shape, _outputs=["query_blocks"]), count

    def scan(self, op, body, inputs, query_length):
        """The results of all blocks, without the rows that fill the last one."""
        views = [self.steps.value_named("query_block", "block", "dim")]
        for name in ("before", "end")[: len(inputs) - 1]:
            views.append(ir.Value(name=name, shape=ir.Shape([1]), type=INT64))
        results = op.Scan(
            *inputs,
            body=subgraph(op, body, self.outputs("of_block", "block"), views),
            num_scan_inputs=len(inputs),
            _outputs=self.names("of_blocks"),
        )
        whole = []
        for result in results if self.scores_wanted else (results,):
            width = op.Shape(result, start=2, end=3)
            flat = op.Reshape(result, op.Concat([-1], width, axis=0))
            whole.append(op.Slice(flat, [0], query_length, [0]))
        return tuple(whole)

    def outputs(self, branch, rows):
        declared = [self.steps.value_named(f"attended_{branch}", rows, "value_dim")]
        if self.scores_wanted:
            declared.append(self.steps.value_named(f"weights_{branch}", rows, "Tv"))
        return declared

    def names(self, suffix):
        return [f"attended_{suffix}", f"weights_{suffix}"][: 1 + self.scores_wanted]


@dataclass
class Window:
    """The keys that some query of a row may see: from `first` (None: the start) to `length`."""

    key: ir.Value  # [Tv, dim]
    value: ir.Value  # [Tv, value_dim]
    length: ir.Value  # int64[1]
    bias: ir.Value | None = None  # [Tv], 0 or HIDDEN
    first: ir.Value | None = None  # int64[1]
    unbroken: ir.Value | None = None  # bool[1]: no key between is hidden

    def slice(self, op, begin, end):
        """Its keys from `begin` to `end`: int64[1]. Slice itself stops at the last key."""
        key, value, bias = (
            None if part is None else op.Slice(part, begin, end, [0])
            for part in (self.key, self.value, self.bias)
        )
        return Window(key, value, self.length, bias, self.first, self.unbroken)

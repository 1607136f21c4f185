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

import onnx_ir as ir

from . import functions
from .dense import dense
from .pieces import Steps, subgraph
from .thresholds import HIDDEN, block_size


INT64 = ir.TensorType(ir.DataType.INT64)
LAST = 2**31 - 1


def tiled(op, steps: Steps, scores_wanted: bool):
    """The attended values and, where wanted, the weights: [batch, Tq, value_dim], [batch, Tq, Tv].

    A Scan cannot walk nothing: tensors without elements take the dense form.
    """
    names = ["attended", "weights"] if scores_wanted else ["attended"]

    def outputs(branch):
        declared = [steps.value_named(f"attended_{branch}", "batch", "Tq", "value_dim")]
        if scores_wanted:
            declared.append(steps.value_named(f"weights_{branch}", "batch", "Tq", "Tv"))
        return declared

    results = op.If(
        something_is_empty(op, steps),
        then_branch=subgraph(
            op, lambda op: dense(op, steps, scores_wanted), outputs("of_nothing")
        ),
        else_branch=subgraph(op, lambda op: walk(op, steps, scores_wanted), outputs("tiled")),
        _outputs=names,
    )
    return tuple(results) if scores_wanted else (results,)


def something_is_empty(op, steps):
    tensors = steps.tensors
    sizes = op.Mul(op.Size(tensors.query), op.Size(tensors.key), _outputs=["sizes"])
    sizes = op.Mul(sizes, op.Size(tensors.value), _outputs=["sizes"])
    return op.Equal(sizes, 0, _outputs=["something_is_empty"])


def walk(op, steps, scores_wanted):
    """All batch rows: a Scan over the batch."""
    tensors = steps.tensors
    query_length = op.Shape(tensors.query, start=1, end=2, _outputs=["query_length"])
    key_length = op.Shape(tensors.key, start=1, end=2, _outputs=["key_length"])
    block = block_size(op, steps, query_length, key_length)
    value = same_length(op, tensors.value, key_length)
    plan = Walk(steps, scores_wanted, query_length, key_length, block)

    rows = [tensors.query, tensors.key, value]
    views = [
        steps.value_named("query_row", "Tq", "dim"),
        steps.value_named("key_row", "Tv", "dim"),
        steps.value_named("value_row", "Tv", "value_dim"),
    ]
    if tensors.value_mask is not None:
        batch = op.Shape(tensors.query, start=0, end=1, _outputs=["batch_size"])
        rows.append(
            op.Expand(
                tensors.value_mask,
                op.Concat(batch, key_length, axis=0),
                _outputs=["value_mask_of_rows"],
            )
        )
        views.append(
            ir.Value(name="mask_row", shape=ir.Shape(["Tv"]), type=ir.TensorType(ir.DataType.BOOL))
        )
    if steps.config.causal:
        plan.triangle, plan.last_start = wide_triangle(op, steps, query_length, block)

    outputs = [steps.value_named("attended_row", "Tq", "value_dim")]
    names = ["attended"]
    if scores_wanted:
        outputs.append(steps.value_named("weights_row", "Tq", "Tv"))
        names.append("weights")
    results = op.Scan(
        *rows,
        body=subgraph(op, plan.row, outputs, views),
        num_scan_inputs=len(rows),
        _outputs=names,
    )
    if not scores_wanted:
        results = (results,)
    return tuple(results)


def same_length(op, value, key_length):
    """`value` if it is as long as the key; any other length is the runtime's error.

    Slices of both up to one bound would hide the difference.
    """
    head = op.Shape(value, start=0, end=1)
    tail = op.Shape(value, start=2, end=3)
    checked = op.Reshape(value, op.Concat(head, key_length, tail, axis=0), _outputs=["value_rows"])
    checked.producer().name = "key_and_value_must_have_the_same_length"
    return checked


def wide_triangle(op, steps, query_length, block):
    """Causal bias of any block: [block, starts + block], starts the first row of the last block.

    Column starts + t is key t past a block's first query, hidden from its row r where t > r. The
    bias of the block that starts at s lies in the columns from starts - s.
    """
    last = op.Sub(query_length, [1])
    starts = op.Mul(op.Div(last, block), block, _outputs=["last_start"])
    width = op.Add(starts, block)
    everywhere = op.Expand(steps.number(op, HIDDEN), op.Concat(block, width, axis=0))
    above = op.Add(starts, [1])
    triangle = op.Trilu(everywhere, op.Squeeze(above), upper=1, _outputs=["wide_triangle"])
    return triangle, starts


@dataclass
class Walk:
    """The bodies of the Scans, for one configuration."""

    steps: Steps
    scores_wanted: bool
    query_length: ir.Value  # int64[1]
    key_length: ir.Value  # int64[1]
    block: ir.Value  # int64[1]
    triangle: ir.Value | None = None  # [block, last_start + block]
    last_start: ir.Value | None = None  # int64[1]

    def row(self, op, query, key, value, value_mask=None):
        """One batch row: [Tq, dim], [Tv, dim], [Tv, value_dim], bool[Tv]."""
        query = self.steps.prepare_query(op, query)
        if value_mask is None:
            window = Window(key, value, self.key_length)
            return self.seeing(op, query, self.query_length, window)
        seen = op.Cast(value_mask, to=int(ir.DataType.INT32), _outputs=["visible_keys"])
        first = op.ArgMax(seen, axis=0, keepdims=1, _outputs=["first_visible"])
        last = op.ArgMax(seen, axis=0, keepdims=1, select_last_index=1, _outputs=["last_visible"])
        length = op.Add(last, [1], _outputs=["visible_length"])
        any_visible = op.Gather(value_mask, first, _outputs=["any_visible"])
        blind = op.Where(
            any_visible, first if self.steps.config.causal else [0], self.query_length
        )
        blind = op.Min(blind, self.query_length, _outputs=["blind_queries"])
        bias = op.Where(
            value_mask, self.steps.number(op, 0.0), self.steps.number(op, HIDDEN),
            _outputs=["bias_row"],
        )
        window = Window(key, value, length, bias, first)

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
        """Queries that each see a key, in blocks: the window's keys, causally where asked."""
        steps = self.steps
        blocks, starts = self.blocks(op, query, query_length)
        if not steps.config.causal:
            window = window.cut(op)

        def body(op, query, start=None):
            keys, bias = window, None
            if start is not None:
                keys = window.until(op, op.Add(start, self.block))
            scores = steps.block_scores(op, query, keys.key, keys.bias)
            if start is not None:
                scores = op.Add(scores, self.causal_bias(op, start, keys))
            weights = op.call_inline(functions.softmax_weights, scores, _outputs=["weights"])
            weights = steps.drop(op, weights, rank=2)
            attended = op.MatMul(weights, keys.value, _outputs=["attended"])
            return self.with_weights(op, attended, weights, window.first)

        return self.scan(op, body, [blocks, *starts], query_length)

    def blind(self, op, query, query_length, key, value):
        """Queries that see no key, in blocks: every key, each score 1e9 lower, as in Keras."""
        steps = self.steps
        blocks, _ = self.blocks(op, query, query_length)

        def body(op, query):
            scores = steps.block_scores(op, query, key)
            scores = op.Add(scores, steps.number(op, HIDDEN), _outputs=["scores_masked"])
            weights = op.call_inline(functions.softmax_weights, scores, _outputs=["weights"])
            weights = steps.drop(op, weights, rank=2)
            attended = op.MatMul(weights, value, _outputs=["attended"])
            return (attended, weights) if self.scores_wanted else (attended,)

        return self.scan(op, body, [blocks], query_length)

    def causal_bias(self, op, start, keys):
        """The bias of the block that begins at query `start`: [block, keys read]."""
        begin = op.Sub(self.last_start, start)
        count = op.Shape(keys.key, start=0, end=1)
        return op.Slice(self.triangle, begin, op.Add(begin, count), [1], _outputs=["causal_bias"])

    def with_weights(self, op, attended, weights, first):
        """Both results of a block; the weights widened by zeros to all keys."""
        if not self.scores_wanted:
            return (attended,)
        count = op.Shape(weights, start=1, end=2)
        after = op.Sub(self.key_length, count)
        before = [0]
        if first is not None:
            before = first
            after = op.Sub(after, first)
        pads = op.Concat([0], before, [0], after, axis=0)
        return attended, op.Pad(weights, pads, _outputs=["weights_of_all_keys"])

    def blocks(self, op, query, query_length):
        """[Tq, dim] as blocks [blocks, block, dim], and where each begins: int64[blocks, 1].

        At least one block, since a Scan cannot walk nothing.
        """
        count = op.Div(op.Add(query_length, op.Sub(self.block, [1])), self.block)
        count = op.Max(count, [1], _outputs=["block_count"])
        missing = op.Sub(op.Mul(count, self.block), query_length)
        padded = op.Pad(query, op.Concat([0, 0], missing, [0], axis=0), _outputs=["query_padded"])
        dim = op.Shape(query, start=1, end=2)
        shape = op.Concat(count, self.block, dim, axis=0)
        blocks = op.Reshape(padded, shape, _outputs=["query_blocks"])
        if not self.steps.config.causal:
            return blocks, ()
        numbers = op.Range(0, op.Squeeze(count), 1)
        starts = op.Mul(op.Unsqueeze(numbers, [1]), self.block, _outputs=["block_starts"])
        return blocks, (starts,)

    def scan(self, op, body, inputs, query_length):
        """The results of all blocks, without the rows that fill the last one."""
        views = [self.steps.value_named("query_block", "block", "dim")]
        if len(inputs) == 2:
            views.append(ir.Value(name="start", shape=ir.Shape([1]), type=INT64))
        results = op.Scan(
            *inputs,
            body=subgraph(op, body, self.outputs("of_block", "block"), views),
            num_scan_inputs=len(inputs),
            _outputs=self.names("of_blocks"),
        )
        if not self.scores_wanted:
            results = (results,)
        whole = []
        for result in results:
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

    def cut(self, op):
        """Its keys alone."""
        if self.first is None:
            return self
        return self.between(op, self.first, self.length)

    def until(self, op, end):
        """Its keys up to `end`, counted from its first: int64[1]."""
        if self.first is None:
            return self.between(op, [0], end)
        return self.between(op, self.first, op.Min(op.Add(end, self.first), self.length))

    def between(self, op, begin, end):
        """Slices; an end beyond the last key is cut by Slice itself."""
        cut = [
            None if part is None else op.Slice(part, begin, end, [0])
            for part in (self.key, self.value, self.bias)
        ]
        return Window(cut[0], cut[1], self.length, cut[2], self.first)

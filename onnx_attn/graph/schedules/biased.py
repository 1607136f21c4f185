"""The schedules of files that take a bias: dense, or the walk over the bias.

The rule: `scores + bias`, rounded to the type of the arithmetic, and then Keras's -1e9 once where
value_mask AND causal hide a key. A query whose keys are all masked so gets
softmax(round(score + bias - 1e9)).

All work on [batch, heads, T, width], a layer without heads as one of one head, and give rows:
[batch * heads, Tq, width].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from .. import formulas, sizes
from ..builder import OpBuilder, Results
from ..guards import PENALTY, Rule, mask_of_rows, misfit, refused_unless_zero, rule, with_features
from ..sizes import Size
from ..steps import Steps, Tensors
from . import thresholds
from .bias_walk import StepSize, bias_facts, bias_walk, step_size
from .choice import nothing_is_hidden
from .dense import future_bias, mask_bias


def dense_biased(op: OpBuilder, steps: Steps) -> Results:
    """The whole score matrix at once."""
    given = _in_four(op, steps)
    query, key, value = (given.rows(op, t) for t in (given.query, given.key, given.value))
    rows = replace(steps, tensors=replace(given.tensors, query=query, key=key, value=value))
    query = rows.prepare_query(op, query)
    scores = rows.scores(op, query, key)  # [batch * heads, Tq, Tv]
    shape = op.Concat(given.lead(op), op.Shape(scores, start=1, end=3), axis=0)
    scores = op.Reshape(scores, shape, allowzero=1, _outputs=["scores_of_heads"])
    scores = op.Add(scores, given.bias, _outputs=["scores_biased"])
    hidden = future_bias(op, rows, query)
    if rows.tensors.value_mask is not None:
        hidden = op.Unsqueeze(mask_bias(op, rows, hidden), [1], _outputs=["mask_of_heads"])
    if hidden is not None:
        scores = op.call_inline(formulas.masked_scores, scores, hidden, _outputs=["scores_masked"])
    weights = op.call_inline(formulas.softmax_weights, scores, _outputs=["weights"])
    weights = rows.drop(op, weights, rank=4)
    attended = op.MatMul(weights, given.value, _outputs=["attended"])
    rule(attended, "weighted_sum", Rule.LENGTHS)
    return given.finished(op, (attended, weights)[: 1 + steps.scores_wanted])


def tiled_biased(op: OpBuilder, steps: Steps) -> Results:
    """The walk. A Scan cannot walk nothing: tensors without elements take the dense form."""
    return steps.branches(
        op,
        _something_is_empty(op, steps),
        then=("of_nothing", lambda op: dense_biased(op, steps)),
        otherwise=("tiled", lambda op: _walk(op, steps)),
    )


def auto_biased(op: OpBuilder, steps: Steps) -> Results:
    """The dense form up to so many scores of a row as a bias is worth no second look."""
    pairs = sizes.mul(op, _length(op, steps, "Tq"), _length(op, steps, "Tv"), "pairs")
    few = sizes.less(op, pairs, thresholds.MASKED_PAIRS, "few_pairs")
    return steps.branches(
        op,
        sizes.either(op, few, _something_is_empty(op, steps), name="dense_suits"),
        then=("short", lambda op: dense_biased(op, steps)),
        otherwise=("long", lambda op: _walk(op, steps)),
    )


BIASED = {"dense": dense_biased, "tiled": tiled_biased, "auto": auto_biased}


def _walk(op: OpBuilder, steps: Steps) -> Results:
    """The walk over bias, masks and causal together; a mask that hides nothing is left out."""
    mask = steps.tensors.value_mask
    if mask is None:
        return _walk_all(op, steps)
    unmasked = replace(steps, tensors=replace(steps.tensors, value_mask=None))
    return steps.branches(
        op,
        nothing_is_hidden(op, steps, mask),
        then=("unmasked", lambda op: _walk_all(op, unmasked)),
        otherwise=("masked", lambda op: _walk_all(op, steps)),
    )


def _walk_all(op: OpBuilder, steps: Steps) -> Results:
    given = _in_four(op, steps)
    rows = replace(steps, tensors=given.tensors)
    Tq, Tv = (op.Shape(t, start=2, end=3) for t in (given.query, given.key))
    heads = op.Shape(given.query, start=1, end=2)
    if steps.has_dot_scores:
        step = step_size(op, heads, Tq, Tv)
    else:
        # As many queries as their features, [1, block, Tv, dim], stay in the cache.
        dim = op.Shape(given.query, start=3, end=4)
        features = op.Max(op.Mul(Tv, dim), [1], _outputs=["features_of_query"])
        block = op.Div([thresholds.BLOCK_FEATURES], features)
        block = op.Max(op.Min(block, [thresholds.LARGEST_BLOCK]), [1], _outputs=["block"])
        step = StepSize(op.Constant(value_ints=[1]), block)
    facts = bias_facts(
        op,
        given.bias,
        heads,
        Tq,
        Tv,
        step,
        causal=steps.config.causal,
        key_mask=given.tensors.value_mask,
        dtype=steps.compute,
    )
    results = bias_walk(
        op,
        rows.prepare_query(op, given.query),
        given.key,
        given.value,
        None,
        facts,
        scores=rows.scores,
        drop=rows.drop,
        weights_wanted=steps.scores_wanted,
    )
    return given.finished(op, results)


@dataclass(frozen=True)
class _Given:
    """The layer's tensors in the type of the arithmetic, checked, with an axis of heads."""

    steps: Steps
    tensors: Tensors
    query: ir.Value  # [batch, heads, Tq, dim]
    key: ir.Value  # [batch, heads, Tv, dim]
    value: ir.Value  # [batch, heads, Tv, value_dim]
    bias: ir.Value  # [batch or 1, heads or 1, Tq or 1, Tv or 1]

    def lead(self, op: OpBuilder) -> ir.Value:
        """Batch and heads: int64[2]."""
        return op.Shape(self.query, start=0, end=2)

    def rows(self, op: OpBuilder, tensor: ir.Value) -> ir.Value:
        """[batch, heads, T, width] as [batch * heads, T, width]."""
        count = op.ReduceProd(op.Shape(tensor, start=0, end=2), keepdims=1)
        shape = op.Concat(count, op.Shape(tensor, start=2, end=4), axis=0)
        flat = op.Reshape(tensor, shape, allowzero=1, _outputs=["rows"])
        flat.dtype = tensor.dtype
        return flat

    def finished(self, op: OpBuilder, results: Results) -> Results:
        """The results by rows, the output under the query mask."""
        output, *weights = results
        mask = self.tensors.query_mask
        if mask is not None:
            shown = op.Unsqueeze(mask, [1, 3], _outputs=["query_mask_of_heads"])
            output = op.Where(shown, output, self.steps.number(op, 0.0), _outputs=["output_masked"])
        return tuple(self.rows(op, result) for result in (output, *weights))


def _in_four(op: OpBuilder, steps: Steps) -> _Given:
    """All tensors with an axis of heads; shapes that do not fit are the runtime's error.

    Query, key and value are reshaped to the batch, heads and length of all. Slices and broadcasting
    would hide a wrong bias or mask: so each axis of these that is neither 1 nor that of the scores
    is refused.
    """
    tensors = steps.in_arithmetic(op).tensors
    assert tensors.bias is not None
    query, key, value, bias = tensors.query, tensors.key, tensors.value, tensors.bias
    shared = key is value
    if not steps.heads:
        query, value, bias = (op.Unsqueeze(tensor, [1]) for tensor in (query, value, bias))
        key = value if shared else op.Unsqueeze(key, [1])
    every = [query, value] if shared else [query, key, value]
    axes, lead = _of_all(op, [op.Shape(tensor, start=0, end=2) for tensor in every], "lead")
    lengths = [op.Shape(tensor, start=2, end=3) for tensor in every[1:]]
    length, keys = _of_all(op, lengths, "key_length")
    queries = op.Shape(query, start=2, end=3, _outputs=["query_length"])

    def check(tensor: ir.Value, name: str, length: ir.Value, *rules: Rule) -> ir.Value:
        shape = op.Concat(lead, length, op.Shape(tensor, start=3, end=4), axis=0)
        checked = op.Reshape(tensor, shape, allowzero=1, _outputs=[f"{name}_checked"])
        checked.dtype = steps.compute
        return rule(checked, name, *rules)

    query = check(query, "query", queries, Rule.HEADS)
    if not steps.knows("dim"):
        query = with_features(op, query, 4)
    checked = check(value, "value", keys, Rule.LENGTHS, Rule.HEADS)
    key = checked if shared else check(key, "key", keys, Rule.LENGTHS, Rule.HEADS)
    wanted = op.Concat(axes, queries, length, axis=0)
    dims = op.Shape(bias, _outputs=["bias_dims"])
    wanted = op.Where(op.Equal(dims, [1]), [1], wanted, _outputs=["bias_dims_wanted"])
    bias = refused_unless_zero(op, bias, 4, [misfit(op, dims, wanted, Rule.BIAS)], "bias")
    batch: Size = op.Slice(axes, [0], [1])
    masks: dict[str, ir.Value | None] = {}
    for name, size, broken in (
        ("query_mask", queries, Rule.BATCHES),
        ("value_mask", length, Rule.VALUE_MASK),
    ):
        mask = getattr(tensors, name)
        masks[name] = mask and mask_of_rows(op, mask, batch, size, name, broken)
    return _Given(steps, replace(tensors, **masks), query, key, checked, bias)


def _of_all(op: OpBuilder, shapes: list[ir.Value], name: str) -> tuple[ir.Value, ir.Value]:
    """The smallest sizes of all `shapes`; and the same, less than a Reshape takes if others differ.

    The second is for what has to be alike. What has to fit that is held against the first, so that
    it is not blamed.
    """
    if len(shapes) == 1:
        return shapes[0], shapes[0]
    least = op.Min(*shapes, _outputs=["least"])
    differences = op.Sub(op.Max(*shapes), least, _outputs=["differences"])
    return least, op.Sub(least, op.Mul(differences, PENALTY), _outputs=[name])


def _length(op: OpBuilder, steps: Steps, dim: str) -> Size:
    tensor = steps.tensors.query if dim == "Tq" else steps.tensors.key
    if dim in steps.known:
        return steps.known[dim]
    axis = 2 if steps.heads else 1
    return op.Shape(tensor, start=axis, end=axis + 1, _outputs=[f"{dim}_size"])


def _something_is_empty(op: OpBuilder, steps: Steps) -> sizes.Truth:
    """Whether query, key or value have no elements. A size that is fixed is 1 at least."""
    if steps.knows("batch", "Tq", "Tv"):  # rows of batch and heads, where there are heads
        return False
    tensors = dict.fromkeys((steps.tensors.query, steps.tensors.key, steps.tensors.value))
    counts = [steps.count(op, tensor, "element_count") for tensor in tensors]
    smallest = op.Min(*counts, _outputs=["smallest_count"])
    return op.Equal(smallest, steps.tied(op, 0), _outputs=["something_is_empty"])

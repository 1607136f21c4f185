"""Puts the walk in the place of a site's nodes.

Each site becomes one If: the walk where the sequences are long and the tensors fit it, and the
nodes that were there, in their plainest form, for everything else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from ..graph.builder import OpBuilder, subgraph
from ..graph.nodes import reduced, view
from ..graph.schedules.bias_walk import Facts, bias_walk, product
from .dims import Dims, equal
from .expressions import ZERO, Expression, numbers_of
from .keys import Keys
from .masks import bias_sizes
from .placing import move, new_builder
from .products import Operand
from .scores import HIDDEN_BELOW, Fixed, Form, Linear, Scores, Select, Step
from .shared import Shared
from .site_facts import SharedFacts
from .sites import Gain, Site
from .triangles import Masks

# Fewer queries or keys than this, and the nodes that were there are as fast or faster.
WALK_FROM = 160
FLOAT = ir.DataType.FLOAT
INT32, BOOL = int(ir.DataType.INT32), int(ir.DataType.BOOL)
LAST = 2**31 - 1


class Splicer:
    """Rewrites sites of one model, sharing what they have in common."""

    def __init__(self, model: ir.Model, walk_from: int = WALK_FROM) -> None:
        self.model = model
        self.dims = Dims(model)
        self.builder = new_builder(model)
        self.op: Any = OpBuilder(self.builder.op)
        self.shared = Shared(self.op, self.dims, walk_from)
        self.facts = SharedFacts(self.shared)
        self.placed: list[ir.Value] = []

    def rewrite(self, site: Site) -> None:
        """Put the walk in the place of `site`'s nodes."""
        op = self.op
        assert site.product is not None
        assert site.scores is not None
        assert site.sum is not None
        assert site.output is not None
        query, value = self._turned(site.product.query), self._turned(site.sum.value)
        sizes = bias_sizes(site.scores.bias, self.dims)
        assert sizes is not None
        bias_rank = len(sizes)
        keys = Keys(site, self.dims, lazy=bias_rank <= 4)
        key = keys.there if keys.is_transposed else self._turned(site.product.key)
        rank = site.product.query.rank
        if site.lead:
            rank = len(site.lead[-1].picked)
            query, key = (self._led(site, tensor) for tensor in (query, key))
        value_shape = None
        if site.reshaped_later or site.sum.value.rank != rank:
            value_shape = op.Shape(value)
            lead = op.Slice(op.Shape(query), [0], [-2])
            value = op.Reshape(value, op.Concat(lead, op.Slice(value_shape, [-2], [LAST]), axis=0))
        query = self._multiplied(query, site.scores)
        value = self._multiplied_keys(value, site.gains)
        rank = max(rank, bias_rank)
        query, key, value = (self._to_rank(tensor, rank) for tensor in (query, key, value))
        bias = None
        if rank > 4:
            bias = self.shared.bias(site.scores.bias)
            bias = None if bias is None else self._to_rank(bias, rank)
            query, key, value = self._spread(op, [query, key, value], bias)
        shape = query
        query, key, value = (self._four(tensor, rank) for tensor in (query, key, value))
        keys.there = key
        known = self.facts.known_masks(site.scores, query, keys, value) if rank <= 4 else None
        if known is not None:
            output = self._attend_masked(site, query, keys, value, known)
        else:
            bias = self.shared.bias(site.scores.bias)
            if bias is not None:
                bias = self._bias_to_four(bias, bias_rank, rank, shape)
            output = self._attend_biased(site, query, keys, value, bias)
        width = op.Shape(value, start=3, end=4)
        if value_shape is not None:
            lead = op.Slice(value_shape, [0], [-2])
            length = op.Shape(query, start=2, end=3)
            output = op.Reshape(output, op.Concat(lead, length, width, axis=0))
        elif rank < 4:
            output = op.Squeeze(output, [1] if rank == 3 else [0, 1])
        elif rank > 4:
            lead = op.Slice(op.Shape(shape), [0], [-1])
            output = op.Reshape(output, op.Concat(lead, width, axis=0))
        for gain in site.gains:
            if not gain.of_keys:
                output = getattr(op, gain.op)(output, gain.by)
        if site.sum.perm is not None:
            output = op.Transpose(output, perm=site.sum.perm)
        self._take_place(site.output, output)

    def finish(self) -> None:
        """Move what was built into the model, and remove what it replaces."""
        move(self.builder, self.model, "attention", self.placed)
        passes.RemoveUnusedNodesPass()(self.model)
        self.model.graph.sort()

    # Operands

    def _turned(self, operand: Operand) -> Any:
        tensor: Any = operand.value
        if operand.perm is not None:
            tensor = self.op.Transpose(tensor, perm=operand.perm)
        if operand.added:
            tensor = self.op.Unsqueeze(tensor, list(range(operand.added)))
        return tensor

    def _led(self, site: Site, tensor: Any) -> Any:
        """The tensor with the leading axes that the scores were reshaped to."""
        op = self.op
        for shaping in site.lead:
            target: Any = shaping.target
            if not target.dtype or target.dtype != ir.DataType.INT64:
                target = op.Shape(target)
            pieces = [
                [1] if place is None else op.Gather(target, [place])
                for place in shaping.picked[:-2]
            ]
            last = op.Slice(op.Shape(tensor), [-2], [LAST])
            tensor = op.Reshape(tensor, op.Concat(*pieces, last, axis=0))
        return tensor

    def _multiplied(self, query: Any, scores: Scores) -> Any:
        for factor in scores.factors:
            operator = self.op.Div if factor.divides else self.op.Mul
            query = operator(query, factor.value)
        return query

    def _multiplied_keys(self, value: Any, gains: list[Gain]) -> Any:
        """The value times the factors that the weights of each key have."""
        op = self.op
        for gain in gains:
            if gain.of_keys:
                assert isinstance(gain.by, ir.Value)
                by = gain.by
                rank = len(by.shape or ())
                by = op.Unsqueeze(by, [0]) if rank == 1 else by
                perm = [*range(max(rank, 2))]
                perm[-2:] = perm[:-3:-1]
                value = getattr(op, gain.op)(value, op.Transpose(by, perm=perm))
        return value

    def _spread(self, op: Any, tensors: list[Any], bias: Any) -> list[Any]:
        """Tensors [.., length, width] with the same leading axes, those of 1 expanded."""
        axes = [self.dims.of(tensor) for tensor in tensors]
        of_bias = () if bias is None else self.dims.of(bias)
        first = axes[0]
        if first is not None and of_bias is not None and None not in first[:-2]:
            alike = all(sizes is not None and sizes[:-2] == first[:-2] for sizes in axes)
            pairs = zip(reversed(of_bias[:-2]), reversed(first[:-2]), strict=False)
            if alike and all(size in (1, other) for size, other in pairs):
                return tensors
        leads = [op.Slice(op.Shape(tensor), [0], [-2]) for tensor in tensors]
        if bias is not None:
            leads.append(op.Slice(op.Shape(bias), [0], [-2]))
        shape = op.Concat(op.Max(*leads), [1, 1], axis=0)
        return [op.Expand(tensor, shape) for tensor in tensors]

    def _to_rank(self, tensor: Any, rank: int) -> Any:
        missing = rank - _rank(tensor, rank)
        return self.op.Unsqueeze(tensor, list(range(missing))) if missing > 0 else tensor

    def _four(self, tensor: Any, rank: int) -> Any:
        """[..., length, width] as [batch, heads, length, width]."""
        op = self.op
        if rank == 4:
            return tensor
        if rank < 4:
            return op.Unsqueeze(tensor, [1] if rank == 3 else [0, 1])
        last = op.Slice(op.Shape(tensor), [-2], [LAST])
        return op.Reshape(tensor, op.Concat([0, -1], last, axis=0))

    def _bias_to_four(self, bias: Any, bias_rank: int, rank: int, query: Any) -> Any:
        op = self.op
        if rank <= 4:
            bias = self._to_rank(bias, max(rank, 2)) if bias_rank < rank else bias
            return self._four(bias, max(rank, 2))
        bias = self._to_rank(bias, rank)
        heads = op.Slice(op.Shape(query), [1], [-2])
        bias = op.Expand(bias, op.Concat([1], heads, [1, 1], axis=0))
        last = op.Slice(op.Shape(bias), [-2], [LAST])
        return op.Reshape(bias, op.Concat([0, -1], last, axis=0))

    # The walk

    def _attend_biased(self, site: Site, query: Any, keys: Keys, value: Any, bias: Any) -> Any:
        """The walk over a bias that is read at run time, or over none."""
        assert site.scores is not None
        op, scores = self.op, site.scores
        fits = self._fits(query, keys, value, bias)
        facts, long = self.facts.of_bias(scores.bias, query, keys, bias)
        fits = fits if fits is long else op.And(fits, long)
        if scores.faithful is not None:
            seen = op.Greater(reduced(op, "ReduceMax", bias, 3, 0), HIDDEN_BELOW)
            seen = reduced(op, "ReduceMin", op.Cast(op.Reshape(seen, [-1]), to=INT32), 0, 0)
            fits = op.And(fits, op.Cast(seen, to=BOOL))
        return self._either(site, fits, query, keys, value, bias, facts)

    def _attend_masked(self, site: Site, query: Any, keys: Keys, value: Any, masks: Masks) -> Any:
        """The walk over masks that are known by the way they are made."""
        long = self.shared.long(query, keys)
        facts, bias = self.facts.of_masks(masks, query, keys)
        return self._either(site, long, query, keys, value, bias, facts, alike=True)

    def _either(
        self,
        site: Site,
        fits: Any,
        query: Any,
        keys: Keys,
        value: Any,
        bias: Any,
        facts: Facts,
        alike: bool = False,
    ) -> Any:
        """The If of one site: the walk, or the nodes that were there in their plainest form.

        `alike`: whether query, keys and value are known to have the same batch and heads.
        """
        assert site.scores is not None
        op, scores = self.op, site.scores
        some = None if site.zeroed is None else self._some_shown(*site.zeroed)
        steps = self._scalar_steps(scores.steps)
        alpha, later = _folded(steps)
        first: tuple[Step, ...] = ()
        if _is_swallowing(scores.bias):
            # On the query: as it comes, but for the last bit.
            first, later = later, first

        written = product(None if alpha == 1.0 else alpha, FLOAT)

        def step_scores(op: Any, queries: Any, keys: Any) -> Any:
            return _stepped(op, written(op, queries, keys), later)

        def walk(op: Any) -> Any:
            given = [_stepped(op, query, first), keys.turned(op), value]
            q, k, v = given if alike else self._spread(op, given, bias)
            output = bias_walk(op, q, k, v, None, facts, scores=step_scores)[0]
            if site.guarded:
                output = op.Where(op.IsNaN(output), 0.0, output)
            return output if some is None else op.Where(some, output, 0.0)

        def dense(op: Any) -> Any:
            product = op.MatMul(query, keys.transposed(op))
            if scores.faithful is not None:
                product = self._faithful(op, scores.faithful, product)
            else:
                product = _stepped(op, product, steps)
                if bias is not None:
                    product = op.Add(product, bias)
            weights = op.Softmax(product, axis=-1)
            if site.guarded:
                weights = op.Where(op.IsNaN(weights), 0.0, weights)
            output = op.MatMul(weights, value)
            return output if some is None else op.Where(some, output, 0.0)

        return op.If(
            fits,
            then_branch=subgraph(op, walk, [_output("walked")]),
            else_branch=subgraph(op, dense, [_output("dense")]),
            _outputs=["attended"],
            _name=f"{site.name}/attention",
        )

    def _some_shown(self, hidden: ir.Value, turned: bool) -> Any:
        """Whether a query sees a key: bool [.., Tq or 1, 1], of rank 4."""
        op = self.op
        shown = self.shared.condition(hidden) if turned else op.Not(self.shared.condition(hidden))
        sizes = self.dims.of(hidden)
        rank = 4 if sizes is None else len(sizes)
        seen = reduced(op, "ReduceMax", op.Cast(shown, to=INT32), rank - 1, 1)
        seen = op.Cast(seen, to=BOOL)
        if rank == 3:
            return op.Unsqueeze(seen, [1])
        return op.Unsqueeze(seen, list(range(4 - rank))) if rank < 4 else seen

    def _faithful(self, op: Any, form: Form, product: Any) -> Any:
        """A form as it was written, of a product: for queries that see no key."""
        if isinstance(form, Select):
            chosen = self._faithful(op, form.chosen, product)
            other = self._faithful(op, form.other, product)
            return op.Where(self.shared.condition(form.condition), chosen, other)
        if isinstance(form, Fixed):
            return self.shared.made(form.bias)
        assert isinstance(form, Linear)
        product = _stepped(op, product, self._scalar_steps(form.steps))
        return product if form.bias == ZERO else op.Add(product, self.shared.made(form.bias))

    def _fits(self, query: Any, keys: Keys, value: Any, bias: Any) -> Any:
        """Whether the walk can take these tensors: long, the bias's axes whole or 1.

        What is known of the sizes is not asked.
        """
        op, dims = self.op, self.dims
        of_query, of_value = dims.of(query), dims.of(value)
        result = self.shared.long(query, keys)
        if of_value is None or not equal(keys.size(2), of_value[2]):
            same = op.Equal(op.Shape(value, start=2, end=3), keys.length(op))
            result = op.And(result, same)
        of_bias = None if bias is None else dims.of(bias)
        if bias is None or (
            of_query is not None
            and of_bias is not None
            and (of_bias[2] == 1 or equal(of_bias[2], of_query[2]))
            and equal(of_bias[3], keys.size(2))
        ):
            return result
        # Before a lone query or key is stretched to the bias's, no block is long.
        whole = op.Concat(op.Shape(query, start=2, end=3), keys.length(op), axis=0)
        shape = op.Shape(bias, start=2, end=4)
        fits = op.Or(op.Equal(shape, [1, 1]), op.Equal(shape, whole))
        return op.And(result, _all(op, fits))

    def _scalar_steps(self, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        """Steps whose values are of rank 0, which do not change the rank of what they scale."""
        result: list[Step] = []
        for step in steps:
            by = step.by
            if isinstance(by, ir.Value) and len(by.shape or ()) > 0:
                step = Step(step.op, self.op.Squeeze(by))
            result.append(step)
        return tuple(result)

    def _take_place(self, old: ir.Value, new: ir.Value) -> None:
        """`new` wherever `old` was, under its name where it is an output of the model."""
        name = old.name
        new.shape, new.dtype = old.shape, old.dtype or FLOAT
        self.dims.known[new] = self.dims.of(old)  # later layers are told of their sizes by it
        outputs = self.model.graph.outputs
        for index, value in enumerate(outputs):
            if value is old:
                outputs[index] = new
        old.replace_all_uses_with(new)
        old.name = f"{name}_before"
        new.name = name
        self.placed.append(new)


def _is_swallowing(bias: Expression) -> bool:
    """Whether a bias that hides takes the scores with it, so that their last bit is nothing."""
    numbers = numbers_of(bias)
    return numbers is not None and all(n == 0.0 or n < -1e29 for n in numbers)


def _folded(steps: tuple[Step, ...]) -> tuple[float, tuple[Step, ...]]:
    """Steps as a number within the product and those after it.

    ONNX Runtime folds them so too, and where a penalty like -1e4 rounds scores the last bit counts.
    """
    alpha = np.float32(1.0)
    for count, step in enumerate(steps):
        if isinstance(step.by, ir.Value):
            return float(alpha), steps[count:]
        by = np.float32(step.by)
        alpha = alpha * (np.float32(1.0) / by if step.op == "Div" else by)
    return float(alpha), ()


def _stepped(op: Any, product: Any, steps: tuple[Step, ...]) -> Any:
    for step in steps:
        product = getattr(op, step.op)(product, step.by)
    return product


def _rank(tensor: Any, default: int) -> int:
    return default if tensor.shape is None else len(tensor.shape)


def _all(op: Any, condition: Any) -> Any:
    return op.Cast(reduced(op, "ReduceMin", op.Cast(condition, to=INT32), 0, 0), to=BOOL)


def _output(name: str) -> ir.Value:
    return view(name, FLOAT, "batch", "heads", "Tq", "value_dim")

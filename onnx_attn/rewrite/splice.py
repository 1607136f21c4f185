"""Puts the walk in the place of a site's nodes.

Each site becomes one If: the walk where the sequences are long and the tensors fit it, and the
nodes that were there, in their plainest form, for everything else. The bias is computed once for
all sites that share it, and so are its facts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript import GraphBuilder

from ..graph.schedules.bias_facts import HIDDEN_BELOW
from ..graph.schedules.bias_walk import (
    Facts,
    bias_facts,
    bias_walk,
    walk_block,
)
from .dims import Axis, Dims, Made, Size, equal
from .masks import bias_sizes
from .products import Operand
from .scores import (
    Choice,
    Computed,
    Expression,
    Fixed,
    Form,
    Known,
    Linear,
    Number,
    Scores,
    Select,
    parts,
)
from .sites import Site
from .triangles import Masks, known_masks

# Fewer queries or keys than this, and the nodes that were there are as fast or faster.
WALK_FROM = 160
FLOAT = ir.DataType.FLOAT
INT32, BOOL = int(ir.DataType.INT32), int(ir.DataType.BOOL)


def share_masks(model: ir.Model, sites: Iterable[Site]) -> None:
    """Lets masks ask the model's inputs for sizes, not the scores of their layer.

    Nothing then holds on to the scores, and masks that differ by layer in nothing else become one.
    """
    dims = Dims(model)
    wanted: set[ir.Node] = set()
    for site in sites:
        for value in site.inner:
            wanted |= {usage.node for usage in value.uses() if usage.node.op_type == "Shape"}
        assert site.scores is not None
        wanted |= _shapes_before(parts(site.scores.bias))
    builder = _builder(model)
    for node in sorted(wanted, key=lambda node: str(node.name)):
        source = node.inputs[0]
        sizes = None if source is None or node.domain != "" else dims.vector(node.outputs[0])
        if not sizes or None in sizes or node.outputs[0].is_graph_output():
            continue
        pieces = [_size(builder.op, model, size) for size in sizes if size is not None]
        vector = pieces[0] if len(pieces) == 1 else builder.op.Concat(*pieces, axis=0)
        node.outputs[0].replace_all_uses_with(vector)
    _move(builder, model, "sizes")
    passes.RemoveUnusedNodesPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)


def _shapes_before(values: Iterable[ir.Value]) -> set[ir.Node]:
    """The Shape nodes that `values` are computed with."""
    found, seen, waiting = set[ir.Node](), set[ir.Node](), list(values)
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type == "Shape":
            found.add(node)
        else:
            waiting += [value for value in node.inputs if value is not None]
    return found


def _size(op: Any, model: ir.Model, size: Size) -> Any:
    """A size as int64[1]."""
    if isinstance(size, int):
        return op.Constant(value=ir.tensor(np.array([size], np.int64)))
    if isinstance(size, Axis):
        value = next(value for value in model.graph.inputs if value.name == size.name)
        return op.Shape(value, start=size.axis, end=size.axis + 1)
    result = _size(op, model, size.sizes[0])
    for other in size.sizes[1:]:
        result = getattr(op, size.op)(result, _size(op, model, other))
    return result


class Keys:
    """The keys of a site, in the order that each form of it reads.

    `there` is a tensor of the model outside of both: [batch, heads, Tv, dim], or transposed as the
    model has it, where that saves turning it twice.
    """

    def __init__(self, site: Site, dims: Dims, lazy: bool) -> None:
        self.dims = dims
        self.source: Operand | None = None
        self.is_transposed = False
        self.turning: ir.Node | None = None
        self.there: Any = None
        assert site.product is not None
        given = site.product.node.inputs[1]
        plain = site.product.node.op_type == "MatMul" and not site.lead and given is not None
        if not (lazy and plain) or given is None or site.product.query.rank != 4:
            return
        producer = given.producer()
        turns = producer is not None and producer.op_type == "Transpose"
        if len(given.shape or ()) != 4 or site.product.key.added:
            return
        if turns or site.product.key.perm is not None:
            self.source, self.there, self.is_transposed = site.product.key, given, True
            self.turning = producer if turns else None

    def size(self, axis: int) -> Size | None:
        """The size of batch, heads or Tv."""
        return self.dims.axis(self.there, 3 if axis == 2 and self.is_transposed else axis)

    def length(self, op: Any) -> Any:
        """Tv: int64[1]."""
        axis = 3 if self.is_transposed else 2
        return op.Shape(self.there, start=axis, end=axis + 1)

    def turned(self, op: Any) -> Any:
        """[batch, heads, Tv, dim]."""
        if not self.is_transposed or self.source is None:
            return self.there
        tensor = self.source.value
        return tensor if self.source.perm is None else op.Transpose(tensor, perm=self.source.perm)

    def transposed(self, op: Any) -> Any:
        """[batch, heads, dim, Tv]."""
        if not self.is_transposed:
            return op.Transpose(self.there, perm=[0, 1, 3, 2])
        if self.turning is None:
            return self.there
        attribute = self.turning.attributes.get("perm")
        perm = [3, 2, 1, 0] if attribute is None else attribute.as_ints()
        return op.Transpose(self.turning.inputs[0], perm=perm)


class Splicer:
    """Rewrites sites of one model, sharing what they have in common."""

    def __init__(self, model: ir.Model, walk_from: int = WALK_FROM) -> None:
        self.model = model
        self.walk_from = walk_from
        self.dims = Dims(model)
        self.builder = _builder(model)
        self.op: Any = self.builder.op
        self.biases: dict[Expression, Any] = {}
        self.bools: dict[ir.Value, Any] = {}
        self.facts: dict[tuple[Any, ...], tuple[Facts, Any]] = {}
        self.placed: list[ir.Value] = []
        self.lengths: dict[tuple[Size | None, Size | None], Any] = {}

    def rewrite(self, site: Site) -> None:
        """Put the walk in the place of `site`'s nodes."""
        op = self.op
        assert site.product and site.scores and site.sum and site.output is not None
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
        rank = max(rank, bias_rank)
        query, key, value = (self._to_rank(tensor, rank) for tensor in (query, key, value))
        shape = query
        query, key, value = (self._four(tensor, rank) for tensor in (query, key, value))
        keys.there = key
        known = self._known_masks(site.scores, query, keys, value) if rank <= 4 else None
        if known is not None:
            output = self._attend_masked(site, query, keys, value, known)
        else:
            bias = self._bias(site.scores.bias)
            if bias is not None:
                bias = self._bias_to_four(bias, bias_rank, rank, shape)
            output = self._attend_biased(site, query, keys, value, bias)
        width = op.Shape(value, start=3, end=4)
        if value_shape is not None:
            lead = op.Slice(value_shape, [0], [-2])
            length = op.Shape(query, start=2, end=3)
            output = op.Reshape(output, op.Concat(lead, length, width, axis=0))
        elif rank != 4:
            output = op.Reshape(output, op.Concat(op.Slice(op.Shape(shape), [0], [-1]), width, axis=0))
        if site.sum.perm is not None:
            output = op.Transpose(output, perm=site.sum.perm)
        self._take_place(site.output, output)

    def finish(self) -> None:
        """Move what was built into the model, and remove what it replaces."""
        _move(self.builder, self.model, "attention", self.placed)
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

    # The bias

    def _bias(self, expression: Expression) -> Any:
        """The bias of an expression; None where nothing is added."""
        return None if expression == Number(0.0) else self._made(expression)

    def _made(self, expression: Expression) -> Any:
        """The value of an expression, made once."""
        op = self.op
        if isinstance(expression, Known):
            return expression.value
        if expression in self.biases:
            return self.biases[expression]
        if isinstance(expression, Number):
            made = op.Constant(value=ir.tensor(np.array(expression.number, np.float32)))
        elif isinstance(expression, Computed):
            made = getattr(op, expression.op)(*map(self._made, expression.operands))
        else:
            sides = self._made(expression.chosen), self._made(expression.other)
            made = op.Where(self._condition(expression.condition), *sides)
        self.biases[expression] = made
        return made

    def _condition(self, value: ir.Value) -> Any:
        """A condition as a bool: tables of 0 and 1 count as one."""
        if value.dtype == ir.DataType.BOOL:
            return value
        if value not in self.bools:
            self.bools[value] = self.op.Cast(value, to=BOOL)
        return self.bools[value]

    # The walk

    def _attend_biased(self, site: Site, query: Any, keys: Keys, value: Any, bias: Any) -> Any:
        """The walk over a bias that is read at run time, or none."""
        assert site.scores is not None
        op, scores = self.op, site.scores
        fits = self._fits(query, keys, value, bias)
        facts = None
        if bias is not None:
            facts, long = self._facts(scores, query, keys, bias)
            fits = fits if fits is long else op.And(fits, long)
            if scores.faithful is not None:
                seen = op.Greater(_reduce(op, "ReduceMax", bias, 3), HIDDEN_BELOW)
                seen = _reduce(op, "ReduceMin", op.Cast(op.Reshape(seen, [-1]), to=INT32), 0)
                fits = op.And(fits, op.Cast(seen, to=BOOL))
        return self._either(site, fits, query, keys, value, bias, facts)

    def _attend_masked(
        self, site: Site, query: Any, keys: Keys, value: Any, masks: Masks
    ) -> Any:
        """The walk over masks that are known by the way they are made."""
        long = self._long(query, keys)
        facts, bias = self._facts_of_masks(masks, query, keys, long)
        return self._either(site, long, query, keys, value, bias, facts)

    def _either(
        self, site: Site, fits: Any, query: Any, keys: Keys, value: Any, bias: Any, facts: Any
    ) -> Any:
        """The If of one site: the walk, or the nodes that were there in their plainest form."""
        assert site.scores is not None
        op, scores = self.op, site.scores
        number = None if scores.number == 1.0 else scores.number
        some = None if site.zeroed is None else self._some_shown(*site.zeroed)

        def walk(op: Any) -> Any:
            known = facts
            if known is None:
                lengths = op.Shape(query, start=2, end=3), keys.length(op)
                known = bias_facts(op, None, *lengths, walk_block(op, *lengths, alike=True))
            output = bias_walk(op, query, keys.turned(op), value, number, known)[0]
            if site.guarded:
                output = op.Where(op.IsNaN(output), 0.0, output)
            if some is not None:
                output = op.Where(some, output, 0.0)
            return output

        def dense(op: Any) -> Any:
            product = op.MatMul(query, keys.transposed(op))
            if scores.faithful is not None:
                product = self._faithful(op, scores.faithful, product)
            else:
                if number is not None:
                    product = op.Mul(product, number)
                if bias is not None:
                    product = op.Add(product, bias)
            weights = op.Softmax(product, axis=-1)
            if site.guarded:
                weights = op.Where(op.IsNaN(weights), 0.0, weights)
            output = op.MatMul(weights, value)
            return output if some is None else op.Where(some, output, 0.0)

        return op.If(
            fits,
            then_branch=op.builder.subgraph(walk, [], [_tensor("walked", 4)], name="walk"),
            else_branch=op.builder.subgraph(dense, [], [_tensor("dense", 4)], name="dense"),
            _outputs=["attended"],
            _name=f"{site.name}/attention",
        )

    def _some_shown(self, hidden: ir.Value, turned: bool) -> Any:
        """Whether a query sees a key: bool [.., Tq or 1, 1], of rank 4."""
        op = self.op
        shown = self._condition(hidden) if turned else op.Not(self._condition(hidden))
        sizes = self.dims.of(hidden)
        rank = 4 if sizes is None else len(sizes)
        seen = _reduce(op, "ReduceMax", op.Cast(shown, to=INT32), rank - 1, keepdims=1)
        seen = op.Cast(seen, to=BOOL)
        if rank == 3:
            return op.Unsqueeze(seen, [1])
        return op.Unsqueeze(seen, list(range(4 - rank))) if rank < 4 else seen

    def _faithful(self, op: Any, form: Form, product: Any) -> Any:
        """A form as it was written, of a product: for queries that see no key."""
        if isinstance(form, Select):
            chosen = self._faithful(op, form.chosen, product)
            other = self._faithful(op, form.other, product)
            return op.Where(self._condition(form.condition), chosen, other)
        if isinstance(form, Fixed):
            return self._made(form.bias)
        assert isinstance(form, Linear)
        if form.number != 1.0:
            product = op.Mul(product, form.number)
        return product if form.bias == Number(0.0) else op.Add(product, self._made(form.bias))

    def _facts(self, scores: Scores, query: Any, keys: Keys, bias: Any) -> tuple[Facts, Any]:
        """The facts of a bias and whether they were found, for all sites that share it."""
        sizes = self.dims.axis(query, 2), keys.size(2)
        known = (scores.bias, *sizes) if None not in sizes else (scores.bias, query)
        if known not in self.facts:
            op = self.op
            long = self._long(query, keys)
            made: list[Facts] = []

            def found(op: Any) -> Any:
                lengths = op.Shape(query, start=2, end=3), keys.length(op)
                alike = self.dims.axis(bias, 2) == 1
                block = walk_block(op, *lengths, alike=alike)
                made.append(bias_facts(op, bias, *lengths, block))
                return made[0].table, made[0].kept

            def none(op: Any) -> Any:
                table = np.zeros((1, 1, 1, sum(made[0].columns.values())), np.int64)
                return (
                    op.Constant(value=ir.tensor(table)),
                    op.Constant(value=ir.tensor(np.zeros(1, np.int64))),
                )

            table, kept = op.If(
                long,
                then_branch=op.builder.subgraph(found, [], _tables("found"), name="facts"),
                else_branch=op.builder.subgraph(none, [], _tables("none"), name="no_facts"),
                _outputs=["facts", "kept"],
            )
            # The rows of the bias stay outside: an If copies its outputs.
            last = op.Slice(op.Shape(bias), [2], [4])
            rows = op.Reshape(bias, op.Concat([-1], last, axis=0))
            facts = replace(made[0], table=table, kept=kept, bias=rows)
            self.facts[known] = facts, long
        return self.facts[known]

    def _known_masks(
        self, scores: Scores, query: Any, keys: Keys, value: Any
    ) -> Masks | None:
        """The masks of a site, where nothing about it has to be asked at run time."""
        sizes, of_value = self.dims.of(query), self.dims.of(value)
        if scores.faithful is not None or sizes is None or of_value is None:
            return None
        masks = known_masks(scores.bias, self.dims, sizes[2], keys.size(2))
        if masks is None or not equal(keys.size(2), of_value[2]):
            return None
        for axis in (0, 1):
            if not (equal(sizes[axis], keys.size(axis)) and equal(sizes[axis], of_value[axis])):
                return None
        if masks.key_mask is not None:
            batch = self.dims.axis(masks.key_mask, 0)
            if batch != 1 and not equal(batch, sizes[0]):
                return None
        return masks

    def _facts_of_masks(self, masks: Masks, query: Any, keys: Keys, long: Any) -> tuple[Facts, Any]:
        """The facts of known masks where sequences are long, their bias where they are short."""
        known = (masks, self.dims.axis(query, 2), keys.size(2))
        if known in self.facts:
            return self.facts[known]
        made: list[Facts] = []

        def key_mask(op: Any) -> Any:
            """[batch or 1, Tv]"""
            sizes = self.dims.of(masks.key_mask)  # pyright: ignore[reportArgumentType]
            assert sizes is not None
            shown = self._condition(masks.key_mask)  # pyright: ignore[reportArgumentType]
            shown = op.Squeeze(shown, list(range(1, len(sizes) - 1)))
            return op.Not(shown) if masks.turned else shown

        def found(op: Any) -> Any:
            lengths = op.Shape(query, start=2, end=3), keys.length(op)
            shown = None if masks.key_mask is None else key_mask(op)
            facts = bias_facts(
                op,
                None,
                *lengths,
                walk_block(op, *lengths, alike=not masks.causal),
                causal=masks.causal,
                key_mask=shown,
                penalty=masks.penalty,
            )
            made.append(facts)
            rest = [part for part in (facts.triangle, facts.mask) if part is not None]
            return facts.table, facts.kept, _zeros(op, 1, 1, 1, 1), *rest

        def short(op: Any) -> Any:
            shown = None
            if masks.causal:
                rows, columns = (
                    op.Range(0, op.Squeeze(length, [0]), 1)
                    for length in (op.Shape(query, start=2, end=3), keys.length(op))
                )
                shown = op.LessOrEqual(columns, op.Unsqueeze(rows, [1]))
                shown = op.Unsqueeze(shown, [0, 1])
            if masks.key_mask is not None:
                by_key = op.Unsqueeze(key_mask(op), [1, 2])
                shown = by_key if shown is None else op.And(shown, by_key)
            bias = op.Where(shown, 0.0, op.Constant(value=ir.tensor(np.float32(masks.penalty))))
            width = sum(made[0].columns.values())
            table = op.Constant(value=ir.tensor(np.zeros((1, 1, 1, width), np.int64)))
            kept = op.Constant(value=ir.tensor(np.zeros(1, np.int64)))
            rest = [part for part in (made[0].triangle, made[0].mask) if part is not None]
            return table, kept, bias, *(_zeros(op, 1, 1) for _ in rest)

        def outputs(name: str) -> list[ir.Value]:
            matrices = [_tensor(f"{name}_bias", 4)]
            matrices += [_tensor(f"{name}_triangle", 2)] if masks.causal else []
            matrices += [_tensor(f"{name}_mask", 2)] if masks.key_mask is not None else []
            return [*_tables(name), *matrices]

        op = self.op
        names = ["facts", "kept", "short_bias", "triangle", "key_mask"]
        count = 3 + masks.causal + (masks.key_mask is not None)
        table, kept, bias, *rest = op.If(
            long,
            then_branch=op.builder.subgraph(found, [], outputs("found"), name="facts"),
            else_branch=op.builder.subgraph(short, [], outputs("short"), name="short"),
            _outputs=names[:count],
        )
        triangle = rest.pop(0) if masks.causal else None
        mask = rest.pop(0) if masks.key_mask is not None else None
        facts = replace(made[0], table=table, kept=kept, triangle=triangle, mask=mask)
        self.facts[known] = facts, bias
        return self.facts[known]

    def _long(self, query: Any, keys: Keys) -> Any:
        """Whether there are enough queries and keys for the walk to gain: bool[1]."""
        op = self.op
        sizes = self.dims.axis(query, 2), keys.size(2)
        if None not in sizes and sizes in self.lengths:
            return self.lengths[sizes]
        shortest = op.Shape(query, start=2, end=3)
        if not equal(*sizes):
            shortest = op.Min(shortest, keys.length(op))
        long = op.GreaterOrEqual(shortest, [self.walk_from])
        self.lengths[sizes] = long
        return long

    def _fits(self, query: Any, keys: Keys, value: Any, bias: Any) -> Any:
        """Whether the walk can take these tensors: long, of one batch, the bias's axes whole or 1.

        What is known of the sizes is not asked.
        """
        op, dims = self.op, self.dims
        of_query, of_value = dims.of(query), dims.of(value)
        asked: list[Any] = []
        wanted: list[Any] = []
        for axis in (0, 1):
            size = None if of_query is None else of_query[axis]
            if not equal(size, keys.size(axis)):
                asked.append(op.Shape(keys.there, start=axis, end=axis + 1))
                wanted.append(op.Shape(query, start=axis, end=axis + 1))
            if of_value is None or not equal(size, of_value[axis]):
                asked.append(op.Shape(value, start=axis, end=axis + 1))
                wanted.append(op.Shape(query, start=axis, end=axis + 1))
        if of_value is None or not equal(keys.size(2), of_value[2]):
            asked.append(op.Shape(value, start=2, end=3))
            wanted.append(keys.length(op))
        result = self._long(query, keys)
        if asked:
            same = op.Equal(op.Concat(*asked, axis=0), op.Concat(*wanted, axis=0))
            result = op.And(result, _all(op, same))
        if bias is None:
            return result
        sizes = None if of_query is None else (*of_query[:3], keys.size(2))
        of_bias = dims.of(bias)
        if sizes and of_bias:
            places = list(zip(of_bias, sizes, strict=True))
            if all(size == 1 or equal(size, other) for size, other in places[:3]) and equal(
                *places[3]
            ):
                return result
        whole = op.Concat(op.Shape(query, start=0, end=3), keys.length(op), axis=0)
        shape = op.Shape(bias)
        lone = op.Equal(shape, op.Constant(value=ir.tensor(np.array([1, 1, 1, -1], np.int64))))
        return op.And(result, _all(op, op.Or(lone, op.Equal(shape, whole))))

    def _take_place(self, old: ir.Value, new: ir.Value) -> None:
        """`new` wherever `old` was, under its name where it is an output of the model."""
        name = old.name
        new.shape, new.dtype = old.shape, old.dtype or FLOAT
        outputs = self.model.graph.outputs
        for index, value in enumerate(outputs):
            if value is old:
                outputs[index] = new
        old.replace_all_uses_with(new)
        old.name = f"{name}_before"
        new.name = name
        self.placed.append(new)


LAST = 2**31 - 1


def _builder(model: ir.Model) -> GraphBuilder:
    graph = ir.Graph([], [], nodes=[], opset_imports=dict(model.graph.opset_imports), name="new")
    return GraphBuilder(graph)


def _move(
    builder: GraphBuilder, model: ir.Model, prefix: str, named: Iterable[ir.Value] = ()
) -> None:
    """What was built into the model, under names that it does not have."""
    graph, built = model.graph, builder.graph
    used = {value.name for value in graph.inputs} | set(graph.initializers)
    for node in ir.traversal.RecursiveGraphIterator(graph):
        used |= {value.name for value in node.outputs} | {node.name}
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                used |= {value.name for value in attribute.as_graph().inputs}
    kept = {*graph.outputs, *named}

    def fresh(name: str) -> str:
        candidate, count = name, 1
        while candidate in used:
            count += 1
            candidate = f"{name}_{count}"
        used.add(candidate)
        return candidate

    def rename(nodes: Iterable[ir.Node]) -> None:
        for node in nodes:
            name = node.name or ""
            plain = f"{prefix}/{node.op_type}"
            node.name = fresh(name if name.endswith("/attention") else plain)
            node.metadata_props.clear()
            for output in node.outputs:
                if output not in kept:
                    output.name = fresh(f"{prefix}/{node.op_type}_result")
                output.metadata_props.clear()
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    body = attribute.as_graph()
                    for value in body.inputs:
                        value.name = fresh(f"{prefix}/{value.name}")
                    rename(body)

    for value in list(built.initializers.values()):
        built.initializers.pop(str(value.name))
        value.name = fresh(f"{prefix}/{str(value.name).rsplit('/', 1)[-1]}")
        graph.register_initializer(value)
    nodes = list(built)
    rename(nodes)
    built.remove(nodes)
    graph.extend(nodes)
    graph.sort()


def _rank(tensor: Any, default: int) -> int:
    return default if tensor.shape is None else len(tensor.shape)


def _tensor(name: str, rank: int) -> ir.Value:
    shape = ir.Shape([None] * rank)
    return ir.Value(name=name, shape=shape, type=ir.TensorType(FLOAT))


def _zeros(op: Any, *dims: int) -> Any:
    return op.Constant(value=ir.tensor(np.zeros(dims, np.float32)))


def _tables(name: str) -> list[ir.Value]:
    kind = ir.TensorType(ir.DataType.INT64)
    return [
        ir.Value(name=f"{name}_table", shape=ir.Shape([None] * 4), type=kind),
        ir.Value(name=f"{name}_kept", shape=ir.Shape([None]), type=kind),
    ]


def _all(op: Any, condition: Any) -> Any:
    return op.Cast(_reduce(op, "ReduceMin", op.Cast(condition, to=INT32), 0), to=BOOL)


def _reduce(op: Any, kind: str, tensor: Any, axis: int, keepdims: int = 0) -> Any:
    if op.version < 18:
        return getattr(op, kind)(tensor, axes=[axis], keepdims=keepdims)
    return getattr(op, kind)(tensor, [axis], keepdims=keepdims)

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

from ..graph.schedules.bias_walk import HIDDEN_BELOW, Facts, bias_facts, bias_walk
from .dims import Axis, Dims, Made, Size, equal
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

# Fewer queries or keys than this, and the nodes that were there are as fast or faster.
WALK_FROM = 160
# Up to this many queries are one block; more are cut into equal blocks of about BLOCK.
ONE_BLOCK, BLOCK = 256, 128
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


class Splicer:
    """Rewrites sites of one model, sharing what they have in common."""

    def __init__(self, model: ir.Model, walk_from: int = WALK_FROM) -> None:
        self.model = model
        self.walk_from = walk_from
        self.dims = Dims(model)
        self.builder = _builder(model)
        self.op: Any = self.builder.op
        self.biases: dict[Expression, tuple[Any, int]] = {}
        self.facts: dict[tuple[Any, ...], tuple[Facts, Any]] = {}
        self.placed: list[ir.Value] = []
        self.lengths: dict[tuple[Size | None, Size | None], Any] = {}

    def rewrite(self, site: Site) -> None:
        """Put the walk in the place of `site`'s nodes."""
        op = self.op
        assert site.product and site.scores and site.sum and site.output is not None
        query, key = self._turned(site.product.query), self._turned(site.product.key)
        value = self._turned(site.sum.value)
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
        bias, bias_rank = self._bias(site.scores.bias)
        rank = max(rank, bias_rank)
        query, key, value = (self._to_rank(tensor, rank) for tensor in (query, key, value))
        shape = query
        query, key, value = (self._four(tensor, rank) for tensor in (query, key, value))
        if bias is not None:
            bias = self._bias_to_four(bias, bias_rank, rank, shape)
        output = self._attend(site, query, key, value, bias)
        if site.guarded:
            output = op.Where(op.IsNaN(output), 0.0, output)
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

    def _bias(self, expression: Expression) -> tuple[Any, int]:
        """The bias of an expression and its rank; None where nothing is added."""
        if isinstance(expression, Number) and expression.number == 0.0:
            return None, 0
        if expression not in self.biases:
            self.biases[expression] = self._made(expression)
        return self.biases[expression]

    def _made(self, expression: Expression) -> tuple[Any, int]:
        op = self.op
        if isinstance(expression, Number):
            return op.Constant(value=ir.tensor(np.array(expression.number, np.float32))), 0
        if isinstance(expression, Known):
            sizes = self.dims.of(expression.value)
            assert sizes is not None
            return expression.value, len(sizes)
        if isinstance(expression, Computed):
            made = [self._part(operand) for operand in expression.operands]
            return getattr(op, expression.op)(*(v for v, _ in made)), max(r for _, r in made)
        made = [self._part(Known(expression.condition))]
        made += [self._part(expression.chosen), self._part(expression.other)]
        return op.Where(*(v for v, _ in made)), max(r for _, r in made)

    def _part(self, expression: Expression) -> tuple[Any, int]:
        if expression not in self.biases:
            self.biases[expression] = self._made(expression)
        return self.biases[expression]

    # The walk

    def _attend(self, site: Site, query: Any, key: Any, value: Any, bias: Any) -> Any:
        assert site.scores is not None
        op, scores = self.op, site.scores
        number = None if scores.number == 1.0 else scores.number
        fits = self._fits(query, key, value, bias)
        facts = None
        if bias is not None:
            facts, long = self._facts(scores, query, key, bias)
            fits = op.And(fits, long)
            if scores.faithful is not None:
                seen = op.Greater(_reduce(op, "ReduceMax", bias, 3), HIDDEN_BELOW)
                seen = _reduce(op, "ReduceMin", op.Cast(op.Reshape(seen, [-1]), to=INT32), 0)
                fits = op.And(fits, op.Cast(seen, to=BOOL))

        def walk(op: Any) -> Any:
            known = facts
            if known is None:
                lengths = op.Shape(query, start=2, end=3), op.Shape(key, start=2, end=3)
                known = bias_facts(op, None, *lengths, _block(op, lengths[0]))
            return bias_walk(op, query, key, value, number, known)[0]

        def dense(op: Any) -> Any:
            product = op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2]))
            if scores.faithful is not None:
                product = self._faithful(op, scores.faithful, product)
            else:
                if number is not None:
                    product = op.Mul(product, number)
                if bias is not None:
                    product = op.Add(product, bias)
            return op.MatMul(op.Softmax(product, axis=-1), value)

        return op.If(
            fits,
            then_branch=op.builder.subgraph(walk, [], [_tensor("walked", 4)], name="walk"),
            else_branch=op.builder.subgraph(dense, [], [_tensor("dense", 4)], name="dense"),
            _outputs=["attended"],
            _name=f"{site.name}/attention",
        )

    def _faithful(self, op: Any, form: Form, product: Any) -> Any:
        """A form as it was written, of a product: for queries that see no key."""
        if isinstance(form, Select):
            chosen = self._faithful(op, form.chosen, product)
            other = self._faithful(op, form.other, product)
            return op.Where(form.condition, chosen, other)
        bias, _ = self._part(form.bias)
        if isinstance(form, Fixed):
            return bias
        assert isinstance(form, Linear)
        if form.number != 1.0:
            product = op.Mul(product, form.number)
        return product if form.bias == Number(0.0) else op.Add(product, bias)

    def _facts(self, scores: Scores, query: Any, key: Any, bias: Any) -> tuple[Facts, Any]:
        """The facts of a bias and whether they were found, for all sites that share it."""
        sizes = self.dims.axis(query, 2), self.dims.axis(key, 2)
        known = (scores.bias, *sizes) if None not in sizes else (scores.bias, query, key)
        if known not in self.facts:
            op = self.op
            long = self._long(query, key)
            made: list[Facts] = []

            def found(op: Any) -> Any:
                lengths = op.Shape(query, start=2, end=3), op.Shape(key, start=2, end=3)
                made.append(bias_facts(op, bias, *lengths, _block(op, lengths[0])))
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

    def _long(self, query: Any, key: Any) -> Any:
        op = self.op
        sizes = self.dims.axis(query, 2), self.dims.axis(key, 2)
        if None not in sizes and sizes in self.lengths:
            return self.lengths[sizes]
        lengths = op.Concat(
            op.Shape(query, start=2, end=3), op.Shape(key, start=2, end=3), axis=0
        )
        long = _all(op, op.GreaterOrEqual(lengths, [self.walk_from] * 2))
        self.lengths[sizes] = long
        return long

    def _fits(self, query: Any, key: Any, value: Any, bias: Any) -> Any:
        """Whether the walk can take these tensors: long, of one batch, the bias's axes whole or 1."""
        op, dims = self.op, self.dims
        of_query, of_key, of_value = (dims.of(tensor) for tensor in (query, key, value))
        asked: list[Any] = []
        wanted: list[Any] = []

        def ask(tensor: Any, axis: int, like: Any, like_axis: int) -> None:
            asked.append(op.Shape(tensor, start=axis, end=axis + 1))
            wanted.append(op.Shape(like, start=like_axis, end=like_axis + 1))

        for tensor, sizes in ((key, of_key), (value, of_value)):
            for axis in (0, 1):
                if not (sizes and of_query and equal(sizes[axis], of_query[axis])):
                    ask(tensor, axis, query, axis)
        if not (of_key and of_value and equal(of_key[2], of_value[2])):
            ask(value, 2, key, 2)
        result = self._long(query, key)
        if asked:
            same = op.Equal(op.Concat(*asked, axis=0), op.Concat(*wanted, axis=0))
            result = op.And(result, _all(op, same))
        if bias is None:
            return result
        of_bias = dims.of(bias)
        known = of_bias is not None and of_query is not None and of_key is not None
        if known and all(
            size == 1 or equal(size, other)
            for size, other in zip(of_bias[:3], of_query[:3], strict=True)  # pyright: ignore
        ) and equal(of_bias[3], of_key[2]):  # pyright: ignore
            return result
        whole = op.Concat(
            op.Shape(query, start=0, end=3), op.Shape(key, start=2, end=3), axis=0
        )
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


def _tables(name: str) -> list[ir.Value]:
    kind = ir.TensorType(ir.DataType.INT64)
    return [
        ir.Value(name=f"{name}_table", shape=ir.Shape([None] * 4), type=kind),
        ir.Value(name=f"{name}_kept", shape=ir.Shape([None]), type=kind),
    ]


def _all(op: Any, condition: Any) -> Any:
    return op.Cast(_reduce(op, "ReduceMin", op.Cast(condition, to=INT32), 0), to=BOOL)


def _reduce(op: Any, kind: str, tensor: Any, axis: int) -> Any:
    if op.version < 18:
        return getattr(op, kind)(tensor, axes=[axis], keepdims=0)
    return getattr(op, kind)(tensor, [axis], keepdims=0)


def _block(op: Any, length: Any) -> Any:
    """How many queries make a block: all of a short sequence, or equal parts of about BLOCK."""
    last = op.Sub(length, [1])
    wanted = op.Where(op.Greater(length, [ONE_BLOCK]), [BLOCK], [2**30])
    count = op.Add(op.Div(last, wanted), [1])
    return op.Add(op.Div(last, count), [1])


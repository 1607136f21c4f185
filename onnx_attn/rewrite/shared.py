"""What the sites of one model have in common: biases, conditions, and whether they are long."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ..graph.nodes import one_number
from .dims import Dims, Size, equal
from .expressions import ZERO, Computed, Expression, Known, Number
from .keys import Keys

FLOAT, BOOL = ir.DataType.FLOAT, int(ir.DataType.BOOL)


class Shared:
    """Values of a model that several sites read, each made once."""

    def __init__(self, op: Any, dims: Dims, walk_from: int) -> None:
        self.op, self.dims, self.walk_from = op, dims, walk_from
        self.biases: dict[Expression, Any] = {}
        self.bools: dict[ir.Value, Any] = {}
        self.lengths: dict[tuple[Size | None, Size | None], Any] = {}

    def bias(self, expression: Expression) -> Any:
        """The value of a bias; None where nothing is added."""
        return None if expression == ZERO else self.made(expression)

    def made(self, expression: Expression) -> Any:
        """The value of an expression, made once."""
        op = self.op
        if isinstance(expression, Known):
            return expression.value
        if expression in self.biases:
            return self.biases[expression]
        if isinstance(expression, Number):
            made = one_number(op, expression.number, FLOAT)
        elif isinstance(expression, Computed):
            made = getattr(op, expression.op)(*map(self.made, expression.operands))
        else:
            sides = self.made(expression.chosen), self.made(expression.other)
            made = op.Where(self.condition(expression.condition), *sides)
        self.biases[expression] = made
        return made

    def condition(self, value: ir.Value) -> Any:
        """A condition as a bool: tables of 0 and 1 count as one."""
        if value.dtype == ir.DataType.BOOL:
            return value
        if value not in self.bools:
            self.bools[value] = self.op.Cast(value, to=BOOL)
        return self.bools[value]

    def long(self, query: Any, keys: Keys) -> Any:
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

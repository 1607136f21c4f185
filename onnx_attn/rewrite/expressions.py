"""Numbers, values of the model and conditions between them: what a bias is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from .normal import constant

LARGEST_TABLE = 2**24  # elements of a stored mask that are looked at


@dataclass(frozen=True)
class Number:
    """A known number."""

    number: float


@dataclass(frozen=True)
class Known:
    """A value of the model that does not depend on the product."""

    value: ir.Value


@dataclass(frozen=True)
class Computed:
    """An operator of expressions: Add, Mul, Div, Neg, Max."""

    op: str
    operands: tuple[Expression, ...]


@dataclass(frozen=True)
class Choice:
    """`chosen` where the condition is True, `other` elsewhere."""

    condition: ir.Value
    chosen: Expression
    other: Expression


Expression = Number | Known | Computed | Choice
ZERO = Number(0.0)


def negated(condition: ir.Value) -> tuple[ir.Value, bool]:
    """The value that a chain of Not, `1 - x` and casts ends in; whether the chain negates it.

    Numbers that are 1 where a bool is True count as that bool, and so do tables of 0 and 1.
    """
    turned = False
    while (node := condition.producer()) is not None and node.domain == "":
        inputs = [value for value in node.inputs if value is not None]
        if node.op_type == "Not":
            turned = not turned
            condition = inputs[0]
        elif node.op_type == "And" and len(inputs) == 2:
            # And with what is True everywhere, as Keras begins its masks.
            others = [value for value in inputs if uniform(value) != 1.0]
            if len(others) != 1:
                break
            condition = others[0]
        elif node.op_type == "Sub" and uniform(inputs[0]) == 1.0 and truth_of(inputs[1]):
            turned = not turned
            condition = inputs[1]
        elif node.op_type == "Cast" and truth_of(inputs[0]):
            condition = inputs[0]
        else:
            break
    return condition, turned


def truth_of(value: ir.Value) -> bool:
    """Whether a value is a bool, or a number that is 1 where a bool is True and 0 elsewhere."""
    if value.dtype == ir.DataType.BOOL:
        return True
    node = value.producer()
    if node is None or node.domain != "" or not node.inputs or node.inputs[0] is None:
        known = constant(value)
        if known is None or not 1 < known.size <= LARGEST_TABLE:
            return False
        return bool(np.isin(known, (0, 1)).all())
    if node.op_type in ("Cast", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Trilu"):
        return truth_of(node.inputs[0])
    if node.op_type == "Sub" and node.inputs[1] is not None:
        return uniform(node.inputs[0]) == 1.0 and truth_of(node.inputs[1])
    return False


def uniform(value: ir.Value) -> float | None:
    """The one number that a value holds everywhere, whatever its shape; None if there is none."""
    node = value.producer()
    if node is not None and node.domain == "":
        if node.op_type in ("Expand", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Tile"):
            source = node.inputs[0]
            if source is None or (node.op_type == "Cast" and not _wide(value)):
                return None
            return uniform(source)
        if node.op_type == "ConstantOfShape":
            attribute = node.attributes.get("value")
            return 0.0 if attribute is None else float(attribute.as_tensor().numpy().reshape(-1)[0])
    known = constant(value)
    if known is None or known.size == 0 or known.dtype.kind not in "fiub":
        return None
    first = known.reshape(-1)[0]
    return float(first) if known.size == 1 or bool((known == first).all()) else None


def _wide(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT64)


def add(left: Expression, right: Expression) -> Expression:
    """left + right."""
    if isinstance(left, Number) and isinstance(right, Number):
        with np.errstate(over="ignore"):
            return Number(float(np.float32(left.number) + np.float32(right.number)))
    if is_zero(left):
        return right
    if is_zero(right):
        return left
    return Computed("Add", (left, right))


def times(left: Expression, right: Expression) -> Expression:
    """left * right."""
    if isinstance(left, Number) and isinstance(right, Number):
        return Number(float(np.float32(left.number) * np.float32(right.number)))
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Number) and one.number == 1.0:
            return other
    if is_zero(left) or is_zero(right):
        return ZERO
    return Computed("Mul", (left, right))


def divided(left: Expression, right: Number) -> Expression:
    """left / right."""
    if is_zero(left) or right.number == 1.0:
        return left
    if isinstance(left, Number):
        return Number(float(np.float32(left.number) / np.float32(right.number)))
    return Computed("Div", (left, right))


def numbers_of(expression: Expression) -> list[float] | None:
    """All that an expression may be; None where it is no choice between known numbers."""
    if isinstance(expression, Number):
        return [expression.number]
    if isinstance(expression, Choice):
        sides = numbers_of(expression.chosen), numbers_of(expression.other)
        return None if sides[0] is None or sides[1] is None else [*sides[0], *sides[1]]
    if isinstance(expression, Computed) and expression.op == "Add":
        sides = numbers_of(expression.operands[0]), numbers_of(expression.operands[1])
        if sides[0] is not None and sides[1] is not None:
            sums = (add(Number(a), Number(b)) for a in sides[0] for b in sides[1])
            return [total.number for total in sums if isinstance(total, Number)]
    return None


def largest(left: Expression, right: Expression) -> Expression:
    """The larger of two."""
    if isinstance(left, Number) and isinstance(right, Number):
        return Number(max(left.number, right.number))
    return Computed("Max", (left, right))


def minus(expression: Expression) -> Expression:
    """-expression."""
    if isinstance(expression, Number):
        return Number(-expression.number)
    if isinstance(expression, Choice):
        return replace(expression, chosen=minus(expression.chosen), other=minus(expression.other))
    return Computed("Neg", (expression,))


def is_zero(expression: Expression) -> bool:
    """Whether nothing is added."""
    return isinstance(expression, Number) and expression.number == 0.0


def expression(value: ir.Value) -> Expression:
    """A value that does not depend on the product."""
    number = uniform(value)
    if number is not None:
        return Number(number)
    node = value.producer()
    if node is None or node.domain != "" or None in node.inputs:
        return Known(value)
    inputs = [v for v in node.inputs if v is not None]
    if node.op_type == "Where":
        numbers = [uniform(side) for side in inputs[1:]]
        if None not in numbers:
            chosen, other = (Number(n) for n in numbers if n is not None)
            return _choice(inputs[0], chosen, other)
    if node.op_type == "Mul":
        # A number where a bool cast to float is 1, as files without Where write a mask.
        for side, other in (inputs, inputs[::-1]):
            number = uniform(side)
            if number is not None and np.isfinite(number) and truth_of(other):
                return _choice(other, Number(number), ZERO)
    return Known(value)


def _choice(condition: ir.Value, chosen: Expression, other: Expression) -> Expression:
    source, turned = negated(condition)
    return Choice(source, other, chosen) if turned else Choice(source, chosen, other)


def assume(given: Expression, condition: ir.Value, truth: bool) -> Expression:
    """`given` where `condition` is known to be `truth`."""
    if isinstance(given, Choice):
        if given.condition is condition:
            return assume(given.chosen if truth else given.other, condition, truth)
        return given
    if isinstance(given, Computed):
        parts = tuple(assume(part, condition, truth) for part in given.operands)
        if given.op == "Add":
            return add(*parts)
        if given.op == "Mul":
            return times(*parts)
        if given.op == "Neg":
            return minus(*parts)
        if given.op == "Max":
            return largest(*parts)
        left, right = parts
        return divided(left, right) if isinstance(right, Number) else Computed("Div", parts)
    if not isinstance(given, Known):
        return given
    node = given.value.producer()
    if truth_of(given.value):
        source, turned = negated(given.value)
        return Number(float(truth != turned)) if source is condition else given
    if node is None or node.domain != "":
        return given
    if node.op_type in ("Mul", "Add") and None not in node.inputs:
        left, right = (expression(v) for v in node.inputs if v is not None)
        parts = assume(left, condition, truth), assume(right, condition, truth)
        if parts == (left, right):
            return given
        return times(*parts) if node.op_type == "Mul" else add(*parts)
    if node.op_type == "Where" and None not in node.inputs:
        decides, chosen, other = (v for v in node.inputs if v is not None)
        source, turned = negated(decides)
        if source is condition:
            return expression(chosen if truth != turned else other)
    return given

"""What lies between a product and its Softmax, read as `scale * product + bias`.

The product is followed through elementwise operators as a form: `Linear` where it is scaled and
added to, `Fixed` where a mask puts a number in its place, `Select` where a condition decides
between two forms. Every spelling of a mask ends in one of them, and the bias is what the form
makes of a product of zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from .normal import constant

# exp(-9000) is 0 beside any weight that matters: numbers below hide a key.
HIDDEN_BELOW = -9000.0
LARGEST_TABLE = 2**24  # elements of a stored mask that are looked at
LOWEST = float(np.finfo(np.float32).min)


class Unreadable(Exception):
    """Why a site is left alone."""


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


@dataclass(frozen=True)
class Factor:
    """The product is multiplied (or divided) by a value of the model."""

    value: ir.Value
    divides: bool = False


@dataclass(frozen=True)
class Linear:
    """number * factors * product + bias."""

    number: float = 1.0
    factors: tuple[Factor, ...] = ()
    bias: Expression = ZERO


@dataclass(frozen=True)
class Fixed:
    """A number in the product's place."""

    bias: Expression


@dataclass(frozen=True)
class Select:
    """One form where the condition is True, another elsewhere."""

    condition: ir.Value
    chosen: Form
    other: Form


Form = Linear | Fixed | Select


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
        elif node.op_type == "Sub" and uniform(inputs[0]) == 1.0 and _truth(inputs[1]):
            turned = not turned
            condition = inputs[1]
        elif node.op_type == "Cast" and _truth(inputs[0]):
            condition = inputs[0]
        else:
            break
    return condition, turned


def _truth(value: ir.Value) -> bool:
    """Whether a value is a bool, or a number that is 1 where a bool is True and 0 elsewhere."""
    if value.dtype == ir.DataType.BOOL:
        return True
    node = value.producer()
    if node is None or node.domain != "" or not node.inputs or node.inputs[0] is None:
        known = constant(value)
        binary = known is not None and known.size > 1 and known.size <= LARGEST_TABLE
        return binary and bool(np.isin(known, (0, 1)).all())
    if node.op_type in ("Cast", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Trilu"):
        return _truth(node.inputs[0])
    if node.op_type == "Sub" and node.inputs[1] is not None:
        return uniform(node.inputs[0]) == 1.0 and _truth(node.inputs[1])
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
    if _is_zero(left):
        return right
    if _is_zero(right):
        return left
    return Computed("Add", (left, right))


def times(left: Expression, right: Expression) -> Expression:
    """left * right."""
    if isinstance(left, Number) and isinstance(right, Number):
        return Number(float(np.float32(left.number) * np.float32(right.number)))
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Number) and one.number == 1.0:
            return other
    if _is_zero(left) or _is_zero(right):
        return ZERO
    return Computed("Mul", (left, right))


def minus(expression: Expression) -> Expression:
    """-expression."""
    if isinstance(expression, Number):
        return Number(-expression.number)
    if isinstance(expression, Choice):
        return replace(
            expression, chosen=minus(expression.chosen), other=minus(expression.other)
        )
    return Computed("Neg", (expression,))


def _is_zero(expression: Expression) -> bool:
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
            if number is not None and np.isfinite(number) and _truth(other):
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
        return minus(*parts) if given.op == "Neg" else replace(given, operands=parts)
    if not isinstance(given, Known):
        return given
    node = given.value.producer()
    if _truth(given.value):
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


def restrict(form: Form, condition: ir.Value, truth: bool) -> Form:
    """`form` where `condition` is known to be `truth`."""
    if isinstance(form, Select):
        if form.condition is condition:
            return restrict(form.chosen if truth else form.other, condition, truth)
        return Select(
            form.condition,
            restrict(form.chosen, condition, truth),
            restrict(form.other, condition, truth),
        )
    return replace(form, bias=assume(form.bias, condition, truth))


def shifted(form: Form, by: Expression) -> Form:
    """form + by, `by` not depending on the product."""
    if isinstance(form, Select):
        return Select(
            form.condition,
            shifted(form.chosen, assume(by, form.condition, True)),
            shifted(form.other, assume(by, form.condition, False)),
        )
    return replace(form, bias=add(form.bias, by))


def together(left: Form, right: Form) -> Form:
    """left + right, both depending on the product."""
    if isinstance(left, Select):
        return Select(
            left.condition,
            together(left.chosen, restrict(right, left.condition, True)),
            together(left.other, restrict(right, left.condition, False)),
        )
    if isinstance(right, Select):
        return together(right, left)
    bias = add(left.bias, right.bias)
    if isinstance(left, Fixed) and isinstance(right, Fixed):
        return Fixed(bias)
    if isinstance(left, Fixed) or isinstance(right, Fixed):
        linear = right if isinstance(left, Fixed) else left
        return replace(linear, bias=bias)
    if left.factors != right.factors:
        raise Unreadable("two differently scaled copies of the scores are added")
    return replace(left, number=left.number + right.number, bias=bias)


def scaled(form: Form, by: ir.Value, divides: bool = False) -> Form:
    """form * by, or form / by; `by` does not depend on the product."""
    if isinstance(form, Select):
        return Select(form.condition, scaled(form.chosen, by, divides), scaled(form.other, by, divides))
    if not divides and uniform(by) is None and _truth(by):
        source, turned = negated(by)
        zero = Fixed(ZERO)
        kept = restrict(form, source, not turned)
        return Select(source, zero, kept) if turned else Select(source, kept, zero)
    operator = "Div" if divides else "Mul"
    number = uniform(by)
    if number == 0.0 and divides:
        raise Unreadable("the scores are divided by zero")
    if number is not None:
        factor = Number(1.0 / number) if divides else Number(number)
        bias = form.bias
        if not _is_zero(bias):
            bias = Computed("Div", (bias, Number(number))) if divides else times(bias, factor)
        if isinstance(form, Fixed):
            return Fixed(bias)
        grown = np.float32(form.number) * np.float32(factor.number)
        return replace(form, number=float(grown), bias=bias)
    if not _per_query(by):
        raise Unreadable(
            f"the scores are multiplied by {by.name!r}, which is no scalar and no number a query"
        )
    bias = form.bias if _is_zero(form.bias) else Computed(operator, (form.bias, Known(by)))
    if isinstance(form, Fixed):
        return Fixed(bias)
    return replace(form, factors=(*form.factors, Factor(by, divides)), bias=bias)


def _per_query(value: ir.Value) -> bool:
    """Whether a value is the same for all keys: its last dim is 1."""
    if value.shape is None:
        return False
    return len(value.shape) == 0 or value.shape[-1] == 1


def lifted(form: Form, lowest: float) -> Form:
    """max(form, lowest), for a number below all scores."""
    if isinstance(form, Select):
        return Select(form.condition, lifted(form.chosen, lowest), lifted(form.other, lowest))
    bias = form.bias
    if isinstance(bias, Number):
        return replace(form, bias=Number(max(bias.number, lowest)))
    return replace(form, bias=Computed("Max", (bias, Number(lowest))))


@dataclass(frozen=True)
class Scores:
    """scale * product + bias as read from a form.

    faithful: the form itself where a query that sees no key needs it, because hidden scores are
    replaced in one place and added to in another by numbers that do not swallow the scores.
    """

    number: float
    factors: tuple[Factor, ...]
    bias: Expression
    faithful: Form | None


def read(form: Form) -> Scores:
    """The scale and bias of a form. Raises Unreadable where there is no such form."""
    linears: list[Linear] = []
    fixed: list[float] = []
    added: list[Expression] = []

    def visit(part: Form) -> None:
        if isinstance(part, Select):
            visit(part.chosen)
            visit(part.other)
        elif isinstance(part, Linear):
            linears.append(part)
            added.append(part.bias)
        else:
            bias = part.bias
            if not isinstance(bias, Number):
                raise Unreadable("a mask replaces scores by numbers that are not known beforehand")
            if not bias.number < HIDDEN_BELOW:
                raise Unreadable(f"a mask replaces scores by {bias.number:g}, which hides nothing")
            fixed.append(bias.number)

    visit(form)
    if not linears:
        raise Unreadable("the scores do not reach the Softmax")
    first = linears[0]
    if any((part.number, part.factors) != (first.number, first.factors) for part in linears):
        raise Unreadable("a mask decides how the scores are scaled")
    # s - 1e9 still tells scores apart, -1e9 in its place does not: a number in the scores' place
    # is made so large that adding a score to it changes nothing.
    weak = any(np.isfinite(number) and number > -1e29 for number in fixed)
    mixed = weak and any(not _is_zero(bias) for bias in added)
    bias = _bias(form, grow=not mixed)
    return Scores(first.number, first.factors, bias, form if mixed else None)


def _bias(form: Form, grow: bool) -> Expression:
    if isinstance(form, Select):
        chosen, other = _bias(form.chosen, grow), _bias(form.other, grow)
        return chosen if chosen == other else Choice(form.condition, chosen, other)
    if isinstance(form, Fixed) and grow and isinstance(form.bias, Number):
        number = form.bias.number
        return Number(max(number * 2.0**66, LOWEST)) if np.isfinite(number) else form.bias
    return form.bias


def parts(given: Any) -> list[ir.Value]:
    """The model's values that an expression or a form reads."""
    if isinstance(given, Known):
        return [given.value]
    if isinstance(given, Computed):
        return [value for operand in given.operands for value in parts(operand)]
    if isinstance(given, (Choice, Select)):
        return [given.condition, *parts(given.chosen), *parts(given.other)]
    if isinstance(given, (Linear, Fixed)):
        return parts(given.bias)
    return []

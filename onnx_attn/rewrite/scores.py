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

from ..graph.schedules.bias_facts import HIDDEN_BELOW
from .expressions import (
    ZERO,
    Choice,
    Computed,
    Expression,
    Known,
    Number,
    add,
    assume,
    is_zero,
    negated,
    times,
    truth_of,
    uniform,
)

LOWEST = float(np.finfo(np.float32).min)


class UnreadableError(Exception):
    """Why a site is left alone."""


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
        raise UnreadableError("two differently scaled copies of the scores are added")
    return replace(left, number=left.number + right.number, bias=bias)


def scaled(form: Form, by: ir.Value, divides: bool = False) -> Form:
    """form * by, or form / by; `by` does not depend on the product."""
    if isinstance(form, Select):
        return Select(
            form.condition, scaled(form.chosen, by, divides), scaled(form.other, by, divides)
        )
    if not divides and uniform(by) is None and truth_of(by):
        source, turned = negated(by)
        zero = Fixed(ZERO)
        kept = restrict(form, source, not turned)
        return Select(source, zero, kept) if turned else Select(source, kept, zero)
    operator = "Div" if divides else "Mul"
    number = uniform(by)
    if number == 0.0 and divides:
        raise UnreadableError("the scores are divided by zero")
    if number is not None:
        factor = Number(1.0 / number) if divides else Number(number)
        bias = form.bias
        if not is_zero(bias):
            bias = Computed("Div", (bias, Number(number))) if divides else times(bias, factor)
        if isinstance(form, Fixed):
            return Fixed(bias)
        grown = np.float32(form.number) * np.float32(factor.number)
        return replace(form, number=float(grown), bias=bias)
    if not _per_query(by):
        raise UnreadableError(
            f"the scores are multiplied by {by.name!r}, which is no scalar and no number a query"
        )
    bias = form.bias if is_zero(form.bias) else Computed(operator, (form.bias, Known(by)))
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
    """The scale and bias of a form. Raises UnreadableError where there is no such form."""
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
                raise UnreadableError("a mask replaces scores by unknown numbers")
            if not bias.number < HIDDEN_BELOW:
                raise UnreadableError(
                    f"a mask replaces scores by {bias.number:g}, which hides nothing"
                )
            fixed.append(bias.number)

    visit(form)
    if not linears:
        raise UnreadableError("the scores do not reach the Softmax")
    first = linears[0]
    if any((part.number, part.factors) != (first.number, first.factors) for part in linears):
        raise UnreadableError("a mask decides how the scores are scaled")
    # s - 1e9 still tells scores apart, -1e9 in its place does not: a number in the scores' place
    # is made so large that adding a score to it changes nothing.
    weak = any(np.isfinite(number) and number > -1e29 for number in fixed)
    mixed = weak and any(not is_zero(bias) for bias in added)
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

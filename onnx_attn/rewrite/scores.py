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
    divided,
    is_zero,
    largest,
    negated,
    numbers_of,
    times,
    truth_of,
    uniform,
)

LOWEST = float(np.finfo(np.float32).min)


class UnreadableError(Exception):
    """Why a site is left alone."""


@dataclass(frozen=True)
class Step:
    """The product is multiplied with, or divided by, a number or a scalar of the model."""

    op: str  # Mul or Div
    by: float | ir.Value


@dataclass(frozen=True)
class Factor:
    """The product is multiplied with, or divided by, a value of the model that all keys share."""

    value: ir.Value
    divides: bool = False


@dataclass(frozen=True)
class Linear:
    """The product after `steps`, times factors, plus bias."""

    steps: tuple[Step, ...] = ()
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
    count = 0
    while left.steps[count : count + 1] == right.steps[count : count + 1] != ():
        count += 1
    scales = number_of(left.steps[count:]), number_of(right.steps[count:])
    if left.factors != right.factors or scales[0] is None or scales[1] is None:
        raise UnreadableError("two differently scaled copies of the scores are added")
    steps = (*left.steps[:count], Step("Mul", scales[0] + scales[1]))
    return replace(left, steps=steps, bias=bias)


def number_of(steps: tuple[Step, ...]) -> float | None:
    """The number that steps scale by, as float32; None where one is known at run time only."""
    total = np.float32(1.0)
    for step in steps:
        if isinstance(step.by, ir.Value):
            return None
        by = np.float32(step.by)
        total = total / by if step.op == "Div" else total * by
    return float(total)


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
        change = divided if divides else times
        bias = change(form.bias, Number(number))
        if isinstance(form, Fixed):
            return Fixed(bias)
        steps = form.steps if number == 1.0 else (*form.steps, Step(operator, number))
        return replace(form, steps=steps, bias=bias)
    if not _per_query(by):
        raise UnreadableError(
            f"the scores are multiplied by {by.name!r}, which is no scalar and no number a query"
        )
    bias = form.bias if is_zero(form.bias) else Computed(operator, (form.bias, Known(by)))
    if isinstance(form, Fixed):
        return Fixed(bias)
    if all(size == 1 for size in by.shape or ()) and not form.factors:
        return replace(form, steps=(*form.steps, Step(operator, by)), bias=bias)
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
    return replace(form, bias=largest(form.bias, Number(lowest)))


@dataclass(frozen=True)
class Scores:
    """The product after steps and factors, plus a bias, as read from a form.

    faithful: the form itself where a query that sees no key needs it, because hidden scores are
    replaced in one place and added to in another by numbers that do not swallow the scores.
    """

    steps: tuple[Step, ...]
    factors: tuple[Factor, ...]
    bias: Expression
    faithful: Form | None


def read(form: Form) -> Scores:
    """The scale and bias of a form. Raises UnreadableError where there is no such form."""
    linears: list[Linear] = []
    fixed: list[float] = []
    several: list[bool] = []
    added: list[Expression] = []

    def visit(part: Form) -> None:
        if isinstance(part, Select):
            visit(part.chosen)
            visit(part.other)
        elif isinstance(part, Linear):
            linears.append(part)
            added.append(part.bias)
        else:
            numbers = numbers_of(part.bias)
            if numbers is None:
                raise UnreadableError("a mask replaces scores by unknown numbers")
            if not max(numbers) < HIDDEN_BELOW:
                number = max(numbers)
                raise UnreadableError(f"a mask replaces scores by {number:g}, which hides nothing")
            fixed.extend(numbers)
            several.append(len(numbers) > 1)

    visit(form)
    if not linears:
        raise UnreadableError("the scores do not reach the Softmax")
    first = linears[0]
    for part in linears:
        if part.steps == first.steps and part.factors == first.factors:
            continue
        scales = number_of(part.steps), number_of(first.steps)
        if scales[0] is None or scales[0] != scales[1] or part.factors != first.factors:
            raise UnreadableError("a mask decides how the scores are scaled")
    # s - 1e9 still tells scores apart, -1e9 in its place does not: a number in the scores' place
    # is made so large that adding a score to it changes nothing.
    weak = any(np.isfinite(number) and number > -1e29 for number in fixed)
    mixed = weak and (any(several) or any(not is_zero(bias) for bias in added))
    bias = _bias(form, grow=not mixed)
    return Scores(first.steps, first.factors, bias, form if mixed else None)


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

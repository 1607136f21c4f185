"""What a model does to the weights between their Softmax and the product with the value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir

from .expressions import uniform


def _clip(numbers: Any, low: float = -np.inf, high: float = np.inf) -> Any:
    return _smallest(_largest(numbers, low), high)


def _same(numbers: Any) -> Any:
    return numbers


def _relu(numbers: Any) -> Any:
    return _largest(numbers, np.float32(0))


def _largest(*each: Any) -> Any:
    return reduce(np.maximum, each)


def _smallest(*each: Any) -> Any:
    return reduce(np.minimum, each)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "Add": np.add,
    "And": np.logical_and,
    "Clip": _clip,
    "Div": np.divide,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Identity": _same,
    "IsInf": np.isinf,
    "IsNaN": np.isnan,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Max": _largest,
    "Min": _smallest,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Relu": _relu,
    "Sub": np.subtract,
    "Where": np.where,
}
# What weights may be, without NaN; enough of them that only a line goes through all.
WEIGHTS = np.concatenate([np.zeros(1), np.geomspace(1e-30, 1e-3, 28), np.linspace(0, 1, 36)[1:]])


@dataclass(frozen=True)
class Line:
    """number * weights, NaN as NaN or (`guarded`) as 0: what some nodes make of weights.

    value: the result; inner: the values before it.
    """

    value: ir.Value
    inner: tuple[ir.Value, ...]
    number: float
    guarded: bool


def read_line(weights: ir.Value) -> Line | None:
    """What nodes that read the weights and plain numbers alone make of them, if that is a line.

    Guards against NaN, clips to 0..1 and scales are found by trying numbers, not by their spelling.
    """
    samples = np.append(WEIGHTS, np.nan).astype(np.float32)
    made: dict[ir.Value, Any] = {weights: samples}
    waiting = [weights]
    while waiting:
        for usage in waiting.pop().uses():
            node = usage.node
            if any(output in made for output in node.outputs):
                continue
            array = _computed(node, made)
            if array is not None:
                made[node.outputs[0]] = array
                waiting.append(node.outputs[0])
    ends = [value for value in made if _is_read_by_others(value, made)]
    if len(ends) != 1 or ends[0] is weights:
        return None
    value = ends[0]
    found = np.broadcast_to(made[value], samples.shape)
    number = found[-2]
    whole = value.dtype in (None, weights.dtype) and np.isfinite(number) and number != 0
    if not whole or not np.allclose(found[:-1], number * samples[:-1], rtol=1e-6, atol=0):
        return None
    if not np.isnan(found[-1]) and found[-1] != 0:
        return None
    inner = tuple(other for other in made if other is not value)
    return Line(value, inner, float(number), not np.isnan(found[-1]))


def _is_read_by_others(value: ir.Value, made: dict[ir.Value, Any]) -> bool:
    if value.is_graph_output() or not value.uses():
        return True
    nodes = [usage.node for usage in value.uses()]
    return any(node.op_type != "Shape" and node.outputs[0] not in made for node in nodes)


def _computed(node: ir.Node, made: dict[ir.Value, Any]) -> Any:
    """What a node makes of the samples.

    None where it reads what is not known or is no operator of single numbers.
    """
    if node.domain != "" or (node.op_type not in OPERATORS and node.op_type != "Cast"):
        return None
    given: list[Any] = []
    for value in node.inputs:
        if value is None:
            return None
        number = made.get(value)
        if number is None:
            number = uniform(value)
            if number is None:
                return None
            number = np.asarray(number, np.float32 if value.dtype is None else value.dtype.numpy())
        given.append(number)
    with np.errstate(all="ignore"):
        if node.op_type == "Cast":
            return given[0].astype(ir.DataType(node.attributes["to"].as_int()).numpy())
        return OPERATORS[node.op_type](*given)

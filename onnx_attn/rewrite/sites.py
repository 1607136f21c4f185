"""Where attention is in a model.

Found at each Softmax, read backward to the product of query and key and forward to the product with
the value.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from . import scores
from .expressions import ZERO, Expression, Number, assume, negated, truth_of, uniform
from .products import PRODUCTS, Product, Sum, rank_of, read_product, read_sum, read_turned_sum
from .reading import (
    SHAPING,
    Reader,
    Shaping,
    dtype_name,
    likelihood,
    named,
    origin,
    products,
    readers,
)
from .scores import HIDDEN_BELOW, Scores, Step, UnreadableError
from .weights import read_line


@dataclass
class Site:
    """One Softmax of a model; `reason` is None where it can be rewritten."""

    name: str
    softmax: ir.Node
    reason: str | None = None
    product: Product | None = None
    scores: Scores | None = None
    sum: Sum | None = None
    output: ir.Value | None = None
    lead: list[Shaping] = field(default_factory=list[Any])
    reshaped_later: bool = False
    guarded: bool = False  # NaN weights become 0
    # Where this condition is True (False if turned) weights become 0: the condition, and `turned`.
    zeroed: tuple[ir.Value, bool] | None = None
    # What the output or, of keys, the value is multiplied with or divided by.
    gains: list[Gain] = field(default_factory=list[Any])
    inner: list[ir.Value] = field(default_factory=list[Any])


@dataclass(frozen=True)
class Gain:
    """A factor of the weights: a number, [.., Tq or 1, 1] or, of keys, [.., 1, Tv]."""

    op: str
    by: float | ir.Value
    of_keys: bool = False


def find_sites(model: ir.Model) -> list[Site]:
    """Every Softmax of the model, in order, with what was read of it or why it is left alone."""
    sites: list[Site] = []
    names: set[str] = set()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type not in ("Softmax", "QLinearSoftmax"):
            continue
        name = node.name or f"Softmax of {node.outputs[0].name}"
        while name in names:
            name += "_again"
        names.add(name)
        site = Site(name, node)
        try:
            if node.graph is not model.graph:
                raise UnreadableError("it is inside the body of an If, Loop or Scan")
            _read(site)
        except UnreadableError as error:
            site.reason = str(error)
        sites.append(site)
    return sites


def _read(site: Site) -> None:
    node = site.softmax
    source = node.inputs[0]
    if node.domain != "" or node.op_type != "Softmax" or source is None:
        raise UnreadableError(f"its Softmax is {node.domain}.{node.op_type}: quantised scores")
    attribute = node.attributes.get("axis")
    axis = -1 if attribute is None else attribute.as_int()
    if axis != -1 and axis % rank_of(source) != rank_of(source) - 1:
        raise UnreadableError(f"its Softmax is over axis {axis}, not over the last")
    if source.dtype is not None and source.dtype != ir.DataType.FLOAT:
        raise UnreadableError(f"its scores are {source.dtype.name}, not float32")
    _read_forward(site)
    _read_backward(site)


# Forward: from the weights to the output


def _read_forward(site: Site) -> None:
    weights = site.softmax.outputs[0]
    while True:
        site.inner.append(weights)
        if weights.is_graph_output():
            raise UnreadableError("its weights are an output of the model")
        line = read_line(weights)
        if line is not None:
            if any(value.is_graph_output() for value in line.inner):
                raise UnreadableError("its weights are an output of the model")
            site.guarded |= line.guarded
            if line.number != 1.0:
                site.gains.append(Gain("Mul", line.number))
            site.inner += line.inner
            weights = line.value
            continue
        reading = [node for node in readers(weights) if node.op_type != "Shape"]
        zeroed = _zeroed(reading, weights) if site.zeroed is None else None
        if zeroed is not None:
            site.zeroed, weights = zeroed
            continue
        if len(reading) != 1:
            names = ", ".join(sorted({node.op_type for node in reading})) or "nothing"
            raise UnreadableError(f"its weights are read by {names}, not by one product alone")
        node = reading[0]
        if node.op_type in PRODUCTS:
            break
        if node.domain == "" and node.op_type in ("Cast", "Identity"):
            if node.outputs[0].dtype != weights.dtype:
                raise UnreadableError(f"its weights are cast to {dtype_name(node.outputs[0])}")
        elif node.domain == "" and node.op_type in SHAPING and node.inputs[0] is weights:
            site.reshaped_later = True
        elif node.domain == "" and node.op_type == "Transpose" and not site.reshaped_later:
            _read_turned(site, node)
            return
        elif node.domain == "" and node.op_type == "Dropout":
            raise UnreadableError("its weights go through Dropout in training mode")
        elif not _read_gain(site, node, weights):
            raise UnreadableError(
                f"between its Softmax and the product with the value is {named(node)}"
            )
        weights = node.outputs[0]
    _end(site, node, read_sum(node, weights))


def _end(site: Site, node: ir.Node, product: Sum) -> None:
    """Note the product with the value that ends a site."""
    site.sum = product
    site.output = node.outputs[0]
    if site.output.dtype not in (None, ir.DataType.FLOAT):
        raise UnreadableError(f"its output is {dtype_name(site.output)}, not float32")


def _read_turned(site: Site, node: ir.Node) -> None:
    """Weights that are transposed before the product: value^T @ weights^T."""
    weights = node.outputs[0]
    attribute = node.attributes.get("perm")
    rank = rank_of(weights)
    perm = list(range(rank))[::-1] if attribute is None else list(attribute.as_ints())
    reading = readers(weights)
    site.inner.append(weights)
    if weights.is_graph_output():
        raise UnreadableError("its weights are an output of the model")
    plain = perm == [*range(rank - 2), rank - 1, rank - 2] and len(reading) == 1
    if not plain or reading[0].op_type != "MatMul":
        raise UnreadableError("its weights are transposed")
    _end(site, reading[0], read_turned_sum(reading[0], weights))


def _read_gain(site: Site, node: ir.Node, weights: ir.Value) -> bool:
    """Whether `node` multiplies the weights by what each query, or each key, has one of."""
    if node.domain != "" or node.op_type not in ("Mul", "Div") or site.reshaped_later:
        return False
    first, second = node.inputs
    other = second if first is weights else first
    if other is None or other is weights or (node.op_type == "Div" and second is weights):
        return False
    shape = other.shape
    if shape is None or len(shape) > rank_of(weights):
        return False
    if len(shape) == 0 or shape[-1] == 1:
        site.gains.append(Gain(node.op_type, other))
        return True
    if len(shape) == 1 or shape[-2] == 1:
        site.gains.append(Gain(node.op_type, other, of_keys=True))
        return True
    if node.op_type == "Mul" and site.zeroed is None and truth_of(other):
        source, turned = negated(other)
        site.zeroed = source, not turned
        return True
    return False


def _zeroed(
    reading: list[ir.Node], weights: ir.Value
) -> tuple[tuple[ir.Value, bool], ir.Value] | None:
    """The condition under which weights become 0, and the result, if that is what reads them."""
    if len(reading) != 1 or reading[0].domain != "" or reading[0].op_type != "Where":
        return None
    condition, chosen, other = reading[0].inputs
    if condition is None or chosen is None or other is None:
        return None
    source, turned = negated(condition)
    if other is weights and uniform(chosen) == 0.0:
        return (source, turned), reading[0].outputs[0]
    if chosen is weights and uniform(other) == 0.0:
        return (source, not turned), reading[0].outputs[0]
    return None


# Backward: from the Softmax to the product


def _read_backward(site: Site) -> None:
    source = site.softmax.inputs[0]
    assert source is not None
    found = list(products(source))
    if not found and origin(source) in ("QuantizeLinear", "DequantizeLinear"):
        raise UnreadableError("its scores are quantised")
    if not found:
        raise UnreadableError(f"its scores are no product: they come from {origin(source)}")
    problem = UnreadableError("its scores are no product")
    for node in sorted(found, key=likelihood):
        try:
            return _read_from(site, node, source)
        except UnreadableError as error:
            problem = error if problem.args == ("its scores are no product",) else problem
    raise problem


def _read_from(site: Site, node: ir.Node, source: ir.Value) -> None:
    product = node.outputs[0]
    if product.dtype is not None and product.dtype != ir.DataType.FLOAT:
        raise UnreadableError(f"its scores are {dtype_name(product)}, not float32")
    reader = Reader(product)
    form = reader.form(source)
    if form is None:
        raise UnreadableError("its scores do not reach the Softmax")
    site.product = read_product(node)
    if reader.turned:
        site.product = site.product.turned()
    read = scores.read(form)
    if site.product.number != 1.0:
        if read.faithful is not None:
            raise UnreadableError("the product is a scaled Gemm under masks of two kinds")
        read = replace(read, steps=(Step("Mul", site.product.number), *read.steps))
    if site.zeroed is not None and not _hides(read.bias, *site.zeroed):
        raise UnreadableError(
            "its weights are masked once more, and not provably as its scores are"
        )
    site.scores = read
    site.lead = reader.lead
    site.reshaped_later |= reader.reshaped_later
    after = set(reader.later)
    for value in scores.parts(form):
        if value in after:
            raise UnreadableError(f"its scores are also read by {named(value.producer())}")
    allowed = reader.nodes | {site.softmax}
    for value in reader.chain:
        if value.is_graph_output():
            raise UnreadableError("its scores are an output of the model")
        for other in readers(value):
            if other not in allowed and other.op_type != "Shape":
                raise UnreadableError(f"its scores are also read by {named(other)}")
    site.inner += reader.chain


def _hides(bias: Expression, condition: ir.Value, turned: bool) -> bool:
    """Whether a bias is 0 but where the condition hides the score."""
    hidden, shown = (assume(bias, condition, truth) for truth in (not turned, turned))
    low = isinstance(hidden, Number) and hidden.number < HIDDEN_BELOW
    return bool(low and shown == ZERO)

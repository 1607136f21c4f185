"""Where attention is in a model: found at each Softmax, read backward to the product of query and
key and forward to the product with the value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from . import scores
from .normal import constant
from .products import PRODUCTS, Product, Sum, axes_of, rank_of, read_product, read_sum
from .scores import Fixed, Form, Linear, Scores, Select, Unreadable, negated, uniform

# Between the product and its Softmax; each in `Reader.form`.
SHAPING = ("Reshape", "Squeeze", "Unsqueeze")
ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Neg", "Where", "Max", "Sum", "Cast", "Identity")


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
    inner: list[ir.Value] = field(default_factory=list[Any])


@dataclass(frozen=True)
class Shaping:
    """A Reshape, Squeeze or Unsqueeze of the scores that keeps queries and keys as last axes.

    picked: for each axis before them, the index in the Reshape's target; None: length 1.
    """

    target: ir.Value
    picked: tuple[int | None, ...]


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
                raise Unreadable("it is inside the body of an If, Loop or Scan")
            _read(site)
        except Unreadable as error:
            site.reason = str(error)
        sites.append(site)
    return sites


def _read(site: Site) -> None:
    node = site.softmax
    source = node.inputs[0]
    if node.domain != "" or node.op_type != "Softmax" or source is None:
        raise Unreadable(f"its Softmax is {node.domain}.{node.op_type}: quantised scores")
    attribute = node.attributes.get("axis")
    axis = -1 if attribute is None else attribute.as_int()
    if axis != -1 and axis % rank_of(source) != rank_of(source) - 1:
        raise Unreadable(f"its Softmax is over axis {axis}, not over the last")
    if source.dtype is not None and source.dtype != ir.DataType.FLOAT:
        raise Unreadable(f"its scores are {source.dtype.name}, not float32")
    _read_forward(site)
    _read_backward(site)


# Forward: from the weights to the output


def _read_forward(site: Site) -> None:
    weights = site.softmax.outputs[0]
    while True:
        site.inner.append(weights)
        if weights.is_graph_output():
            raise Unreadable("its weights are an output of the model")
        readers = [node for node in _readers(weights) if node.op_type != "Shape"]
        guard = _nan_guard(readers, weights)
        if guard is not None:
            site.guarded = True
            weights = guard
            continue
        zeroed = _zeroed(readers, weights) if site.zeroed is None else None
        if zeroed is not None:
            site.zeroed, weights = zeroed
            continue
        if len(readers) != 1:
            names = ", ".join(sorted({node.op_type for node in readers})) or "nothing"
            raise Unreadable(f"its weights are read by {names}, not by one product alone")
        node = readers[0]
        if node.op_type in PRODUCTS:
            break
        if node.domain == "" and node.op_type in ("Cast", "Identity"):
            if node.outputs[0].dtype != weights.dtype:
                raise Unreadable(f"its weights are cast to {_dtype(node.outputs[0])}")
        elif node.domain == "" and node.op_type in SHAPING and node.inputs[0] is weights:
            site.reshaped_later = True
        else:
            raise Unreadable(f"between its Softmax and the product with the value is {_named(node)}")
        weights = node.outputs[0]
    site.sum = read_sum(node, weights)
    site.output = node.outputs[0]
    if site.output.dtype not in (None, ir.DataType.FLOAT):
        raise Unreadable(f"its output is {_dtype(site.output)}, not float32")


def _nan_guard(readers: list[ir.Node], weights: ir.Value) -> ir.Value | None:
    """The result of Where(IsNaN(weights), 0, weights), if that is what reads them."""
    kinds = sorted(node.op_type for node in readers)
    if kinds != ["IsNaN", "Where"]:
        return None
    where = next(node for node in readers if node.op_type == "Where")
    test = next(node for node in readers if node.op_type == "IsNaN")
    condition, number, other = where.inputs
    if condition is not test.outputs[0] or other is not weights or number is None:
        return None
    alone = len(_readers(test.outputs[0])) == 1 and not test.outputs[0].is_graph_output()
    return where.outputs[0] if alone and uniform(number) == 0.0 else None


def _zeroed(
    readers: list[ir.Node], weights: ir.Value
) -> tuple[tuple[ir.Value, bool], ir.Value] | None:
    """The condition under which weights become 0, and the result, if that is what reads them."""
    if len(readers) != 1 or readers[0].domain != "" or readers[0].op_type != "Where":
        return None
    condition, chosen, other = readers[0].inputs
    if condition is None or chosen is None or other is None:
        return None
    source, turned = negated(condition)
    if other is weights and uniform(chosen) == 0.0:
        return (source, turned), readers[0].outputs[0]
    if chosen is weights and uniform(other) == 0.0:
        return (source, not turned), readers[0].outputs[0]
    return None


# Backward: from the Softmax to the product


def _read_backward(site: Site) -> None:
    source = site.softmax.inputs[0]
    assert source is not None
    products = list(_products(source))
    if not products and _origin(source) in ("QuantizeLinear", "DequantizeLinear"):
        raise Unreadable("its scores are quantised")
    if not products:
        raise Unreadable(f"its scores are no product: they come from {_origin(source)}")
    problem = Unreadable("its scores are no product")
    for node in sorted(products, key=_likelihood):
        try:
            return _read_from(site, node, source)
        except Unreadable as error:
            problem = error if problem.args == ("its scores are no product",) else problem
    raise problem


def _products(value: ir.Value) -> Iterator[ir.Node]:
    """The products that reach `value` through operators that act on each number alone."""
    waiting, seen = [value], set[ir.Node]()
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type in PRODUCTS:
            yield node
        elif node.domain == "" and node.op_type in ("Where",):
            waiting += [v for v in node.inputs[1:] if v is not None]
        elif node.domain == "" and node.op_type in ELEMENTWISE:
            waiting += [v for v in node.inputs if v is not None]
        elif node.domain == "" and node.op_type in SHAPING and node.inputs[0] is not None:
            waiting.append(node.inputs[0])


def _likelihood(node: ir.Node) -> tuple[bool, int]:
    """Products of queries and keys first: masks too are sometimes made by a product."""
    floats = all(v is not None and v.dtype == ir.DataType.FLOAT for v in node.inputs)
    first = node.inputs[0]
    width = first.shape[-1] if first is not None and first.shape else None
    weights = sum(_learned(value, 12) for value in node.inputs if value is not None)
    return (not floats or width == 1, -weights)


def _learned(value: ir.Value, depth: int) -> bool:
    """Whether a value is computed from float weights, as far as `depth` nodes tell."""
    waiting, seen = [(value, depth)], set[ir.Value]()
    while waiting:
        value, left = waiting.pop()
        node = value.producer()
        if node is None:
            if value.const_value is not None and value.dtype == ir.DataType.FLOAT:
                size = value.const_value.size
                if size > 1:
                    return True
            continue
        if left == 0 or value in seen:
            continue
        seen.add(value)
        waiting += [(v, left - 1) for v in node.inputs if v is not None]
    return False


def _read_from(site: Site, node: ir.Node, source: ir.Value) -> None:
    product = node.outputs[0]
    if product.dtype is not None and product.dtype != ir.DataType.FLOAT:
        raise Unreadable(f"its scores are {_dtype(product)}, not float32")
    reader = Reader(product)
    form = reader.form(source)
    if form is None:
        raise Unreadable("its scores do not reach the Softmax")
    site.product = read_product(node)
    read = scores.read(form)
    if site.product.number != 1.0:
        read = scores.Scores(
            read.number * site.product.number, read.factors, read.bias, read.faithful
        )
    if read.faithful is not None and site.product.number != 1.0:
        raise Unreadable("the product is a scaled Gemm under masks of two kinds")
    if site.zeroed is not None and not _hides(read.bias, *site.zeroed):
        raise Unreadable("its weights are masked otherwise than its scores")
    site.scores = read
    site.lead = reader.lead
    site.reshaped_later |= reader.reshaped_later
    after = set(reader.later)
    for value in scores.parts(form):
        if value in after:
            raise Unreadable(f"its scores are also read by {_named(value.producer())}")
    allowed = reader.nodes | {site.softmax}
    for value in reader.chain:
        if value.is_graph_output():
            raise Unreadable("its scores are an output of the model")
        for other in _readers(value):
            if other not in allowed and other.op_type != "Shape":
                raise Unreadable(f"its scores are also read by {_named(other)}")
    site.inner += reader.chain


def _hides(bias: scores.Expression, condition: ir.Value, turned: bool) -> bool:
    """Whether a bias is 0 but where the condition hides the score."""
    if not isinstance(bias, scores.Choice) or bias.condition is not condition:
        return False
    hidden, shown = (bias.other, bias.chosen) if turned else (bias.chosen, bias.other)
    low = isinstance(hidden, scores.Number) and hidden.number < scores.HIDDEN_BELOW
    return low and shown == scores.ZERO


class Reader:
    """Reads the values between one product and a Softmax as forms."""

    def __init__(self, product: ir.Value) -> None:
        self.product = product
        self.later = _dependents(product)
        self.forms: dict[ir.Value, Form | None] = {product: Linear()}
        self.chain: list[ir.Value] = [product]
        self.nodes: set[ir.Node] = set()
        self.lead: list[Shaping] = []
        self.reshaped_later = False
        self.shapings: dict[ir.Value, Form] = {}

    def form(self, value: ir.Value) -> Form | None:
        """What `value` makes of the product; None where it does not depend on it."""
        if value not in self.forms:
            found = None
            if value in self.later:
                node = value.producer()
                assert node is not None
                found = self._of_node(node)
            self.forms[value] = found
            if found is not None:
                self.chain.append(value)
                self.nodes.add(value.producer())  # pyright: ignore[reportArgumentType]
        return self.forms[value]

    def _of_node(self, node: ir.Node) -> Form:
        kind = node.op_type
        if node.domain != "":
            raise Unreadable(f"between its product and its Softmax is {_named(node)}")
        if kind in ("QuantizeLinear", "DequantizeLinear"):
            raise Unreadable("its scores are quantised")
        if kind in SHAPING:
            return self._shaped(node)
        if kind not in ELEMENTWISE:
            raise Unreadable(f"between its product and its Softmax is {_named(node)}")
        values = [value for value in node.inputs if value is not None]
        if kind in ("Cast", "Identity"):
            if values[0].dtype is None or node.outputs[0].dtype != values[0].dtype:
                raise Unreadable(f"its scores are cast to {_dtype(node.outputs[0])}")
            return self._given(values[0])
        if kind == "Neg":
            return self._negative(self._given(values[0]))
        if kind == "Where":
            return self._where(*values)
        if kind == "Sum":
            return self._sum(values)
        if kind == "Max":
            return self._max(values)
        left, right = values
        one, other = self.form(left), self.form(right)
        if kind == "Sub":
            if other is None:
                assert one is not None
                return scores.shifted(one, scores.minus(scores.expression(right)))
            other = self._negative(other)
            kind = "Add"
        if kind == "Add":
            if one is not None and other is not None:
                return scores.together(one, other)
            if one is not None:
                return scores.shifted(one, scores.expression(right))
            assert other is not None
            return scores.shifted(other, scores.expression(left))
        if one is not None and other is None:
            return scores.scaled(one, right, kind == "Div")
        if kind == "Mul" and other is not None and one is None:
            return scores.scaled(other, left)
        raise Unreadable("its scores are multiplied with or divided by themselves")

    def _given(self, value: ir.Value) -> Form:
        form = self.form(value)
        assert form is not None
        return form

    def _negative(self, form: Form) -> Form:
        if isinstance(form, Select):
            return Select(
                form.condition, self._negative(form.chosen), self._negative(form.other)
            )
        bias = scores.minus(form.bias) if form.bias != scores.ZERO else form.bias
        if isinstance(form, Fixed):
            return Fixed(bias)
        return Linear(-form.number, form.factors, bias)

    def _where(self, condition: ir.Value, chosen: ir.Value, other: ir.Value) -> Form:
        if condition in self.later:
            raise Unreadable("a condition that depends on its scores changes them")
        source, turned = negated(condition)
        if turned:
            chosen, other = other, chosen
        sides: list[Form] = []
        for value, truth in ((chosen, True), (other, False)):
            form = self.form(value)
            if form is None:
                form = Fixed(scores.expression(value))
            sides.append(scores.restrict(form, source, truth))
        return Select(source, sides[0], sides[1])

    def _sum(self, values: list[ir.Value]) -> Form:
        forms = [form for value in values if (form := self.form(value)) is not None]
        total = forms[0]
        for form in forms[1:]:
            total = scores.together(total, form)
        for value in values:
            if self.form(value) is None:
                total = scores.shifted(total, scores.expression(value))
        return total

    def _max(self, values: list[ir.Value]) -> Form:
        forms = [form for value in values if (form := self.form(value)) is not None]
        numbers = [uniform(value) for value in values if self.form(value) is None]
        if len(forms) != 1 or any(number is None or number > -1e30 for number in numbers):
            raise Unreadable("its scores are bounded by Max")
        return scores.lifted(forms[0], max(number for number in numbers if number is not None))

    def _shaped(self, node: ir.Node) -> Form:
        """A change of shape that keeps queries and keys the last two axes (but for lone ones)."""
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None
        form = self._given(source)
        masked = not isinstance(form, Linear) or form.bias != scores.ZERO or form.factors
        if masked or self.reshaped_later:
            self.reshaped_later = True
            return form
        if node.op_type == "Reshape":
            target = node.inputs[1]
            assert target is not None
            known = target.shape[0] if target.shape else None
            rank = known if isinstance(known, int) else rank_of(output)
            self.lead.append(Shaping(target, tuple(range(rank))))
            return form
        if not self.lead:
            start = Shaping(source, tuple(range(rank_of(source))))
            self.lead.append(start)
        last = self.lead[-1]
        picked = list(last.picked)
        rank = len(picked) + (0 if node.op_type == "Squeeze" else 0)
        if node.op_type == "Squeeze":
            axes = axes_of(node, rank)
            if axes is None:
                raise Unreadable("its scores are squeezed of axes that are not known")
            picked = [axis for index, axis in enumerate(picked) if index not in axes]
        else:
            known = constant(node.inputs[1]) if len(node.inputs) > 1 else None
            if known is None:
                raise Unreadable("its scores are unsqueezed along axes that are not known")
            full = rank + known.size
            for axis in sorted(int(axis) % full for axis in known.reshape(-1)):
                picked.insert(axis, None)  # pyright: ignore[reportArgumentType]
        self.lead[-1] = Shaping(last.target, tuple(picked))
        return form


def _dependents(value: ir.Value) -> set[ir.Value]:
    """`value` and what is computed from it, its shape apart."""
    found, waiting = {value}, [value]
    while waiting:
        for node in _readers(waiting.pop()):
            if node.op_type in ("Shape", "Size"):
                continue
            for output in node.outputs:
                if output not in found:
                    found.add(output)
                    waiting.append(output)
            if len(found) > 20000:
                return found
    return found


def _readers(value: ir.Value) -> list[ir.Node]:
    return list(dict.fromkeys(usage.node for usage in value.uses()))


def _origin(value: ir.Value) -> str:
    node = value.producer()
    return "an input" if node is None else _named(node)


def _named(node: ir.Node | None) -> str:
    if node is None:
        return "an input"
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _dtype(value: ir.Value) -> str:
    return "of unknown type" if value.dtype is None else value.dtype.name
